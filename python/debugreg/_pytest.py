"""Scenarios as tests: `pytest scenarios/` collects `*.scn`, each a test for each policy.

pytest scenarios/ --debugreg-policy linux --debugreg-policy lean
pytest scenarios/ --debugreg-world vm
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from _pytest._code.code import ExceptionInfo, TerminalRepr

    from debugreg._scenario import ScenarioReport

WORLDS = ("model", "kernel", "vm")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Take the options."""
    group = parser.getgroup("debugreg", "scenarios of debugreg (*.scn)")
    text = "Under which policy, several times if there are several. Default: those of the file, else linux."
    group.addoption("--debugreg-policy", action="append", default=[], metavar="NAME", help=text)
    text = "Where: in the model, on the kernel that is running, or on one under QEMU."
    group.addoption("--debugreg-world", choices=WORLDS, default="model", help=text)
    group.addoption("--debugreg-vendor", choices=("intel", "amd"), help="Whose virtualisation.")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse what cannot be."""
    if config.option.debugreg_world == "model":
        return
    for name in ("policy", "vendor"):
        if config.getoption(f"debugreg_{name}"):
            msg = f"--debugreg-{name}: a kernel is what it is (--debugreg-world {config.option.debugreg_world})"
            raise pytest.UsageError(msg)


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Collect scenarios."""
    if file_path.suffix != ".scn":
        return None
    return _File.from_parent(parent, path=file_path)  # pyright: ignore[reportUnknownMemberType] - pytest's own


class _FailedError(Exception):
    """A scenario's expectations do not hold."""

    def __init__(self, report: ScenarioReport) -> None:
        super().__init__(report)
        self.report = report


class _File(pytest.File):
    """A scenario: a test for each policy."""

    def collect(self) -> Iterator[pytest.Item]:
        option = self.config.option
        for policy in option.debugreg_policy or [None]:
            name = policy or option.debugreg_world
            item = _Scenario.from_parent(self, name=name, policy=policy)  # pyright: ignore[reportUnknownMemberType]
            yield cast("pytest.Item", item)


class _Scenario(pytest.Item):
    """A scenario under a policy, or in a world."""

    def __init__(self, *, policy: str | None, **rest: Any) -> None:  # noqa: ANN401 - pytest's own
        super().__init__(**rest)  # pyright: ignore[reportUnknownMemberType]
        self.policy = policy

    def runtest(self) -> None:
        import debugreg

        try:
            reports = self._reports()
        except debugreg.WorldError as error:
            pytest.skip(str(error))
        for report in reports:
            if any(step.ok is False for step in report.steps):
                raise _FailedError(report)
        if all(step.ok is None for report in reports for step in report.steps):
            pytest.skip("no line expects anything that can be observed here")

    def _reports(self) -> list[ScenarioReport]:
        import debugreg

        option = self.config.option
        if option.debugreg_world == "vm":
            return self._in_vm()
        policies = [self.policy] if self.policy else ()
        return debugreg.run(self.path, policies=policies, vendor=option.debugreg_vendor, world=option.debugreg_world)

    def _in_vm(self) -> list[ScenarioReport]:
        """Run everything that was collected in one machine, the first time that somebody asks."""
        import debugreg

        found: dict[str, list[ScenarioReport]] | None = self.config.stash.get(_FOUND, None)
        if found is None:
            found = {}
            self.config.stash[_FOUND] = found
            paths = [str(item.path) for item in self.session.items if isinstance(item, _Scenario)]
            try:
                for report in debugreg.run(paths, world="vm"):
                    found.setdefault(report.file, []).append(report)
            except debugreg.ScenarioError:
                found.clear()
        path = str(self.path)
        # Where one has a mistake, each has a machine of its own, and says it itself.
        return found.get(path) or debugreg.run(path, world="vm")

    def repr_failure(self, excinfo: ExceptionInfo[BaseException], style: Any = None) -> str | TerminalRepr:  # noqa: ANN401
        """Show the scenario's own lines, those that differ with what they came to."""
        import debugreg

        error = excinfo.value
        if isinstance(error, (debugreg.DebugregError, OSError, ValueError)):
            return str(error)
        if not isinstance(error, _FailedError):
            return super().repr_failure(excinfo, style)
        failed = {step.line: step for step in error.report.steps if step.ok is False}
        lines = self.path.read_text(encoding="utf-8").splitlines()
        shown: list[str] = []
        for number, line in enumerate(lines[: max(failed)], start=1):
            shown.append(f"{'>' if number in failed else ' '} {number:4} {line}")
            if number in failed:
                step = failed[number]
                shown.append(f"E      expected {step.expected}, and it came to {step.observed}")
                shown += [f"E      {step.refusal}"] if step.refusal else []
        return "\n".join([f"under {error.report.policy} on {error.report.vendor}:", *shown])

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, f"{self.path.name}[{self.name}]"


_FOUND: pytest.StashKey[dict[str, list[ScenarioReport]]] = pytest.StashKey()
