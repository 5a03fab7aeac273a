"""`debugreg replay`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

import click

from debugreg import _cli
from debugreg._jobs import workers
from debugreg._replay import DEFAULT_POLICY
from debugreg._replay import replay as replay_traces
from debugreg.errors import Interrupted

if TYPE_CHECKING:
    from rich.console import RenderableType

    from debugreg._replay import Replay, Verification

_ROWS = {"guest_at_sync": "guest's registers at sync", "guest_at_entry": "loaded at entry"}
_SHOWN = 10
"""How many differences a page shows; `--json` has them all."""


@_cli.command(example="debugreg replay trace.txt.gz --verify")
@click.argument("traces", nargs=-1, required=True, metavar="TRACE...")
@_cli.policy_option(f"Under which policy; may be given several times. Default: {DEFAULT_POLICY}.")
@_cli.vendor_option
@_cli.jobs_option
@click.option(
    "--verify",
    is_flag=True,
    help="Predict from the input lines alone what the kernel did, and compare with the trace's truth lines and, "
    "where NAME.steps.gz lies beside it, with every MOV DR and its value, and with the guest's registers as they were "
    "read back and loaded. What the trace does not determine is counted "
    "apart.",
)
def replay(
    *,
    traces: tuple[str, ...],
    policy: tuple[str, ...],
    vendor: Literal["intel", "amd"] | None,
    jobs: int,
    verify: bool,
    as_json: bool,
) -> int:
    """Replay traces: what each policy would have cost on them.

    Exit code 0; 1 if --verify finds a difference; 2 if a trace cannot be read.
    """
    code = None
    try:
        replays = _replay(traces, policy, vendor, jobs, verify=verify)
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
    traces: tuple[str, ...],
    policy: tuple[str, ...],
    vendor: Literal["intel", "amd"] | None,
    jobs: int,
    *,
    verify: bool,
) -> list[Replay]:
    with _cli.progress("replaying") as tell, workers(jobs) as executor:
        return replay_traces(
            traces,
            policies=policy or (DEFAULT_POLICY,),
            vendor=vendor,
            verify=verify,
            progress=lambda rows: tell("", rows, None),
            executor=executor,
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
    if one.verify is not None:
        parts += _verification(one, one.verify)
    return parts + _undetermined(one)


def _undetermined(one: Replay) -> list[RenderableType]:
    """Say what the trace does not determine: each reason once, with its lines."""
    lines: dict[str, list[int]] = {}
    for line, reason in one.undetermined:
        lines.setdefault(reason, []).append(line)
    reasons = sorted(lines.items(), key=lambda item: (-len(item[1]), item[1]))
    parts: list[RenderableType] = [f"undetermined{_places(at)}: {reason}" for reason, at in reasons[:_SHOWN]]
    if len(lines) > _SHOWN:
        parts.append(f"and for {len(lines) - _SHOWN:,} more reasons")
    if any(len(at) > 1 for at in lines.values()) or len(lines) > _SHOWN:
        parts.append("(--json lists each line)")
    return parts


def _places(lines: list[int]) -> str:
    if lines == [0]:
        return ""
    return f", line {lines[0]}" if len(lines) == 1 else f", {len(lines):,} lines from {lines[0]} to {lines[-1]}"


def _numbers(counts: dict[str, int], prefix: str = "") -> list[str]:
    return [f"{prefix}{count:,}" if count else "0" for count in counts.values()]


def _verification(one: Replay, verify: Verification) -> list[RenderableType]:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="predicted, against what the kernel did")
    table.add_column("")
    headings = ["predicted", "observed", "agree", ""]
    # A column of zeros says nothing.
    partly = any(score.undetermined for _, score in verify.scores)
    for heading in [*headings, "undetermined"] if partly else headings:
        table.add_column(heading, justify="right")
    for name, score in verify.scores:
        rate = f"{score.matched / score.observed:.2%}" if score.observed else "-"
        style = "green" if score.exact else "red"
        cells = [
            _ROWS.get(name, name),
            f"{score.predicted:,}",
            f"{score.observed:,}",
            f"[{style}]{score.matched:,}",
            f"[{style}]{rate}",
        ]
        table.add_row(*cells, *[f"{score.undetermined:,}"] * partly)
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
    elif verify.step is not None:
        parts.append("[green]nothing differs")
    elif any(line == 0 for line, _ in one.undetermined):
        parts.append("[green]nothing differs[/]; the single MOV DR were not compared")
    else:
        parts.append("[green]nothing differs[/]; without a steps file the single MOV DR were not compared")
    return parts
