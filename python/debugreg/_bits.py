"""A register's bits, drawn."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from debugreg import _core
from debugreg._codec import DR6, DR7, bit_ranges

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["drawing"]

_SLOT_STYLES = ("cyan", "green", "magenta", "yellow")
_TYPES = {"x": "execution", "w": "data writes", "rw": "data reads and writes", "io": "I/O ports"}
_EVENTS = {
    "bus_lock": "BLD: a bus lock (active low)",
    "bd": "BD: a debug register was about to be accessed under DR7.GD",
    "bs": "BS: a single step",
    "bt": "BT: a task switch",
    "rtm": "RTM: inside a transactional region (active low)",
}


def drawing(value: DR6 | DR7) -> RenderableType:
    """Return the bits in rows of sixteen, under them what they mean."""
    is_dr7 = isinstance(value, DR7)
    layout = _core.dr7_layout() if is_dr7 else _core.dr6_layout()
    names = {bit: name for name, mask in layout for bit in range(64) if mask >> bit & 1}
    tops = (63, 47, 31, 15) if value >> 32 else (31, 15)
    rows = [_row(value, range(top, top - 16, -1), names) for top in tops]
    title = Text.assemble(("DR7" if is_dr7 else "DR6", "bold"), f" {value:#010x}")
    return Group(title, "", *rows, "", _slots(value) if isinstance(value, DR7) else _events(value), *_reserved(value))


def _row(value: DR6 | DR7, bits: range, names: dict[int, str]) -> RenderableType:
    cells = Table(box=box.SQUARE, show_header=False, padding=0, border_style="dim")
    contents: list[Text] = []
    labels: list[Text] = []
    for name, group in groupby(bits, names.__getitem__):
        run = list(group)
        cells.add_column(justify="center", width=4 * len(run) - 1)
        contents.append(Text(" ").join(_bit(value, bit, name) for bit in run))
        if name in "01":
            labels.append(Text(f"always {name}" if len(run) > 2 else f"={name}", "dim"))
        else:
            labels.append(Text(name, _style(name)))
    cells.add_row(*contents)
    cells.add_row(*labels)
    return Group(Text(" " + " ".join(f"{bit:>2} " for bit in bits), "dim"), cells)


def _bit(value: DR6 | DR7, bit: int, name: str) -> Text:
    digit = value >> bit & 1
    if bit in value.reserved:
        return Text(f" {digit}!", "bold red")
    return Text(f" {digit} ", f"bold {_style(name)}" if digit and name not in "01" else "dim")


def _style(name: str) -> str:
    return _SLOT_STYLES[int(name[-1])] if name[-1].isdigit() else "default"


def _slots(dr7: DR7) -> Table:
    table = Table.grid(padding=(0, 2))
    for n, (enable, kind, length) in enumerate(_core.dr7_fields(dr7)):
        watches = (kind, "1 byte" if length == 1 else f"{length} bytes", _TYPES[kind])
        if dr7[n]:
            table.add_row(Text(f"slot {n}", _SLOT_STYLES[n]), enable, *watches)
        else:
            # What an earlier breakpoint left behind in R/W and LEN; zero says nothing.
            left = dr7 != dr7.disarm(n)
            table.add_row(f"slot {n}", "not armed", *(watches if left else ()), style="dim")
    table.add_row("flags", ", ".join(name.upper() for name, is_set in dr7.flags.items() if is_set) or "none")
    return table


def _events(dr6: DR6) -> Table:
    table = Table.grid(padding=(0, 2))
    for n in range(4):
        table.add_row(_yes(n in dr6.hits), Text(f"B{n}: the condition of slot {n} was met", _SLOT_STYLES[n]))
    for name, happened in dr6.flags.items():
        table.add_row(_yes(happened), _EVENTS[name])
    return table


def _yes(happened: bool) -> Text:  # noqa: FBT001 - it is the one thing that is shown
    return Text("yes", "bold") if happened else Text("no", "dim")


def _reserved(value: DR6 | DR7) -> list[RenderableType]:
    if not value.reserved:
        return []
    return [Text(f"! not as the hardware fixes them: bits {bit_ranges(value.reserved)}", "bold red")]
