"""The ratios that the README claims: `python bench/report.py`, half a minute.

pytest-benchmark measures one side after the other. A ratio is worth more if the sides take turns, so that what slows
the machine slows both; the fastest round of each counts, because whatever else the machine does only adds.
"""

from __future__ import annotations

import gc
import platform
import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING

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
        if sides.EMPTY in took:
            call, empty = (took[side] - took["loop"] for side in (sides.PYTHON, sides.EMPTY))
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
        show(f"  {what + ':':<38}{ns(rust):>9} {million:>14}  {ratios}")


def replay() -> None:
    """Show how fast the shipped trace is read and replayed."""
    bench = import_module("bench.bench_replay")
    took = fastest(bench.SIDES, 20)
    show("", f"the shipped trace: {bench.LINES:,} lines, {bench.EVENTS:,} events; policy {bench.POLICY}")
    for name, seconds in took.items():
        n, what = (bench.LINES, "lines") if name.startswith("read") else (bench.EVENTS, "events")
        show(f"  {name:<38}{seconds * 1e3:>11.1f} ms  {n / seconds / 1e6:>6.2f} million {what}/s")


def explore() -> None:
    """Show how fast a policy written in Python is explored, beside the same one in Rust."""
    bench = import_module("bench.bench_check")
    took = fastest(bench.SIDES, 5)
    rust, python = took.values()
    rate = bench.TRANSITIONS / rust / 1e6
    show("", f"exploring the policy skip: {bench.TRANSITIONS:,} transitions, {rate:.2f} million/s")
    show(f"  the same, written in Python:          {python / rust:>5.2f} x the time")


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
    replay()
    explore()
    beside_spin()
    start_up()


if __name__ == "__main__":
    main()
