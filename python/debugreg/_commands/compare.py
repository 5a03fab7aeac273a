"""`debugreg compare`: the page that people see first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

import click

from debugreg import _cli
from debugreg._compare import compare as compare_policies
from debugreg._cost import WEIGHT
from debugreg._jobs import workers
from debugreg.errors import Interrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import RenderableType
    from rich.table import Table

    from debugreg._check import Kept
    from debugreg._compare import Comparison
    from debugreg._cost import Cost
    from debugreg._replay import Observed, Replay

ABREAST = 8
"""So many policies stand side by side on a page of a hundred columns."""

_QUESTIONS = {
    "skip-free": "does it do anything when nothing is set?",
    "way-out": "does it touch the hardware on the way out to a guest without breakpoints?",
    "entry-quiet": "can a host breakpoint fire inside the entry itself?",
    "guest-armed": "does the guest run with anything but its own breakpoints?",
    "host-armed": "does the host run with anything but its own breakpoints?",
}
"""Asked so that "no" is what the mail wanted."""


@_cli.command(example="debugreg compare --policy skip --policy linux")
@click.argument("traces", nargs=-1, metavar="[TRACE]...")
@_cli.policy_option("Which policies; may be given several times. Default: all that have names.")
@_cli.vendor_option
@_cli.jobs_option
@click.option(
    "--weight",
    type=click.IntRange(min=0),
    default=WEIGHT,
    show_default=True,
    help="How many debug-register accesses a VM exit counts for.",
)
@click.option(
    "--laws/--no-laws", default=True, show_default=True, help="Judge every law for each policy, exhaustively."
)
def compare(
    *,
    traces: tuple[str, ...],
    policy: tuple[str, ...],
    vendor: Literal["intel", "amd"] | None,
    jobs: int,
    weight: int,
    laws: bool,
    as_json: bool,
) -> int:
    """Compare policies: what each costs on a real trace, and which laws it keeps.

    Without a trace: the one that ships with the package, recorded on a stock Debian kernel with kvm-amd.
    """
    comparisons: list[Comparison] = []
    code = 0
    try:
        with _cli.progress("comparing") as tell, workers(jobs) as executor:
            for trace in traces or (None,):
                one = compare_policies(
                    trace, policies=policy, vendor=vendor, weight=weight, laws=laws, progress=tell, executor=executor
                )
                comparisons.append(one)
    except Interrupted as interrupt:
        comparisons.append(cast("Comparison", interrupt.so_far))
        code = 130
    if as_json:
        documents = [comparison.to_dict() for comparison in comparisons]
        _cli.print_json(documents[0] if len(documents) == 1 else documents)
        return code
    console = _cli.console()
    for comparison in comparisons:
        for part in _page(comparison):
            console.print(part)
    if code:
        console.print("interrupted: this is what was known by then")
    return code


def _page(comparison: Comparison) -> list[RenderableType]:
    from rich.markup import escape
    from rich.padding import Padding

    events = max((replay.events for replay in comparison.replays), default=0)
    cheapest = comparison.cheapest
    head = (
        f"\n[bold]{escape(comparison.trace.rpartition('/')[2])}[/]: {comparison.rows:,} rows, {events:,} events, "
        f"{len(comparison.replays)} policies\n"
        f"[dim]cost = writes + reads of debug registers + {comparison.weight} x VM exits that the policy caused; "
        f">= a lower bound, - not expressible there"
    )
    blocks = [comparison.replays[at : at + ABREAST] for at in range(0, len(comparison.replays), ABREAST)]
    parts: list[RenderableType] = [head]
    parts += [_costs(comparison, block) for block in blocks]
    parts += [_manners(block) for block in blocks]
    kept = [comparison.kept[at : at + ABREAST] for at in range(0, len(comparison.kept), ABREAST)]
    parts += [_laws(*pair) for pair in zip(blocks, kept, strict=False)]
    safe = "keep every law" if comparison.kept else "keep host and guest apart and enter quietly"
    notes = [f"[bold]{cheapest.policy}[/] is the cheapest of those that {safe}."] if cheapest else []
    notes += [note for replay in comparison.replays for note in _not_expressible(replay)]
    parts += [Padding("\n".join(notes), (0, 0, 1, 0))] if notes else []
    return parts


def _not_expressible(replay: Replay) -> list[str]:
    """Say what a policy's kernel does not have, each reason once."""
    first: dict[str, int] = {}
    many: dict[str, int] = {}
    for line, reason in replay.not_expressible:
        first.setdefault(reason, line)
        many[reason] = many.get(reason, 0) + 1
    name = f"[bold]{replay.policy}[/]"
    return [
        f"{name}: line {first[reason]}: {reason}"
        if count == 1
        else f"{name}: {count:,} lines, the first {first[reason]}: {reason}"
        for reason, count in many.items()
    ]


def _table(replays: Sequence[Replay], title: str, first: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left", title_style="bold")
    table.add_column(first, min_width=20, max_width=26, overflow="fold")
    for replay in replays:
        # A long name breaks after its dashes.
        name = replay.policy.replace("-", "-\n").replace("+", "\n+")
        table.add_column(name, justify="right", vertical="bottom", overflow="fold")
    return table


def _costs(comparison: Comparison, replays: Sequence[Replay]) -> Table:
    from rich.markup import escape

    table = _table(replays, "What it costs", "phase of the trace")
    weighted: Callable[[Cost], int] = lambda cost: cost.weighted(comparison.weight)  # noqa: E731 - one use
    # A phase in which no policy does anything is left out; which is the cheapest is asked of all.
    everybody = zip(*(replay.phases for replay in comparison.replays), strict=True)
    for row, of_all in zip(zip(*(replay.phases for replay in replays), strict=True), everybody, strict=True):
        if not any(weighted(phase.cost) or phase.cost.skips for phase in of_all):
            continue
        least = min((weighted(phase.cost) for phase in of_all if not phase.partial), default=None)
        costs = [None if phase.partial else weighted(phase.cost) for phase in row]
        table.add_row(escape(row[0].name), *(_cost(cost, least) for cost in costs))
    table.add_section()
    totals = [weighted(replay.cost) for replay in replays]
    table.add_row("[bold]total", *(_total(replay, total) for replay, total in zip(replays, totals, strict=True)))
    ratios = ((replay, comparison.ratio(replay)) for replay in replays)
    table.add_row(
        "[bold]against the cheapest", *("-" if r is None else f"[bold]{_bound(replay)}{r:.2f}" for replay, r in ratios)
    )
    table.add_row("[dim]of it exits", *(f"[dim]{replay.cost.vm_exits:,}" for replay in replays))
    table.add_row("[dim]hooks skipped", *(f"[dim]{replay.cost.skips:,}" for replay in replays))
    return table


def _cost(cost: int | None, least: int | None) -> str:
    if cost is None:
        return "-"
    return f"[green]{_short(cost)}" if cost == least else _short(cost)


def _short(number: int) -> str:
    """Return a number that leaves room for seven more beside it."""
    return f"{number:,}" if number < 1_000_000 else f"{number / 1e6:,.1f} M"


def _bound(replay: Replay) -> str:
    return ">=" if replay.lower_bound or replay.not_expressible else ""


def _total(replay: Replay, total: int) -> str:
    return f"[bold]{_bound(replay)}{_short(total)}"


def _laws(replays: Sequence[Replay], kept: Sequence[Kept]) -> Table:
    from debugreg._check import laws

    table = _table(replays, "Which laws it keeps: 1 CPU, 2 tasks, 1 vCPU, 1 slot, an NMI before any step", "")
    said = {True: "[green]keeps", False: "[red]breaks", None: "[dim]not seen"}
    for law in laws():
        table.add_row(law.name, *(said[one.keeps(law.name)] for one in kept))
    return table


def _manners(replays: Sequence[Replay]) -> Table:
    table = _table(replays, "What the mail asked: how often in this replay", "")
    for law, question in _QUESTIONS.items():
        answers = [_answer(replay.law(law)) for replay in replays]
        table.add_row(question, *answers)
    return table


def _answer(observed: Observed) -> str:
    if not observed.occasions:
        return "[dim]never asked"
    if not observed.failures:
        return "[green]no"
    return f"[red]{max(observed.failures / observed.occasions, 0.01):.0%}"
