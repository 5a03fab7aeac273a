"""`debugreg plan`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from debugreg import _cli
from debugreg._plan import Range
from debugreg._plan import plan as plans_for

if TYPE_CHECKING:
    from debugreg._plan import Plan


class _Range(click.ParamType[Range]):
    """A range as one types it."""

    name = "range"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Range:
        try:
            return Range.parse(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@_cli.command(example="debugreg plan 0x1003+5 0x2000+2:rw 0x401000:x")
@click.argument("ranges", nargs=-1, required=True, type=_Range(), metavar="RANGE...")
@click.option(
    "--slots", type=click.IntRange(1), default=4, show_default=True, metavar="N", help="How many slots there are."
)
def plan(ranges: tuple[Range, ...], *, slots: int, as_json: bool) -> int:
    """Find the fewest slots that watch some bytes, and what would be watched too many.

    A RANGE is ADDRESS+LENGTH, FIRST-LAST or ADDRESS, with :w (writes; also without it), :rw (reads and writes) or :x
    (execution). A slot watches 1, 2, 4 or 8 bytes, aligned to their number; where several do better, each is shown.

    Exit code 0 if it can be done with the slots that there are, 1 if not.
    """
    try:
        found = plans_for(ranges)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    chosen = found.within(slots)
    if as_json:
        _cli.print_json(found.to_dict() | {"chosen": None if chosen is None else chosen.to_dict()})
        return 0 if chosen else 1
    for one in found.plans:
        mark = "*" if one is chosen else " "
        click.echo(f"{mark} {_slots(one)}, {_price(one)}")
        for block in one.blocks:
            click.echo(f"      {block}")
    click.echo(f"  GDB takes {_slots(found.gdb)}, each range by itself and nothing widened")
    if chosen is None:
        click.echo(f"not possible: {_slots(found.fewest)} at least, and there are {slots}")
    return 0 if chosen else 1


def _slots(plan: Plan) -> str:
    return f"{plan.slots} slot" + "s" * (plan.slots != 1)


def _price(plan: Plan) -> str:
    if not plan.too_many:
        return "exactly what is wanted"
    return f"{plan.too_many} too many: reads or writes of a byte that trap and should not"
