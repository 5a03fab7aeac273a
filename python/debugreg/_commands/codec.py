"""`debugreg encode` and `debugreg decode`."""

from __future__ import annotations

from typing import get_args

import click

from debugreg import _cli
from debugreg._codec import DR6, DR7, Enable, Length, Type, encode_dr7


class _Value(click.ParamType[int]):
    """A register as one types it."""

    name = "value"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value)
        try:
            return int(DR7(int(text, 0)))
        except ValueError:
            shown = text if len(text) <= 40 else f"{text[:40]}..."
            self.fail(f"{shown!r} is not a number from 0 to 0xffffffffffffffff, decimal or 0x.", param, ctx)


# A negative number is a wrong value, not an unknown option.
@_cli.command(example="debugreg decode 0xd0402", ignore_unknown_options=True)
@click.argument("value", type=_Value())
@click.option("--dr6", "is_dr6", is_flag=True, help="VALUE is a DR6, not a DR7.")
def decode(value: int, *, is_dr6: bool, as_json: bool) -> None:
    """Show what the bits of VALUE say: a DR7, or with --dr6 a DR6."""
    _show(DR6(value) if is_dr6 else DR7(value), as_json=as_json)


@_cli.command(example="debugreg encode --slot 0 --type w --len 8")
@click.option("--slot", type=int, required=True, metavar="N", help="Which slot to arm: 0 to 3.")
@click.option("--type", type=click.Choice(get_args(Type)), required=True, help="Which accesses to watch.")
@click.option(
    "--len", type=click.Choice(get_args(Length)), default=1, show_default=True, help="How many bytes to watch."
)
@click.option(
    "--enable", type=click.Choice(get_args(Enable)), default="global", show_default=True, help="Which bits to set."
)
def encode(*, slot: int, type: Type, len: Length, enable: Enable, as_json: bool) -> None:
    """Show the DR7 that arms one slot, and what Linux's encode_dr7 gives for it."""
    try:
        value = DR7().arm(slot, type, len, enable)
    except ValueError as error:
        raise click.UsageError(str(error), click.get_current_context()) from error
    _show(value, as_json=as_json)
    if not as_json and enable == "global":
        click.echo(f"\nLinux's encode_dr7 gives {encode_dr7(slot, len=len, type=type):#010x}: with GE, without bit 10.")


def _show(value: DR6 | DR7, *, as_json: bool) -> None:
    if as_json:
        _cli.print_json(_document(value))
    else:
        from debugreg._bits import drawing

        _cli.console().print(drawing(value))


def _document(value: DR6 | DR7) -> dict[str, object]:
    """Return the register as plain data.

    `slots` has four entries: for DR7 `None` or what is armed there, for DR6 whether the slot's condition was met.
    """
    slots = [s and s._asdict() for s in value] if isinstance(value, DR7) else [n in value.hits for n in range(4)]
    return {"value": int(value), "slots": slots, "flags": value.flags, "reserved": list(value.reserved)}
