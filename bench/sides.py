"""What a benchmark is made of: one operation, done by several sides, by each many times in one call.

A call of pytest-benchmark's costs 50 ns itself, and a call of a method of a few nanoseconds cannot be timed alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import repeat
from operator import sub
from typing import TYPE_CHECKING, TypeAlias

import pytest

import debugreg as dr
from debugreg import _core

from . import pure

if TYPE_CHECKING:
    from collections.abc import Callable

RUST = "Rust, in a batch"
PYTHON = "Python, call by call"
EMPTY = "empty, call by call"
PURE = "pure Python"

Cost: TypeAlias = "tuple[int, ...]"
"""Writes, reads, VMCS or VMCB, exits, skips."""

Side: TypeAlias = "Callable[[int], Cost | None]"
"""Does the operation so many times and returns what that has cost; `None` if there is nothing to count."""


@dataclass(frozen=True)
class Operation:
    """Something that takes less than a few microseconds."""

    name: str
    cost: Cost
    """What it costs to do it once, on every side."""
    sides: dict[str, Side]
    n: int = 10_000
    """How often each side does it in a round, here; enough for a microsecond more or less not to count."""

    def run(self, side: str, n: int) -> None:
        """Do it so many times, and see that it has cost what it should."""
        cost = self.sides[side](n)
        assert cost is None or cost == tuple(n * once for once in self.cost)

    def measure(self, benchmark, side: str) -> None:
        """Measure a side; a group of pytest-benchmark's table is an operation."""
        benchmark.group = f"{self.name} (x {self.n:,})"
        benchmark.extra_info["n"] = self.n
        benchmark(self.run, side, self.n)
        if benchmark.stats is not None:
            benchmark.extra_info["seconds_per_operation"] = benchmark.stats.stats.min / self.n


def each_side(*operations: Operation) -> pytest.MarkDecorator:
    """Parametrise a test with every side of every operation."""
    rows = [pytest.param(one, side, id=f"{one.name}: {side}") for one in operations for side in one.sides]
    return pytest.mark.parametrize(("operation", "side"), rows)


def batch(what: str) -> Side:
    """Return Rust's side: one call does all."""
    return lambda n: _core.batch(what, n)


class RustHost:
    """A machine of one CPU with two tasks, of which the first has a guest, runs, and has breakpoints; with handles."""

    def __init__(self, *, breakpoints: int, others: int = 0) -> None:
        """Open the breakpoints; so many others have none."""
        self.machine = dr.Machine()
        self.cpu = self.machine.cpus[0]
        self.one, self.other = (self.machine.task(name) for name in ("one", "other"))
        self.vcpu = self.machine.vcpu("v0", task=self.one)
        self.counters = [
            self.one.perf_event_open(bp_type="w", bp_addr=0x1000 + 8 * at, bp_len=8) for at in range(breakpoints)
        ]
        for number in range(others):
            self.machine.task(f"t{number}")

    @property
    def cost(self) -> Cost:
        """What everything has cost so far."""
        return self.machine._cost


class PureHost:
    """The same in plain Python, with the same names."""

    def __init__(self, *, breakpoints: int) -> None:
        """Open the breakpoints."""
        self.cpu = pure.Cpu()
        self.one, self.other = pure.Task(self.cpu), pure.Task(self.cpu)
        self.vcpu = pure.Vcpu(self.one)
        self.counters = [
            self.one.perf_event_open(pure.Breakpoint(0x1000 + 8 * at, "w", 8)) for at in range(breakpoints)
        ]

    @property
    def cost(self) -> Cost:
        """What everything has cost so far."""
        return self.cpu.cost


Host: TypeAlias = RustHost | PureHost


def counted(loop: Callable[[Host, int], object], host: Host) -> Side:
    """Return the side that runs a loop on a host: the same loop for both kinds."""

    def side(n: int) -> Cost:
        before = host.cost
        loop(host, n)
        return tuple(map(sub, host.cost, before))

    return side


def uncounted(loop: Callable[[Host, int], object], host: Host) -> Side:
    """Return the side that runs a loop of calls that do nothing."""

    def side(n: int) -> None:
        loop(host, n)

    return side


def empty_loop(n: int) -> None:
    """Do nothing so many times: what is in every loop of Python's."""
    for _ in repeat(None, n):
        pass
