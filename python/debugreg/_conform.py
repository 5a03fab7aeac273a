"""Model and kernel side by side: a corpus of scenarios and random ones, performed in both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from debugreg import _core
from debugreg._jobs import each
from debugreg._paths import several
from debugreg._scenario import read_text
from debugreg._world import raise_trouble
from debugreg.errors import Interrupted

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

    from debugreg._paths import Paths

__all__ = ["Conformance", "WorldDifference", "conform"]


@dataclass(frozen=True, slots=True)
class WorldDifference:
    """A scenario, as short as it could be made, in which model and kernel differ."""

    scenario: str
    """Each of its lines expects what the model says."""
    line: int
    """The line that differs."""
    expected: str
    """What the model says of it."""
    observed: str
    """What the kernel did."""


@dataclass(frozen=True, slots=True)
class Conformance:
    """What came of a comparison. True if nothing differs."""

    world: str
    scenarios: int
    """How many scenarios were performed in both worlds."""
    steps: int
    """How many of their lines could be observed."""
    moves: int
    """How many MOV to and from debug registers were compared, each with its value: an emulated machine shows them."""
    differences: tuple[WorldDifference, ...]
    disturbed: tuple[str, ...]
    """Scenarios that differed once and not again: somebody disturbed the machine."""

    def __bool__(self) -> bool:
        """Return whether nothing differs."""
        return not self.differences

    def joined(self, other: Conformance) -> Conformance:
        """Return both together."""
        return Conformance(
            self.world,
            self.scenarios + other.scenarios,
            self.steps + other.steps,
            self.moves + other.moves,
            self.differences + other.differences,
            self.disturbed + other.disturbed,
        )

    def to_dict(self) -> dict[str, object]:
        """Return plain data, as `--json` prints it."""
        return {
            "world": self.world,
            "scenarios": self.scenarios,
            "steps": self.steps,
            "moves": self.moves,
            "differences": [
                {"scenario": d.scenario, "line": d.line, "expected": d.expected, "observed": d.observed}
                for d in self.differences
            ],
            "disturbed": list(self.disturbed),
        }


def conform(
    files: Paths = (),
    *,
    count: int = 0,
    seed: int = 1,
    hazardous: bool = False,
    guests: bool = False,
    world: Literal["kernel", "vm"] = "kernel",
    kernel: Literal["6.12", "6.1"] = "6.12",
    progress: Callable[[int, int], None] | None = None,
    tell: Callable[[str], None] | None = None,
    executor: Executor | None = None,
) -> Conformance:
    """Compare the model with the kernel that is running, or with a Debian kernel under QEMU's emulation.

    Args:
        files: Scenarios; those that are about another kernel are left out.
        count: How many random scenarios come after them.
        seed: What the random ones are determined by.
        hazardous: Whether to perform what can harm the host.
        guests: Whether most of the random ones have guests, which need /dev/kvm.
        world: Which kernel: the one that is running, or an emulated one, whose registers are compared as well.
        kernel: Which one is emulated.
        progress: Called now and then with the number of scenarios done, and of differences.
        tell: Called with a line about what takes long, as fetching QEMU and a kernel; without it nothing is fetched.
        executor: Where emulated machines are started, one for every `SHARE` scenarios; default: one, here. Nothing is
            fetched there. The kernel that is running has its registers once, and is asked from here alone.

    Returns:
        What differs, each in the shortest scenario that was found.

    Raises:
        ScenarioError: A file has a mistake.
        OSError: A file cannot be read.
        ValueError: A count or a seed that is no 64-bit unsigned integer.
        WorldError: This machine or this user cannot have the world, or no guests in it.

    Example:
        >>> conform(count=200, seed=1)  # doctest: +SKIP
        Conformance(world='kernel', scenarios=200, steps=4715, moves=0, differences=(), disturbed=())
    """
    for name, value in (("count", count), ("seed", seed)):
        if not 0 <= value < 1 << 64:
            msg = f"{name} must be a 64-bit unsigned integer (got {value})"
            raise ValueError(msg)
    paths = several(files)
    texts: list[str] = []
    for path in paths:
        texts.append(read_text(Path(path)))
        # The first mistake is said with its file.
        _, mistake = _core.scenario_declares(texts[-1])
        if mistake is not None:
            raise_trouble(("scenario", *mistake), path)
    if executor is not None:
        if world != "vm":
            raise ValueError("an executor is for world='vm': the kernel that is running has its registers once")
        return _shared(_Work(tuple(texts), seed, hazardous, guests, kernel), count, executor, progress)
    if world == "vm":
        from debugreg._vm.machine import Machine

        with Machine(kernel, tell) as machine:
            policy = machine.kernel.policy
            result, trouble = _core.vm_conform(texts, count, seed, hazardous, guests, progress, policy, machine.perform)
    else:
        result, trouble = _core.kernel_conform(texts, count, seed, hazardous, guests, progress)
    if result is None:
        raise_trouble(trouble)
    scenarios, steps, moves, differences, disturbed = result
    told = tuple(WorldDifference(*one) for one in differences)
    return Conformance(world, scenarios, steps, moves, told, tuple(disturbed))


SHARE = 100
"""Scenarios for each emulated machine that an executor starts."""


class _Work(NamedTuple):
    """Scenarios to compare, and the seed from which the random ones were made."""

    texts: tuple[str, ...]
    seed: int
    hazardous: bool
    guests: bool
    kernel: Literal["6.12", "6.1"]


def _compare(work: _Work) -> Conformance:
    from debugreg._vm.machine import Machine

    with Machine(work.kernel, None) as machine:
        policy, perform = machine.kernel.policy, machine.perform
        result, trouble = _core.vm_conform([*work.texts], 0, 0, work.hazardous, work.guests, None, policy, perform)
    if result is None:
        raise_trouble(trouble)
    scenarios, steps, moves, differences, disturbed = result
    return Conformance("vm", scenarios, steps, moves, tuple(WorldDifference(*d) for d in differences), tuple(disturbed))


def _shared(work: _Work, count: int, executor: Executor, progress: Callable[[int, int], None] | None) -> Conformance:
    seeds = [(work.seed << 32) + at & (1 << 64) - 1 for at in range(count)]
    # As `debugreg_oracle::conform` has them.
    random = [_core.random_scenario(seed, guests=work.guests and seed % 4 != 0) for seed in seeds]
    texts = [*work.texts, *random]
    shares = [work._replace(texts=tuple(texts[at : at + SHARE])) for at in range(0, len(texts), SHARE)]
    total = Conformance("vm", 0, 0, 0, (), ())
    try:
        for part in each(_compare, shares, executor):
            total = total.joined(part)
            if progress is not None:
                progress(total.scenarios, len(total.differences))
    except KeyboardInterrupt as interrupt:
        raise Interrupted(total) from interrupt
    return total
