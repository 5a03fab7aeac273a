"""What is checked, by people and machines: `python -m nox` for all of it, `python -m nox -s NAME` for one."""

import gzip
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import nox

nox.needs_version = ">=2026.10"
nox.options.sessions = ["fmt", "lint", "types", "rust", "py"]
nox.options.reuse_existing_virtualenvs = True

ROOT = Path(__file__).parent
GROUPS = nox.project.load_toml(ROOT / "pyproject.toml")


def install_group(session: nox.Session, name: str) -> None:
    """Install a dependency group of pyproject.toml."""
    session.install(*nox.project.dependency_groups(GROUPS, name))


@nox.session
def fmt(session: nox.Session) -> None:
    """Format Rust and Python; with `-- --check` only look."""
    install_group(session, "lint")
    session.run("cargo", "fmt", "--all", *session.posargs, external=True)
    session.run("cargo", "fmt", "--manifest-path", "fuzz/Cargo.toml", *session.posargs, external=True)
    session.run("ruff", "format", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Run ruff and clippy."""
    install_group(session, "lint")
    session.run("ruff", "check")
    session.run(
        "cargo", "clippy", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings", external=True
    )


@nox.session
def types(session: nox.Session) -> None:
    """Run mypy and pyright on the package and on a user's program, and stubtest on the built module."""
    install_group(session, "types")
    session.install(".")
    session.run("mypy")
    session.run("pyright")
    session.run("stubtest", "debugreg._core")


@nox.session
def rust(session: nox.Session) -> None:
    """Run the tests of the Rust crates; the binding is tested from Python."""
    session.run("cargo", "test", "--workspace", "--exclude", "debugreg-python", *session.posargs, external=True)


@nox.session
def py(session: nox.Session) -> None:
    """Build, install, and run the tests, and each benchmark once."""
    session.install(".[test]")
    session.run("pytest", "tests", "bench", "--benchmark-disable", *session.posargs)


@nox.session
def stubs(session: nox.Session) -> None:
    """Write python/debugreg/_core.pyi again, from the module as it is built now."""
    session.install(".[test]")
    session.run("python", "tests/test_stubs.py")


@nox.session
def bench(session: nox.Session) -> None:
    """Measure. A method of a few nanoseconds needs rounds of a millisecond, or the clock is what is measured."""
    session.install(".[test]")
    options = ["--benchmark-only", "--benchmark-min-time=0.001", "--benchmark-disable-gc", "--benchmark-group-by=group"]
    session.run("pytest", "bench", *options, *session.posargs)
    # The ratios that the README claims: both sides in one run, taking turns.
    session.run("python", "bench/report.py", "--write", "docs/performance.md")


@nox.session(venv_backend="none")
def fuzz(session: nox.Session) -> None:
    """Fuzz each target for a minute, or `-- TARGET [SECONDS]`; needs `cargo install cargo-fuzz` and a C++ compiler."""
    with TemporaryDirectory() as seeds:
        write_pieces_of_trace(Path(seeds))
        targets = {
            "parser": ["scenarios", "tests/malformed", "--", "-dict=fuzz/parser.dict"],
            "events": ["--", "-max_len=4096", "-len_control=20"],
            "trace": [seeds, "--", "-max_len=16384", "-dict=fuzz/trace.dict"],
        }
        named, seconds = [*session.posargs, "", ""][:2]
        if named not in {"", *targets}:
            session.error(f"no target {named!r}: allowed are {', '.join(targets)}")
        for target in [named] if named else targets:
            found = ROOT / "fuzz" / "corpus" / target
            found.mkdir(parents=True, exist_ok=True)
            limits = [f"-max_total_time={seconds or 60}", "-timeout=20", "-rss_limit_mb=512"]
            # No sanitizer: those need a nightly toolchain, and there is no unsafe code here for them to watch.
            command = ["cargo", "fuzz", "run", "--sanitizer", "none", target, str(found), *targets[target], *limits]
            session.run(*command, external=True)


def write_pieces_of_trace(folder: Path) -> None:
    """Write seeds for the target `trace`: pieces of the trace that the package ships, each with some of its steps."""
    data = ROOT / "python" / "debugreg" / "data"
    names = "kvm-amd-6.12-phases.txt.gz", "kvm-amd-6.12-phases.steps.gz"
    files = [gzip.decompress((data / name).read_bytes()).splitlines(keepends=True) for name in names]
    for piece in range(24):
        starts = [piece * len(lines) // 24 for lines in files]
        parts = [b"".join(lines[start : start + 40]) for lines, start in zip(files, starts, strict=True)]
        (folder / str(piece)).write_bytes(b"\0".join(parts))


@nox.session
def sdist(session: nox.Session) -> None:
    """Build the source distribution, install from it, and run its tests in its own folder."""
    install_group(session, "sdist")
    with TemporaryDirectory() as folder:
        session.run("python", "-m", "build", "--sdist", "--outdir", folder, str(ROOT))
        (archive,) = Path(folder).glob("*.tar.gz")
        shutil.unpack_archive(archive, folder)
        unpacked = archive.with_name(archive.name.removesuffix(".tar.gz"))
        if (ROOT / ".git").exists():
            tracked = session.run("git", "-C", str(ROOT), "ls-files", silent=True, external=True, log=False)
            missing = [name for name in str(tracked).splitlines() if not (unpacked / name).exists()]
            if missing != [".gitignore"]:
                session.error(f"tracked, but not in the source distribution: {missing}")
        # One target folder for the tree and for what was unpacked: dependencies are built once.
        session.install(f"debugreg[test] @ {archive.as_uri()}", env={"CARGO_TARGET_DIR": str(ROOT / "target")})
        session.chdir(unpacked)
        # Whether it is all there shows without those that take long.
        long = "museum", "compare", "check", "conform", "replay", "spin", "world_guests", "world_kernel", "world_vm"
        session.run("pytest", *(f"--ignore=tests/test_{name}.py" for name in long))
