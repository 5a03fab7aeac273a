"""Scenarios: files of the language, run under policies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from debugreg import _core
from debugreg._cost import Cost
from debugreg._paths import several
from debugreg._policies import audit, load_declared, resolve
from debugreg.errors import ScenarioError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from debugreg._paths import Paths
    from debugreg._policy import Policy

__all__ = ["ScenarioReport", "StepReport", "run"]


@dataclass(frozen=True, slots=True)
class StepReport:
    """What came of one line."""

    line: int
    """Its number in the file."""
    event: str
    """The event, as the language writes it."""
    expected: str | None
    """What it should come to, if the line says."""
    observed: str | None
    """What it came to; `None` if the world cannot observe it."""
    ok: bool | None
    """Whether that is what was expected; `None` without an expectation, or an observation."""
    refusal: str | None
    """Why the kernel refused, and who holds the slots."""
    trace: tuple[str, ...]
    """The steps that it took, numbered, if they were asked for."""
    unobserved: str | None = None
    """Why the world cannot observe it."""


@dataclass(frozen=True, slots=True)
class ScenarioReport:
    """What came of a file under a policy. True if no expectation failed, and one held."""

    file: str
    policy: str
    vendor: str
    ok: bool
    steps: tuple[StepReport, ...]
    cost: Cost
    world: str = "model"

    def __bool__(self) -> bool:
        """Return `ok`."""
        return self.ok

    def to_dict(self, *, with_steps: bool = False) -> dict[str, object]:
        """Return plain data, as `--json` prints it."""
        steps: list[dict[str, object]] = []
        for step in self.steps:
            entry: dict[str, object] = {
                "line": step.line,
                "event": step.event,
                "expected": step.expected,
                "observed": step.observed,
                "ok": step.ok,
            }
            if step.refusal is not None:
                entry["refusal"] = step.refusal
            if step.unobserved is not None:
                entry["unobserved"] = step.unobserved
            if with_steps:
                entry["trace"] = list(step.trace)
            steps.append(entry)
        return {
            "file": self.file,
            "policy": self.policy,
            "vendor": self.vendor,
            "world": self.world,
            "ok": self.ok,
            "steps": steps,
            "cost": self.cost.to_dict(),
        }


def run(
    files: Paths,
    *,
    policies: Sequence[str | type[Policy]] = (),
    vendor: Literal["intel", "amd"] | None = None,
    steps: bool = False,
    world: Literal["model", "kernel", "vm"] = "model",
    hazardous: bool = False,
    kernel: Literal["6.12", "6.1"] = "6.12",
    tell: Callable[[str], None] | None = None,
) -> list[ScenarioReport]:
    """Run scenarios, each under each policy.

    Args:
        files: A file, or several.
        policies: Under which; default: those of the file's `machine` line, else `linux`.
        vendor: Whose virtualisation; default: the `machine` line's, else AMD.
        steps: Whether to list the steps of each event.
        world: Where: in the model; on the kernel that is running, which has one policy and shows no steps; or on a
            Debian kernel under QEMU's emulation, which has one policy and shows each MOV to and from a debug register.
        hazardous: Whether to perform on a real kernel what can harm it.
        kernel: Which kernel is emulated.
        tell: Called with a line about what takes long, as fetching QEMU and a kernel; without it nothing is fetched.

    Returns:
        A report for each file and policy, in that order.

    Raises:
        ScenarioError: A file has a mistake; nothing of it was run.
        OSError: A file cannot be read.
        ValueError: A policy that there is not.
        WorldError: The world is not available.
    """
    if world == "kernel":
        from debugreg._world import run_on_kernel

        if policies or vendor or steps:
            raise ValueError("the running kernel has one policy and one vendor, and shows no steps")
        return run_on_kernel(several(files), hazardous=hazardous)
    if world == "vm":
        from debugreg._world import run_in_vm

        if policies or vendor:
            raise ValueError("the emulated kernel has one policy and one vendor")
        return run_in_vm(several(files), hazardous=hazardous, kernel=kernel, tell=tell)
    names = [resolve(policy) for policy in policies]
    reports: list[ScenarioReport] = []
    for file in several(files):
        text = read_text(Path(file))
        declared, mistake = _core.scenario_declares(text)
        if declared is None:
            raise mistake_in(file, mistake)
        own, own_vendor = declared
        for policy in names or own or ["linux"]:
            result, mistake = _core.scenario_run(text, policy, vendor, steps)
            if result is None:
                raise mistake_in(file, mistake)
            ok, lines, cost = result
            told = tuple(StepReport(*line[:6], tuple(line[6])) for line in lines)
            reports.append(
                ScenarioReport(file, _core.policy_name(policy), vendor or own_vendor or "amd", ok, told, Cost(*cost))
            )
    audit(*{report.policy for report in reports})
    return reports


def read_text(path: Path) -> str:
    """Return the text of a scenario; a byte that is no UTF-8 is a mistake in it. Policies that it names are loaded."""
    content = path.read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        column = len(content[content.rfind(b"\n", 0, error.start) + 1 : error.start].decode("utf-8")) + 1
        message = f"found the byte {content[error.start]:#04x}, allowed is text in UTF-8"
        raise ScenarioError(message, path=str(path), line=line, column=column) from None
    load_declared(text)
    return text


def mistake_in(file: str, mistake: tuple[int, int, str] | None) -> ScenarioError:
    """Return the error for a mistake in a file."""
    line, column, message = mistake or (1, 1, "the scenario cannot be read")
    # Line 0 is the file as a whole.
    return ScenarioError(message, path=file, line=line or None, column=column or None)
