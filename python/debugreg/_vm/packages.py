"""What the world `vm` runs on: QEMU and a kernel, fetched from Debian into the user's cache.

Nothing is installed. apt-get runs with a configuration of its own (sources, lists, downloads), which needs no root; it
checks signatures, and knows which libraries of QEMU this machine has already. Packages are unpacked into the cache.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from debugreg.errors import WorldError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

__all__ = ["KERNELS", "Emulator", "Kernel", "find_emulator", "find_kernel"]

OLDEST_QEMU = 10
"""QEMU 7.2 dies in a nested guest with data breakpoints, and does not load DR7 at VMRUN."""

QEMU_PACKAGE = ("qemu-system-x86", "1:10.0.2+ds-2+deb13u1~bpo12+1")


@dataclass(frozen=True, slots=True)
class Series:
    """A kernel that is on offer."""

    package: str
    version: str
    policy: str
    """The model of it."""


KERNELS = {
    "6.12": Series("linux-image-6.12.95+deb12-cloud-amd64", "6.12.95-1~bpo12+1", "debian-6.12"),
    "6.1": Series("linux-image-6.1.0-50-cloud-amd64", "6.1.176-1", "linux-5.15+H-01=fixed"),
}
"""The exact packages; if the archive has thrown one away, the newest of its series is taken."""

MODULE = "kvm-amd"
"""The module that is loaded, after those that it needs."""

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

BACKPORTS = "bookworm-backports"
SUITES = [
    ("http://deb.debian.org/debian", "bookworm"),
    ("http://deb.debian.org/debian", "bookworm-updates"),
    ("http://deb.debian.org/debian-security", "bookworm-security"),
    ("http://deb.debian.org/debian", BACKPORTS),
]


@dataclass(frozen=True, slots=True)
class Emulator:
    """A QEMU that can be run."""

    command: tuple[str, ...]
    """The program, and where its firmware is."""
    libraries: str | None
    """LD_LIBRARY_PATH, if it needs one."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel that can be booted."""

    package: str
    version: str
    policy: str
    image: Path
    modules: tuple[Path, ...]
    """In the order in which they are loaded."""


def find_emulator(tell: Callable[[str], None] | None) -> Emulator:
    """Return QEMU: that of this machine if it will do, else Debian's.

    Args:
        tell: Called with a line about each package that is fetched; without it nothing is fetched.

    Raises:
        WorldError: There is none; the message says how to get one.
    """
    installed = shutil.which("qemu-system-x86_64")
    if installed and _suitable(installed, None):
        return Emulator((installed,), None)
    name, pinned = QEMU_PACKAGE
    missing = (
        f"QEMU {OLDEST_QEMU} or later with plugins (qemu-system-x86_64) is missing: "
        f"apt-get install -t {BACKPORTS} {name}"
    )
    with _Cache(tell, missing) as cache:
        root = cache.newest(name, pinned)
        if root is None:
            version = cache.available(name, pinned, lambda version: _major(version) >= OLDEST_QEMU)
            with cache.unpacked(name, version, cache.with_dependencies(name, version)) as content:
                # 40 MB of firmware for other machines.
                shutil.rmtree(content / "usr/share/doc", ignore_errors=True)
            root = cache.folder(name, version)
    libraries = os.pathsep.join(str(root / folder / "x86_64-linux-gnu") for folder in ("usr/lib", "lib"))
    program = str(root / "usr/bin/qemu-system-x86_64")
    if not _suitable(program, libraries):
        raise WorldError(f"the QEMU in {root} does not run here; {missing}")
    firmware = [str(root / "usr/share" / folder) for folder in ("qemu", "seabios")]
    return Emulator((program, "-L", firmware[0], "-L", firmware[1]), libraries)


def _suitable(program: str, libraries: str | None) -> bool:
    """Whether a QEMU is new enough and takes plugins."""
    environment = os.environ | ({"LD_LIBRARY_PATH": libraries} if libraries else {})
    try:
        said = subprocess.run([program, "-help"], capture_output=True, text=True, check=True, env=environment).stdout
    except (OSError, subprocess.CalledProcessError):
        return False
    version = re.search(r"version (\d+)\.", said)
    return version is not None and int(version[1]) >= OLDEST_QEMU and "\n-plugin " in said


def main() -> None:
    """Fetch everything: `python -m debugreg._vm.packages`."""
    find_emulator(print)
    for series in KERNELS:
        find_kernel(series, print)


def _major(version: str) -> int:
    number = re.match(r"(?:\d+:)?(\d+)", version)
    return int(number[1]) if number else 0


def find_kernel(series: str, tell: Callable[[str], None] | None) -> Kernel:
    """Return a kernel of a series, a key of `KERNELS`.

    Args:
        series: Which.
        tell: Called with a line about each package that is fetched; without it nothing is fetched.

    Raises:
        WorldError: It is not there, and cannot be had.
    """
    wanted = KERNELS[series]
    missing = f"a Debian kernel {series} is missing: debugreg run --on vm --kernel {series} fetches it with apt-get"
    with _Cache(tell, missing) as cache:
        like = re.compile(rf"linux-image-{re.escape(series)}\.\d.*-cloud-amd64")
        root = cache.newest(wanted.package, wanted.version) or cache.newest_like(like)
        if root is None:
            package, version = wanted.package, cache.available(wanted.package, wanted.version, lambda _: False)
            if not version:
                package, version = cache.newest_package(like)
            with cache.unpacked(package, version, [(package, version)]) as content:
                _keep_what_boots(content)
            root = cache.folder(package, version)
    package, _, version = root.name.partition("_")
    return Kernel(package, version, wanted.policy, root / "vmlinuz", tuple(sorted((root / "modules").iterdir())))


def _keep_what_boots(content: Path) -> None:
    """Reduce an unpacked kernel package to its image and the modules that are loaded."""
    (image,) = content.glob("boot/vmlinuz-*")
    found = {path.name.partition(".ko")[0]: path for path in content.glob("lib/modules/*/kernel/**/*.ko*")}
    modules: dict[str, bytes] = {}

    def load(name: str) -> None:
        if name in modules or name.replace("_", "-") in modules:
            return
        path = found.get(name) or found[name.replace("_", "-")]
        data = path.read_bytes()
        if path.suffix == ".xz":
            import lzma

            data = lzma.decompress(data)
        depends = re.search(rb"\0depends=([^\0]*)\0", data)
        for other in depends[1].decode().split(",") if depends else []:
            if other:
                load(other)
        modules[path.name.partition(".ko")[0]] = data

    load(MODULE)
    (content / "modules").mkdir()
    for number, (name, data) in enumerate(modules.items()):
        (content / "modules" / f"{number}-{name}.ko").write_bytes(data)
    image.rename(content / "vmlinuz")
    for path in content.iterdir():
        if path.name not in {"vmlinuz", "modules"}:
            shutil.rmtree(path)


class _Cache:
    """The folder in which packages are unpacked, one folder `NAME_VERSION` each; locked while it is open."""

    def __init__(self, tell: Callable[[str], None] | None, missing: str) -> None:
        self.tell = tell
        self.missing = missing
        base = os.environ.get("XDG_CACHE_HOME", "")
        # A relative one is to be ignored, says the XDG base directory specification.
        self.root = (Path(base) if base.startswith("/") else Path.home() / ".cache") / "debugreg" / "vm"
        self.updated = False

    def __enter__(self) -> Self:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self.lock = (self.root / "lock").open("w")
        except OSError as error:
            raise WorldError(f"the world 'vm' needs a cache: {error.filename}: {error.strerror}") from error
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        return self

    def __exit__(self, *_: object) -> None:
        self.lock.close()

    def folder(self, package: str, version: str) -> Path:
        # Without the epoch: LD_LIBRARY_PATH takes no colon.
        return self.root / f"{package}_{version.rpartition(':')[2]}"

    def newest(self, package: str, pinned: str) -> Path | None:
        """Return where a package is unpacked: the pinned version, or the newest that is there."""
        exact = self.folder(package, pinned)
        return exact if exact.is_dir() else self.newest_like(re.compile(re.escape(package)))

    def newest_like(self, names: re.Pattern[str]) -> Path | None:
        folders = [path for path in self.root.iterdir() if names.fullmatch(path.name.partition("_")[0])]
        return max(folders, key=lambda path: _numbers(path.name), default=None)

    def available(self, package: str, pinned: str, acceptable: Callable[[str], bool]) -> str:
        """Return the version to fetch: the pinned one, else the newest acceptable one; without one, ''."""
        offered = re.findall(r"^\s*Version: (\S+)", self._query("show", package), re.MULTILINE)
        if pinned in offered:
            return pinned
        others = [version for version in offered if acceptable(version)]
        return max(others, key=_numbers, default="")

    def newest_package(self, names: re.Pattern[str]) -> tuple[str, str]:
        """Return name and version of the newest package that is called like that."""
        offered = [name for name in self._query("pkgnames").split() if names.fullmatch(name)]
        for name in sorted(offered, key=_numbers, reverse=True):
            version = self.available(name, "", lambda _: True)
            if version:
                return name, version
        raise WorldError(f"Debian has no kernel like {names.pattern} any more")

    def with_dependencies(self, package: str, version: str) -> list[tuple[str, str]]:
        """Return what an installation would install here."""
        if not version:
            raise WorldError(self.missing)
        options = ("--simulate", "--no-install-recommends", f"--target-release={BACKPORTS}")
        plan = self._apt("install", *options, f"{package}={version}")
        return re.findall(r"^Inst (\S+) (?:\[\S*\] )?\((\S+) ", plan, re.MULTILINE)

    @contextmanager
    def unpacked(self, package: str, version: str, parts: list[tuple[str, str]]) -> Generator[Path]:
        """Fetch packages and unpack them: a folder to change, which is moved to its place when all went well."""
        if self.tell is None:
            raise WorldError(self.missing)
        self.tell(f"fetching {package} {version} from Debian into {self.root}")
        with tempfile.TemporaryDirectory(dir=self.root, prefix=".new-") as name:
            downloads, content = Path(name, "downloads"), Path(name, "content")
            downloads.mkdir()
            content.mkdir()
            self._apt("download", *(f"{part}={number}" for part, number in parts), cwd=downloads)
            for archive in downloads.glob("*.deb"):
                self._run(["dpkg-deb", "--extract", str(archive), str(content)])
            yield content
            content.rename(self.folder(package, version))

    def _query(self, *arguments: str) -> str:
        return self._apt(*arguments, program="apt-cache")

    def _apt(self, *arguments: str, program: str = "apt-get", cwd: Path | None = None) -> str:
        if self.tell is None or shutil.which(program) is None:
            raise WorldError(self.missing)
        if not KEYRING.exists():
            raise WorldError(f"{KEYRING} is missing: apt-get install debian-archive-keyring")
        if not self.updated:
            self._configure()
            self.updated = True
            self._run(["apt-get", "update", "--quiet", "--error-on=any"])
        return self._run([program, "--quiet", *arguments], cwd)

    def _configure(self) -> None:
        apt = self.root / "apt"
        for folder in ("lists/partial", "archives/partial"):
            (apt / folder).mkdir(parents=True, exist_ok=True)
        sources = [f"deb [arch=amd64 signed-by={KEYRING}] {url} {suite} main\n" for url, suite in SUITES]
        (apt / "sources.list").write_text("".join(sources))
        settings = {
            "Dir::State::lists": apt / "lists",
            "Dir::Cache": apt,
            "Dir::Etc::sourcelist": apt / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "APT::Sandbox::User": "root",
        }
        (apt / "apt.conf").write_text("".join(f'{name} "{value}";\n' for name, value in settings.items()))

    def _run(self, command: list[str], cwd: Path | None = None) -> str:
        environment = os.environ | {"APT_CONFIG": str(self.root / "apt/apt.conf"), "LC_ALL": "C"}
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment)
        except OSError as error:
            raise WorldError(f"{self.missing} ({command[0]}: {error.strerror})") from error
        if done.returncode != 0:
            # Its last word is the reason.
            reason = next((line for line in done.stderr.splitlines()[::-1] if line.startswith("E:")), done.stderr)
            raise WorldError(f"{self.missing} ({command[0]} {command[1]}: {reason.strip()})")
        return done.stdout


def _numbers(text: str) -> list[int]:
    """Return what orders versions of one series."""
    return [int(number) for number in re.findall(r"\d+", text)]


if __name__ == "__main__":
    main()
