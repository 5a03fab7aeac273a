"""Model and kernel side by side: a corpus of scenarios and random ones, performed in both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

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
    progress: Callable[[int, int], None] | None = None,
) -> Conformance:
    """Compare the model with the kernel that is running.

    Args:
        files: Scenarios; those that are about another kernel are left out.
        count: How many random scenarios come after them.
        seed: What the random ones are determined by.
        hazardous: Whether to perform what can harm the host.
        guests: Whether most of the random ones have guests (on /dev/kvm).
        progress: Called now and then with the number of scenarios done, and of differences.

    Returns:
        What differs, each in the shortest scenario that was found.

    Raises:
        ScenarioError: A file has a mistake.
        OSError: A file cannot be read.
        ValueError: A count or a seed that is no 64-bit unsigned integer.
        WorldError: This machine or this user cannot have the world, or no guests in it.

    Example:
        >>> conform(count=200, seed=1)  # doctest: +SKIP
        Conformance(world='kernel', scenarios=200, steps=4715, differences=(), disturbed=())
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
    result, trouble = _core.kernel_conform(texts, count, seed, hazardous, guests, progress)
    if result is None:
        raise_trouble(trouble)
    scenarios, steps, differences, disturbed = result
    return Conformance(
        "kernel", scenarios, steps, tuple(WorldDifference(*one) for one in differences), tuple(disturbed)
    )
