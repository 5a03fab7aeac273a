"""The ratios that the README claims: `python bench/report.py`, a minute; `--write FILE` makes a page of them.

pytest-benchmark measures one side after the other. A ratio is worth more if the sides take turns, so that what slows
the machine slows both; the fastest round of each counts, because whatever else the machine does only adds.
"""

from __future__ import annotations

import gc
import gzip
import platform
import shutil
import subprocess
import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

import debugreg

if TYPE_CHECKING:
    from collections.abc import Callable

ROUND_S = 0.001
ROUNDS = 300
STARTS = 40


def fastest(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the seconds of each side's fastest round; each has its turn, one way round and then the other."""
    best = dict.fromkeys(sides, float("inf"))
    turns = list(sides.items())
    for _ in range(rounds):
        turns.reverse()
        for name, side in turns:
            start = perf_counter()
            side()
            best[name] = min(best[name], perf_counter() - start)
    return best


def per_operation(sides: dict[str, Callable[[int], object]]) -> dict[str, float]:
    """Return the seconds that each side takes for one operation, in rounds of about the same length."""
    counts = {}
    for name, side in sides.items():
        n = 1000
        while (took := fastest({name: partial(side, n)}, 3)[name]) < ROUND_S / 4:
            n *= 4
        counts[name] = max(1, round(n * ROUND_S / took))
    rounds = {name: partial(side, counts[name]) for name, side in sides.items()}
    return {name: took / counts[name] for name, took in fastest(rounds, ROUNDS).items()}


class Figure(NamedTuple):
    """A line of the page: ours, beside a peer's."""

    what: str
    ours: str
    peer: str
    theirs: str
    ratio: str


FIGURES: list[Figure] = []


def show(*lines: str) -> None:
    """Print."""
    print(*lines, sep="\n", flush=True)  # noqa: T201 - a report


def ns(seconds: float | None) -> str:
    """Write nanoseconds."""
    if seconds is None:
        return "-"
    return f"{seconds * 1e9:,.1f} ns" if seconds < 10e-9 else f"{seconds * 1e9:,.0f} ns"


def times(numerator: float | None, denominator: float | None) -> str:
    """Write a ratio."""
    if numerator is None or denominator is None:
        return "-"
    ratio = numerator / denominator
    return f"{ratio:,.1f} x" if ratio < 10 else f"{ratio:,.0f} x"


def operations() -> None:
    """Show what one operation costs on each side, and a call beside an empty one."""
    sides = import_module("bench.sides")
    modules = ["codec", "skip", "install", "switch", "guest"]
    members = [vars(import_module(f"bench.bench_{name}")) for name in modules]
    found = {one.name: one for names in members for one in names.values() if isinstance(one, sides.Operation)}
    row = "{:<40}{:>14}{:>14}{:>14}{:>14}{:>14}".format
    show(
        row("", "Rust,", "Python,", "pure", "pure Python", "pure Python"),
        row("one operation", "in a batch", "call by call", "Python", "/ Rust", "/ calls"),
    )
    beside_empty = []
    for one in found.values():
        each = {side: partial(one.run, side) for side in one.sides}
        took = per_operation(each | {"loop": sides.empty_loop})
        rust, python, pure = (took.get(side) for side in (sides.RUST, sides.PYTHON, sides.PURE))
        show(row(one.name, ns(rust), ns(python), ns(pure), times(pure, rust), times(pure, python)))
        if rust is not None:
            FIGURES.append(Figure(f"{one.name}, in Rust", ns(rust), "pure Python", ns(pure), times(pure, rust)))
        FIGURES.append(Figure(f"{one.name}, from Python", ns(python), "pure Python", ns(pure), times(pure, python)))
        if sides.EMPTY in took:
            call, empty = (took[side] - took["loop"] for side in (sides.PYTHON, sides.EMPTY))
            what = f"{one.name}, the call from Python"
            FIGURES.append(Figure(what, ns(call), "an empty one", ns(empty), f"1/{call / empty:.2f}"))
            beside_empty.append(f"  {one.name + ':':<38}{call / empty:>5.2f} x")
    show("", "a call from Python beside an empty one of the same class and signature, without the loop", *beside_empty)


def rows() -> None:
    """Show what an event costs that is a row of an array."""
    bench = import_module("bench.bench_rows")
    show("", "events as rows of an array, nobody has a breakpoint; NumPy sums the same bytes")
    for what in bench.TRAFFIC:
        sides = {side: act for (of, side), act in bench.SIDES.items() if of == what}
        took = {side: seconds / bench.N for side, seconds in fastest(sides, 20).items()}
        rust, plain, floor = took.values()
        million = f"{1e-6 / rust:.0f} million/s"
        ratios = f"pure Python {times(plain, rust)}, the sum 1/{rust / floor:.1f}"
        FIGURES.append(Figure(f"an event of an array: {what}", ns(rust), "pure Python", ns(plain), times(plain, rust)))
        FIGURES.append(
            Figure(f"an event of an array: {what}", ns(rust), "NumPy's sum", ns(floor), f"1/{rust / floor:.1f}")
        )
        show(f"  {what + ':':<38}{ns(rust):>9} {million:>14}  {ratios}")


def scaling() -> None:
    """Show that a task switch costs the same however many tasks there are, and an event however many come after it."""
    bench, switch = import_module("bench.bench_rows"), import_module("bench.bench_switch")
    hosts = {count: switch.RustHost(breakpoints=1, others=count) for count in (10, 1_000, 100_000)}
    took = per_operation({f"{count:,}": partial(switch.there_and_back, host) for count, host in hosts.items()})
    show("", "a task switch and back, a breakpoint set, from Python, by tasks that have none:")
    for count, seconds in took.items():
        show(f"  {count:<38}{ns(seconds):>9}")
        ratio = f"{took['10'] / seconds:.2f} x"
        FIGURES.append(Figure(f"task switch and back, {count} other tasks", ns(seconds), "10", ns(took["10"]), ratio))
    short, long = bench.InRust(bench.MIXED[: bench.N // 100]), bench.InRust(bench.MIXED)
    few, many = fastest({"few": short, "many": long}, 50).values()
    each = [few / (bench.N // 100), many / bench.N]
    show("", f"an event of {bench.N // 100:,}: {ns(each[0])}; of {bench.N:,}: {ns(each[1])}")
    what = f"an event, of {bench.N:,}"
    FIGURES.append(Figure(what, ns(each[1]), f"of {bench.N // 100:,}", ns(each[0]), f"{each[0] / each[1]:.2f} x"))


def replay() -> None:
    """Show how fast the shipped trace is read and replayed."""
    bench = import_module("bench.bench_replay")
    with TemporaryDirectory() as folder:
        plain = Path(folder) / "trace.txt"
        plain.write_bytes(gzip.decompress(Path(bench.shipped_trace()).read_bytes()))
        grep = partial(subprocess.run, ["grep", "-c", "kvm_exit", str(plain)], check=True, capture_output=True)
        took = fastest(bench.SIDES | ({"grep -c, the process with it": grep} if shutil.which("grep") else {}), 20)
    show("", f"the shipped trace: {bench.LINES:,} lines, {bench.EVENTS:,} events; policy {bench.POLICY}")
    for name, seconds in took.items():
        n, what = (bench.EVENTS, "events") if name.startswith(("replay", "debugreg")) else (bench.LINES, "lines")
        show(f"  {name:<38}{seconds * 1e3:>11.1f} ms  {n / seconds / 1e6:>6.2f} million {what}/s")
    pure, read = (took[name] / bench.LINES for name in ("read, pure Python", "read"))
    FIGURES.append(Figure("a line of a trace, read", ns(read), "pure Python", ns(pure), times(pure, read)))
    FIGURES.append(Figure("an event of a trace, replayed", ns(took["replay"] / bench.EVENTS), "", "", ""))


def explore() -> None:
    """Show how fast a policy written in Python is explored, beside the same one in Rust."""
    bench = import_module("bench.bench_check")
    took = fastest(bench.SIDES, 5)
    rust, python = took.values()
    rate = bench.TRANSITIONS / rust / 1e6
    show("", f"exploring the policy skip: {bench.TRANSITIONS:,} transitions, {rate:.2f} million/s")
    show(f"  the same, written in Python:          {python / rust:>5.2f} x the time")
    each = [took / bench.TRANSITIONS for took in (python, rust)]
    what = "a transition of a policy written in Python"
    FIGURES.append(Figure(what, ns(each[0]), "written in Rust", ns(each[1]), f"1/{python / rust:.2f}"))
    verdict = debugreg.check("lean", nmi=True, slots=2, addresses=2, cpus=2, threads=1)
    each = [verdict.seconds / verdict.transitions]
    show(f"exploring lean on two CPUs, one thread: {verdict.transitions:,} transitions, {1e-6 / each[0]:.2f} million/s")
    FIGURES.append(Figure("a transition of lean on two CPUs, one thread", ns(each[0]), "", "", ""))


def beside_spin() -> None:
    """Show how fast the host's part is explored, beside SPIN on the same in Promela; one thread each."""
    spin = import_module("bench.spin")
    if spin.MISSING:
        show("", f"SPIN: needs {' and '.join(spin.MISSING)} (apt-get install spin gcc)")
        return
    scope = {"vcpus": 0, "slots": 4, "counters": 4, "addresses": 2, "events": spin.EVENTS, "symmetry": False}
    with TemporaryDirectory() as folder:
        pan = spin.build(Path(folder), 4, 4, 2)
        found = spin.explore(pan)
        took = fastest(
            {"debugreg": lambda: debugreg.check("linux", threads=1, **scope), "SPIN": lambda: spin.explore(pan)}, 5
        )
    show("", f"exploring the host's part, one thread: {found.states:,} states, {found.transitions - 1:,} transitions")
    for name, seconds in took.items():
        show(f"  {name:<38}{found.transitions / seconds / 1e6:>5.2f} million transitions/s")
    ours, theirs = (seconds / found.transitions for seconds in took.values())
    what = "a transition of the host's part alone, one thread"
    FIGURES.append(Figure(what, ns(ours), "SPIN", ns(theirs), f"1/{ours / theirs:.1f}"))


def start_up() -> None:
    """Show what the package and the command line add to a start of Python."""
    bench = import_module("bench.bench_startup")
    *short, long = ({name: partial(bench.start, name)} for name in bench.COMMANDS)
    took = fastest({name: side for one in short for name, side in one.items()}, STARTS) | fastest(long, STARTS // 4)
    bare, package, used, click, usage, compare = (took[name] * 1e3 for name in bench.COMMANDS)
    show(
        "",
        f"start-up, whole processes; bare Python: {bare:.1f} ms",
        f"  import debugreg:                      {package - bare:>5.1f} ms more",
        f"  import debugreg; debugreg.DR7():      {used - bare:>5.1f} ms more",
        f"  debugreg --help:                      {usage / click:>5.2f} x python -c 'import click' ({click:.1f} ms)",
        f"  debugreg compare:                     {compare / 1e3:>5.2f} s",
    )
    ms = "{:.1f} ms".format
    FIGURES.append(Figure("import debugreg", ms(package), "bare Python", ms(bare), f"{package - bare:.1f} ms more"))
    FIGURES.append(Figure("debugreg --help", ms(usage), "import click", ms(click), f"1/{usage / click:.2f}"))
    FIGURES.append(Figure("debugreg compare", ms(compare), "", "", ""))


PAGE = """# Performance

Both sides in one run, taking turns; the fastest of their rounds. A ratio says how much faster debugreg is than the peer
(`1/n`: slower). On another machine, and on the same one another day, the ratios are more alike than the figures.

{machine}.

| what | debugreg | peer | peer's | ratio |
|---|---:|---|---:|---:|
{rows}

Written by `nox -s bench` (`python bench/report.py --write docs/performance.md`). What is compared with what:
[`bench/pure.py`](../bench/pure.py) is the baseline in plain Python, which `bench/test_pure.py` holds to the same
registers and costs; [`bench/host.pml`](../bench/host.pml) is the host's part in Promela, which has the same states and
transitions (`tests/test_spin.py`). Instructions, which do not depend on how busy a machine is, are counted by
`python tests/test_callgrind.py`, beside a hand-written version.
"""


def write(path: str) -> None:
    """Write the page."""
    rows = "\n".join(f"| {' | '.join(figure)} |" for figure in FIGURES)
    Path(path).write_text(PAGE.format(machine=machine(), rows=rows), encoding="utf-8")


def machine() -> str:
    """Name the machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    cpu = f"{len(names)} x {names[0]}" if names else platform.processor() or platform.machine()
    return f"debugreg {debugreg.__version__}, {platform.python_implementation()} {platform.python_version()}, {cpu}"


def main() -> None:
    """Measure everything."""
    gc.disable()
    sys.path.insert(0, str(Path(__file__).parents[1]))  # The package `bench`; pytest finds it by itself.
    show(f"{machine()}; sides take turns, fastest of {ROUNDS} rounds ({STARTS} processes)", "")
    operations()
    rows()
    scaling()
    replay()
    explore()
    beside_spin()
    start_up()
    if sys.argv[1:2] == ["--write"]:
        write(sys.argv[2])


if __name__ == "__main__":
    main()
