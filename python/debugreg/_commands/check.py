"""`debugreg check`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

import click

from debugreg import _cli
from debugreg._check import MEMORY, Scope, Verdict, event_kinds, sweep
from debugreg._check import check as check_policy
from debugreg._check import laws as all_laws
from debugreg._jobs import workers
from debugreg.errors import Interrupted

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

_NUMBERS = {
    "cpus": "CPUs.",
    "tasks": "Tasks, the idle one apart.",
    "vcpus": "vCPUs; the thread of each is one of the tasks.",
    "slots": "Registers that host breakpoints may use, and that a guest uses.",
    "addresses": "Addresses that are watched and accessed.",
    "counters": "Breakpoints that the host has at once.",
}
_SWITCHES = {
    "nmi": "An NMI strikes before any step.",
    "kgdb": "An NMI has kgdb set and clear breakpoints, before any step.",
    "announce": "An NMI has kgdb announce a slot and give it back, before any step.",
    "races": "Events of other CPUs come before any step.",
    "fred": "Events are delivered by FRED.",
    "disabled-match": "DR6 shows the bits of slots that match and are not enabled.",
    "kgdb-early": "kgdb writes the registers itself.",
}


def _scope_options(function: Callable[..., int]) -> Callable[..., int]:
    for name, text in reversed(_SWITCHES.items()):
        function = click.option(f"--{name}", is_flag=True, help=text)(function)
    for name, text in reversed(_NUMBERS.items()):
        default = getattr(Scope(), name)
        function = click.option(f"--{name}", type=int, default=default, show_default=True, help=text)(function)
    return function


@_cli.command(example="debugreg check --policy lean --nmi")
@_cli.policy_option("Which policies; may be given several times. Default: linux.")
@_cli.vendor_option
@_cli.jobs_option
@_scope_options
@click.option(
    "--events", default="", metavar="KINDS", help="What happens: NAME,...; +NAME,...: besides; ?: lists them."
)
@click.option("--law", "laws", multiple=True, metavar="NAME", help="Which laws; may come several times. Default: all.")
@click.option("--except", "excepted", multiple=True, metavar="NAME", help="A law that is not judged.")
@click.option("--walks", type=click.IntRange(min=1), help="Walk at random so many times instead of seeing everything.")
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), default=1, show_default=True, help="What walks depend on.")
@click.option("--threads", type=click.IntRange(0, 256), default=0, help="How many; default: one for each core.")
@click.option(
    "--memory", type=click.FloatRange(0), default=MEMORY / 2**30, show_default=True, help="GiB that it may take."
)
def check(
    *,
    policy: tuple[str, ...],
    vendor: Literal["intel", "amd"] | None,
    jobs: int,
    events: str,
    laws: tuple[str, ...],
    excepted: tuple[str, ...],
    walks: int | None,
    seed: int,
    threads: int,
    memory: float,
    as_json: bool,
    **scope: Any,  # noqa: ANN401 - the options of `_scope_options`, which are the fields of a scope
) -> int:
    """Explore a policy: safe within a scope, or the shortest scenario that breaks a law.

    Every state that it can get into, every event in each, with an NMI before every step if asked for. What breaks a
    law is printed as a scenario, which `debugreg run` shows step by step.

    Exit code 0 if it is safe, 1 if not, 2 for a mistake, 4 if it would have taken more memory, or has only walked.
    """
    if events == "?":
        return _list_events(as_json=as_json)
    laws = _without(laws, excepted)
    verdicts: list[Verdict] = []
    interrupted = False
    try:
        with _cli.progress("exploring") as tell, workers(jobs) as executor:
            names, within, limit = policy or ("linux",), Scope(events=events, **scope), int(memory * 2**30)
            options: dict[str, Any] = {"vendor": vendor or "amd", "laws": laws, "memory": limit, "executor": executor}
            if executor is not None and walks is None:
                verdicts += sweep(
                    names, [within], progress=lambda done, _: tell("policies", done, len(names)), **options
                )
            for name in names if not verdicts else ():
                told = partial(_tell, tell, name)
                one = check_policy(name, within, walks=walks, seed=seed, threads=threads, progress=told, **options)
                verdicts.append(one)
    except Interrupted as interrupt:
        so_far = interrupt.so_far
        verdicts += so_far if isinstance(so_far, list) else [cast("Verdict", so_far)] if so_far is not None else []
        interrupted = True
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if as_json:
        _cli.print_json([verdict.to_dict() for verdict in verdicts])
    else:
        console = _cli.console()
        for verdict in verdicts:
            _show(console, verdict)
    if interrupted:
        return 130
    return max(1 if verdict.ok is False else 4 if verdict.ok is None else 0 for verdict in verdicts)


def _without(names: tuple[str, ...], excepted: tuple[str, ...]) -> tuple[str, ...]:
    """Return the laws that are judged."""
    known = [law.name for law in all_laws()]
    for name in excepted:
        if name not in known:
            msg = f"--except: there is no law {name!r}: allowed are {', '.join(known)}"
            raise click.UsageError(msg)
    left = tuple(name for name in names or known if name not in excepted)
    if not left:
        raise click.UsageError("--except: no law is left")
    return left if excepted else names


def _tell(tell: Callable[[str, int, int | None], None], policy: str, *now: int) -> None:
    states, queue, transitions, depth = now
    tell(f"{policy}: {transitions:,} transitions, depth {depth}, {queue:,} states wait", states, None)


_STOPPED = {
    "asked": "[yellow]interrupted[/]",
    "memory": "[yellow]stopped: it would have taken more memory (--memory)[/]",
    "walked": "[yellow]nothing found[/] in random walks",
}


def _show(console: Console, verdict: Verdict) -> None:
    from rich.text import Text

    name = f"[bold]{verdict.policy}[/] on {verdict.vendor}"
    counts = f"{verdict.states:,} states, {verdict.transitions:,} transitions, depth {verdict.depth}"
    counts += f", {verdict.seconds:.1f} s"
    if verdict.violation:
        console.print(f"{name} breaks [bold red]{verdict.violation.law}[/] ({counts}):", soft_wrap=True)
        console.print(Text(verdict.violation.why, "red"), soft_wrap=True)
        console.print()
        console.print(Text(verdict.violation.scenario.rstrip()), soft_wrap=True)
    elif verdict.stopped:
        console.print(f"{name}: {_STOPPED[verdict.stopped]} ({counts})", soft_wrap=True)
    elif verdict.ok:
        console.print(f"{name} is [green]safe[/] within this scope ({counts})", soft_wrap=True)
    else:
        never = ", ".join(verdict.never)
        console.print(f"{name}: [yellow]not safe[/], for these never happened: {never} ({counts})", soft_wrap=True)


def _list_events(*, as_json: bool) -> int:
    if as_json:
        _cli.print_json([{"name": n, "usual": usual, "line": line} for n, usual, line in event_kinds()])
        return 0
    console = _cli.console()
    for name, usual, line in event_kinds():
        console.print(f"{'*' if usual else ' '} {name:<15} {line}", soft_wrap=True)
    console.print("* the usual ones", style="dim")
    return 0
