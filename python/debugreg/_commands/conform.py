"""`debugreg conform`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import click

from debugreg import _cli
from debugreg._conform import conform as conform_worlds
from debugreg._jobs import workers

if TYPE_CHECKING:
    from debugreg._conform import Conformance


@_cli.command(example="debugreg conform --on kernel --count 1000 scenarios/host/*.scn")
@click.argument("files", nargs=-1, metavar="[FILE]...")
@click.option(
    "--on",
    "world",
    type=click.Choice(["kernel", "vm"]),
    default="kernel",
    show_default=True,
    help="With which world to compare: the kernel that is running (needs root), or one under QEMU.",
)
@_cli.kernel_option
@_cli.jobs_option
@click.option("--count", type=click.IntRange(0, 2**64 - 1), default=100, show_default=True, help="Random scenarios.")
@click.option(
    "--seed", type=click.IntRange(0, 2**64 - 1), default=1, show_default=True, help="What they are determined by."
)
@click.option("--guests", is_flag=True, help="Random scenarios with guests (on /dev/kvm), most of them.")
@click.option("--hazardous", is_flag=True, help="Perform what can harm the host, too.")
def conform(
    *,
    files: tuple[str, ...],
    world: Literal["kernel", "vm"],
    kernel: Literal["6.12", "6.1"] | None,
    jobs: int,
    count: int,
    seed: int,
    guests: bool,
    hazardous: bool,
    as_json: bool,
) -> int:
    """Compare the model with a kernel.

    Performs scenarios, and then random ones, in the model and in that world. A difference is made as short as it can
    be, and printed as a scenario.

    Exit code 0 if nothing differs, 1 if something does, 2 if a file has a mistake, 3 if the world is not available.
    """
    if world != "vm" and kernel:
        raise click.UsageError("--kernel: it is the world vm that has a choice of kernels")
    if world != "vm" and jobs > 1:
        raise click.UsageError(
            "--jobs: the kernel that is running has its registers once; the world vm can be had often"
        )
    with _cli.progress(f"comparing with the {world}") as tell, workers(jobs) as executor:
        total = len(files) + count
        result = conform_worlds(
            files,
            count=count,
            seed=seed,
            hazardous=hazardous,
            guests=guests,
            world=world,
            kernel=kernel or "6.12",
            tell=_cli.tell,
            progress=lambda done, differences: tell(f"({differences} differences)", done, total),
            executor=executor,
        )
    if as_json:
        _cli.print_json(result.to_dict())
    else:
        _show(result)
    return 0 if result else 1


def _show(result: Conformance) -> None:
    from rich.text import Text

    console = _cli.console()
    for one in result.differences:
        for number, line in enumerate(one.scenario.splitlines(), start=1):
            if number == one.line:
                # What the model says stands there, unless it is about the registers.
                expected = "" if line.endswith(f"=> {one.expected}") else f"expected: {one.expected}; "
                text = f"{line}   # {expected}observed: {one.observed}"
                console.print(Text(text, style="bold red"), soft_wrap=True)
            else:
                console.print(Text(line), soft_wrap=True)
        console.print()
    for text in result.disturbed:
        title = text.partition("\n")[0].lstrip("# ")
        console.print(Text(f"differed once and not again, somebody disturbed the machine: {title}", style="dim"))
    many = len(result.differences)
    verdict = f"[red]{many} difference{'s' if many != 1 else ''}" if many else "[green]no difference"
    moves = f", {result.moves:,} accesses to debug registers" if result.moves else ""
    console.print(f"{result.scenarios:,} scenarios, {result.steps:,} lines{moves} observed: {verdict}")
