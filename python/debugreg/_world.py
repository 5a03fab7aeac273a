"""The worlds `kernel` and `vm`: scenarios performed on the kernel that is running, and on an emulated machine's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from debugreg import _core
from debugreg._cost import Cost
from debugreg._scenario import ScenarioReport, StepReport, mistake_in, read_text
from debugreg.errors import WorldError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["raise_trouble", "run_in_vm", "run_on_kernel"]


def run_on_kernel(files: Sequence[str], *, hazardous: bool) -> list[ScenarioReport]:
    """Run scenarios on the kernel that is running.

    Nothing of them is left behind: no process, no event, no slot.

    Raises:
        ScenarioError: A file has a mistake.
        OSError: A file cannot be read.
        WorldError: This machine or this user cannot have the world.
    """
    world = _core.KernelWorld()
    reports: list[ScenarioReport] = []
    try:
        for file in files:
            result, trouble = world.run(read_text(Path(file)), hazardous)
            if result is None:
                raise_trouble(trouble, file)
            ok, lines = result
            steps = tuple(
                StepReport(line, event, expected, observed, held, None, (), unobserved)
                for line, event, expected, observed, held, unobserved in lines
            )
            reports.append(ScenarioReport(file, "linux", _vendor(), ok, steps, Cost(0, 0, 0, 0, 0), "kernel"))
    finally:
        world.close()
    return reports


def run_in_vm(
    files: Sequence[str], *, hazardous: bool, kernel: str, tell: Callable[[str], None] | None
) -> list[ScenarioReport]:
    """Run scenarios on a Debian kernel under emulation. The steps of a line are its MOV to and from debug registers.

    Raises:
        ScenarioError: A file has a mistake.
        OSError: A file cannot be read.
        WorldError: Something is missing that cannot be fetched, or the machine ended by itself.
    """
    from debugreg._vm.machine import Machine

    texts = [read_text(Path(file)) for file in files]
    for file, text in zip(files, texts, strict=True):
        # A mistake is said before anything is started.
        _, mistake = _core.scenario_declares(text)
        if mistake is not None:
            raise_trouble(("scenario", *mistake), file)
    reports: list[ScenarioReport] = []
    with Machine(kernel, tell) as machine:
        policy = machine.kernel.policy
        for file, text in zip(files, texts, strict=True):
            result, trouble = _core.vm_run(text, hazardous, policy, machine.perform)
            if result is None:
                raise_trouble(trouble, file)
            ok, lines = result
            steps = tuple(
                StepReport(line, event, expected, observed, held, None, tuple(moves), unobserved)
                for line, event, expected, observed, held, unobserved, moves in lines
            )
            reports.append(ScenarioReport(file, policy, "amd", ok, steps, Cost(0, 0, 0, 0, 0), "vm"))
    return reports


def raise_trouble(trouble: tuple[str, int, int, str] | None, file: str = "") -> NoReturn:
    """Raise what the extension module says went wrong."""
    kind, line, column, message = trouble or ("broken", 0, 0, "the world broke down")
    if kind == "scenario":
        raise mistake_in(file, (line, column, message))
    raise WorldError(message, path=file or None if kind == "broken" else None)


def _vendor() -> str:
    """Return whose CPU this is."""
    try:
        return "intel" if "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8") else "amd"
    except OSError:
        return "amd"
