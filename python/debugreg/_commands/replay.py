"""`debugreg replay`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

import click

from debugreg import _cli
from debugreg._replay import DEFAULT_POLICY
from debugreg._replay import replay as replay_traces
from debugreg.errors import Interrupted

if TYPE_CHECKING:
    from rich.console import RenderableType

    from debugreg._replay import Replay, Verification

_SHOWN = 10
"""How many differences a page shows; `--json` has them all."""


@_cli.command(example="debugreg replay trace.txt.gz --verify")
@click.argument("traces", nargs=-1, required=True, metavar="TRACE...")
@_cli.policy_option(f"Under which policy; may be given several times. Default: {DEFAULT_POLICY}.")
@_cli.vendor_option
@click.option(
    "--verify",
    is_flag=True,
    help="Predict from the input lines alone what the kernel did, and compare with the trace's truth lines and, "
    "where NAME.steps.gz lies beside it, with every MOV DR and its value.",
)
def replay(
    *,
    traces: tuple[str, ...],
    policy: tuple[str, ...],
    vendor: Literal["intel", "amd"] | None,
    verify: bool,
    as_json: bool,
) -> int:
    """Replay traces: what each policy would have cost on them.

    Exit code 0; 1 if --verify finds a difference; 2 if a trace cannot be read.
    """
    code = None
    try:
        replays = _replay(traces, policy, vendor, verify=verify)
    except Interrupted as interrupt:
        replays, code = cast("list[Replay]", interrupt.so_far), 130
    if as_json:
        _cli.print_json([one.to_dict() for one in replays])
    else:
        console = _cli.console()
        for one in replays:
            for part in _page(one):
                console.print(part, soft_wrap=isinstance(part, str))
    if code is not None:
        return code
    return 0 if all(one.verify is None or one.verify for one in replays) else 1


def _replay(
    traces: tuple[str, ...], policy: tuple[str, ...], vendor: Literal["intel", "amd"] | None, *, verify: bool
) -> list[Replay]:
    with _cli.progress("replaying") as tell:
        return replay_traces(
            traces,
            policies=policy or (DEFAULT_POLICY,),
            vendor=vendor,
            verify=verify,
            progress=lambda rows: tell("", rows, None),
        )


def _page(one: Replay) -> list[RenderableType]:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("phase", overflow="fold")
    for heading in ("writes", "reads", "vmcs", "exits", "skips"):
        table.add_column(heading, justify="right")
    for phase in one.phases:
        table.add_row(escape(phase.name) + (" (part)" if phase.partial else ""), *_numbers(phase.cost.to_dict()))
    table.add_section()
    table.add_row("[bold]total", *_numbers(one.cost.to_dict(), ">= " if one.lower_bound else ""))
    parts: list[RenderableType] = [
        f"[bold]{escape(one.trace)}[/] under [bold]{one.policy}[/] on {one.vendor}: {one.events:,} events",
        table,
    ]
    parts += [f"line {line}: not expressible: {reason}" for line, reason in one.not_expressible]
    parts += [f"line {line}: undetermined: {reason}" for line, reason in one.undetermined[:_SHOWN]]
    if one.verify is not None:
        parts += _verification(one.verify)
    return parts


def _numbers(counts: dict[str, int], prefix: str = "") -> list[str]:
    return [f"{prefix}{count:,}" if count else "0" for count in counts.values()]


def _verification(verify: Verification) -> list[RenderableType]:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="predicted, against what the kernel did")
    table.add_column("")
    for heading in ("predicted", "observed", "agree", ""):
        table.add_column(heading, justify="right")
    for name, score in verify.scores:
        rate = f"{score.matched / score.observed:.2%}" if score.observed else "-"
        style = "green" if score.exact else "red"
        table.add_row(
            name, f"{score.predicted:,}", f"{score.observed:,}", f"[{style}]{score.matched:,}", f"[{style}]{rate}"
        )
    parts: list[RenderableType] = [table]
    shown = [
        f"line {d.line}, cpu{d.cpu}: predicted {d.predicted}; the kernel: {d.observed}"
        for d in verify.differences[:_SHOWN]
    ]
    if shown:
        parts.append(f"[red]first difference[/] at {shown[0]}")
        parts += shown[1:]
        more = len(verify.differences) - len(shown)
        parts += [f"and {more:,} more (--json lists them)"] if more else []
    elif verify.step is None:
        parts.append("[green]nothing differs[/]; without a steps file the single MOV DR were not compared")
    else:
        parts.append("[green]nothing differs")
    return parts
