"""`debugreg run`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import click

from debugreg import _cli
from debugreg._scenario import run as run_scenarios

if TYPE_CHECKING:
    from rich.text import Text

    from debugreg._scenario import ScenarioReport, StepReport


@_cli.command(example="debugreg run scenarios/mail/*.scn --steps")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@_cli.policy_option("Under which policy; may be given several times. Default: the file's own, else linux.")
@_cli.vendor_option
@click.option(
    "--on",
    "world",
    type=click.Choice(["model", "kernel", "vm"]),
    default="model",
    show_default=True,
    help="In which world: in the model, on the kernel that is running (needs root), or on one under QEMU.",
)
@_cli.kernel_option
@click.option("--hazardous", is_flag=True, help="Perform on a real kernel what can harm it.")
@click.option("--steps", is_flag=True, help="List the steps that each event takes, as @N numbers them.")
def run(
    *,
    files: tuple[str, ...],
    policy: tuple[str, ...],
    vendor: Literal["intel", "amd"] | None,
    steps: bool,
    world: Literal["model", "kernel", "vm"],
    kernel: Literal["6.12", "6.1"] | None,
    hazardous: bool,
    as_json: bool,
) -> int:
    """Run scenarios, each line against its expectation.

    Exit code 0 if all hold, 1 if an expectation fails, 2 if a file has a mistake, 3 if the world is not available.
    """
    if world == "kernel" and (policy or vendor or steps):
        raise click.UsageError("--on kernel: the running kernel has one policy and one vendor, and shows no steps")
    if world == "vm" and (policy or vendor):
        raise click.UsageError("--on vm: the emulated kernel has one policy and one vendor")
    if world != "vm" and kernel:
        raise click.UsageError("--kernel: it is the world vm that has a choice of kernels")
    reports = run_scenarios(
        files,
        policies=policy,
        vendor=vendor,
        steps=steps,
        world=world,
        hazardous=hazardous,
        kernel=kernel or "6.12",
        tell=_cli.tell,
    )
    if as_json:
        _cli.print_json([report.to_dict(with_steps=steps) for report in reports])
    else:
        _show(reports, with_steps=steps)
    return 0 if all(reports) else 1


_WHERE = {"kernel": "on the kernel that is running", "vm": "on the emulated machine"}


def _show(reports: list[ScenarioReport], *, with_steps: bool) -> None:
    from rich.markup import escape

    console = _cli.console()
    for report in reports:
        failed = [step for step in report.steps if step.ok is False]
        for text in _body(report, with_steps=with_steps):
            console.print(text, soft_wrap=True)
        checked = sum(step.ok is not None for step in report.steps)
        verdict = (
            "[green]holds[/]" if report else "[red]does not hold[/]" if checked else "[yellow]cannot be observed[/]"
        )
        if report.world != "model":
            unobserved = sum(step.unobserved is not None for step in report.steps)
            console.print(
                f"[bold]{escape(report.file)}[/] {verdict} {_WHERE[report.world]}: "
                f"{checked - len(failed)} of {checked} expectations; {unobserved} lines unobserved",
                soft_wrap=True,
            )
            continue
        cost = report.cost
        console.print(
            f"[bold]{escape(report.file)}[/] {verdict} under {report.policy} on {report.vendor}: "
            f"{checked - len(failed)} of {checked} expectations; "
            f"{cost.dr_writes} writes, {cost.dr_reads} reads, {cost.vmcs} vmcs, {cost.vm_exits} exits, "
            f"{cost.skips} skips",
            soft_wrap=True,
        )


def _body(report: ScenarioReport, *, with_steps: bool) -> list[Text]:
    from rich.text import Text

    texts: list[Text] = []
    for step in report.steps:
        if with_steps or step.ok is False or not report.ok:
            texts.append(_line(step))
        if with_steps:
            texts += [Text(f"             {taken}", style="dim") for taken in step.trace]
    return texts


def _line(step: StepReport) -> Text:
    from rich.text import Text

    mark, style = {True: ("ok  ", "green"), False: ("FAIL", "bold red"), None: ("    ", "")}[step.ok]
    text = Text(f"{step.line:5} ")
    text.append(mark, style)
    text.append(f"  {step.event:<58} ")
    if step.unobserved is not None:
        text.append(f"=> unobserved: {step.unobserved}", "dim")
    elif step.ok is False:
        text.append(f"=> {step.observed}", "red")
        # A law may be broken where nothing was expected.
        if step.expected is not None:
            text.append(f"   expected {step.expected}")
    else:
        text.append(f"=> {step.observed}", "dim" if step.ok is None else "")
    if step.refusal is not None:
        text.append(f"\n             {step.refusal}", "dim")
    return text
