"""Model and kernel side by side: a corpus of scenarios and random ones, performed in both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from debugreg import _core
from debugreg._paths import several
from debugreg._scenario import read_text
from debugreg._world import raise_trouble

if TYPE_CHECKING:
    from collections.abc import Callable

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
