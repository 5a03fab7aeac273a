"""What does an event cost that is a row of an array? The peers are pure Python and NumPy's sum over the same bytes.

NumPy reads each byte once and does nothing with it: the floor of whatever looks at an array.
"""

from __future__ import annotations

import numpy as np
import pytest

import debugreg as dr

from . import pure

N = 200_000
K = dr.events()


def rows(*pattern: tuple[int, int, int, int, int]) -> np.ndarray:
    """Repeat rows until there are `N`."""
    return np.resize(np.array(list(pattern), dr.event_dtype()), N)


SKIP = rows((K["sched_switch"], 0, 0, 2, 0), (K["sched_switch"], 0, 0, 1, 0))
GUEST = rows((K["vm_entry"], 0, 0, 0, 0), (K["vm_exit"], 0, 0, 0, 0))
MIXED = rows(
    *[(K["sched_switch"], 0, 0, 2, 0), (K["sched_switch"], 0, 0, 1, 0)] * 2,
    *[(K["vm_entry"], 0, 0, 0, 0), (K["vm_exit"], 0, 0, 0, 0)] * 3,
)


class InRust:
    """Two tasks, one of which has a vCPU, and nobody has a breakpoint."""

    def __init__(self, events: np.ndarray) -> None:
        """Set up a machine."""
        self.machine, self.events = dr.Machine(), events
        one = self.machine.task("one")
        self.machine.task("other")
        self.machine.vcpu("v", task=one)

    def __call__(self) -> None:
        """Perform them."""
        self.machine.run(self.events, outcomes=False)


class InPython:
    """The same, as a loop over the rows."""

    def __init__(self, events: np.ndarray) -> None:
        """Set up a machine."""
        cpu = pure.Cpu()
        tasks = [None, pure.Task(cpu), pure.Task(cpu)]
        vcpus = [pure.Vcpu(tasks[1])]
        cpu.sched_switch(tasks[1])
        self.acts = [
            lambda who: cpu.sched_switch(tasks[who]),
            lambda who: vcpus[who].vm_entry(),
            lambda who: vcpus[who].vm_exit(),
        ]
        assert [K[name] for name in ("sched_switch", "vm_entry", "vm_exit")] == [0, 1, 2]
        self.events = events[["event", "who"]].tolist()

    def __call__(self) -> None:
        """Perform them."""
        acts = self.acts
        for event, who in self.events:
            acts[event](who)


TRAFFIC = {"nothing but skips": SKIP, "entries and exits": GUEST, "both": MIXED}
SIDES = {
    (what, side): make(events)
    for what, events in TRAFFIC.items()
    for side, make in {
        "rows": InRust,
        "pure Python": InPython,
        "numpy.sum": lambda events: lambda: events.view(np.uint64).sum(),
    }.items()
}


@pytest.mark.parametrize(("what", "side"), SIDES)
def test_rows(benchmark, what, side):
    """All rows, once."""
    benchmark.group = f"{N:,} rows: {what}"
    benchmark(SIDES[what, side])
