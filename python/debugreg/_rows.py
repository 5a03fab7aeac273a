"""Events as arrays: millions of them in one call."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from debugreg import _core
from debugreg._cost import Cost

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Ran", "RowEvent", "event_dtype", "events", "outcome_dtype", "outcomes", "run_rows"]

BLOCK = 1 << 14
"""Rows that are performed at a time: they fit into a cache, and Ctrl-C is noticed after each block."""

_EVENT = [("event", "u1"), ("detail", "u1"), ("cpu", "<u2"), ("who", "<u4"), ("value", "<u8")]
_OUTCOME = [
    ("outcome", "u1"),
    ("", "V1"),
    ("dr_writes", "<u2"),
    ("dr_reads", "<u2"),
    ("vmcs", "u1"),
    ("vm_exits", "u1"),
    ("value", "<u8"),
]


class Ran(NamedTuple):
    """What came of an array of events."""

    cost: Cost
    """What all of them cost."""
    outcomes: np.ndarray | None
    """Of each, as `outcome_dtype()`: shape (n,); `None` if they were not wanted."""


def _named(names: list[tuple[str, str]]) -> dict[str, RowEvent]:
    found: dict[str, RowEvent] = {}
    for number, (name, line) in enumerate(names):
        found[name] = RowEvent(number)
        found[name].line = line
    return found


@cache
def _events() -> dict[str, RowEvent]:
    return _named(_core.row_names()[0])


@cache
def _outcomes() -> dict[str, RowEvent]:
    return _named(_core.row_names()[1])


@cache
def event_dtype() -> np.dtype[np.void]:
    """Return the layout of an event: 16 bytes.

    `event` is a number of `events()`; `who` the number of a task, a vCPU or a counter, in the order in which the
    machine got them (task 0 is the idle one); `value` an address, or what is written; `detail` what `events()` says.

    Example:
        >>> import debugreg as dr
        >>> dr.event_dtype().names
        ('event', 'detail', 'cpu', 'who', 'value')
    """
    import numpy as np

    return np.dtype(_EVENT)


@cache
def outcome_dtype() -> np.dtype[np.void]:
    """Return the layout of an outcome: 16 bytes, of which `dr_writes` to `vm_exits` are the event's cost.

    Counts stop at what fits: 65,535 MOV DR of one sort, 255 accesses of a VMCS or VMCB and exits.
    """
    import numpy as np

    return np.dtype(_OUTCOME)


class RowEvent(int):
    """The number of an event in a row.

    Attributes:
        line: What a row of it says.
    """

    line: str


def events() -> dict[str, RowEvent]:
    """Return the events that a row can be, by name: their numbers.

    Example:
        >>> import debugreg as dr
        >>> dr.events()["sched_switch"]
        0
        >>> dr.events()["sched_switch"].line
        'CPU `cpu` switches to task `who`, or to none (0)'
    """
    return dict(_events())


def outcomes() -> dict[str, RowEvent]:
    """Return the outcomes that a row can have, likewise.

    Example:
        >>> import debugreg as dr
        >>> dr.outcomes()["hits"].line
        'so many (`value`) heard of the access'
    """
    return dict(_outcomes())


def run_rows(machine: _core.Machine, rows: object, *, outcomes: bool) -> Ran:
    """See `Machine.run`."""
    import numpy as np

    array = np.asarray(rows)
    if array.dtype != event_dtype():
        raise TypeError(f"rows must be of dtype event_dtype() (got {array.dtype})")
    cells = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    size, run = event_dtype().itemsize * BLOCK, _core.RowRun(machine)
    shown = [run.run(cells[at : at + size], outcomes) for at in range(0, len(cells), size)]
    found = np.frombuffer(b"".join(block for block in shown if block), outcome_dtype()) if outcomes else None
    return Ran(Cost(*run.commit()), found)
