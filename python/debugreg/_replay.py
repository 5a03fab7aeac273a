"""Traces: what each policy would have cost, and whether the model says what the kernel did."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from debugreg import _core
from debugreg._cost import Cost
from debugreg._jobs import each
from debugreg._paths import several
from debugreg._policies import audit, resolve
from debugreg.errors import Interrupted, TraceError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor

    from debugreg._paths import Paths
    from debugreg._policy import Policy

__all__ = ["Difference", "Observed", "Phase", "Replay", "Score", "Verification", "read_trace", "replay"]

DEFAULT_POLICY = "debian-6.12"
"""What a trace is replayed under when nobody says which kernel it is of."""


OF_STEPS = ("step", "guest_at_sync", "guest_at_entry")
"""The scores that take a steps file."""


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a trace, between two `phase NAME` marks."""

    name: str
    """`'start'` before the first mark."""
    cost: Cost
    partial: bool
    """Whether something in it is not expressible under the policy, and is left out of the cost."""


@dataclass(frozen=True, slots=True)
class Observed:
    """How often a law was put to the test in a replay, and how often it was broken."""

    law: str
    occasions: int
    failures: int
    first: int | None
    """The line of the trace at which it was broken first."""


@dataclass(frozen=True, slots=True)
class Score:
    """How many the model predicted, how many there were, how many agree in window and order."""

    predicted: int
    observed: int
    matched: int
    undetermined: int = 0
    """How many there were besides, of which the trace does not determine whether and what they are."""

    @property
    def exact(self) -> bool:
        """Everything agrees."""
        return self.predicted == self.observed == self.matched


@dataclass(frozen=True, slots=True)
class Difference:
    """Where the model and the kernel part."""

    line: int
    """The input line that opened the window; 0 before the first."""
    cpu: int
    predicted: str
    observed: str


@dataclass(frozen=True, slots=True)
class Verification:
    """The model's word against the kernel's. True if nothing differs."""

    install: Score
    uninstall: Score
    restore: Score
    sync: Score
    step: Score | None
    """Every MOV DR; `None` without a steps file."""
    guest_at_sync: Score | None
    """A guest's own DR0-DR3 and DR7, a register each, against what KVM read back; `None` without a steps file."""
    guest_at_entry: Score | None
    """A guest's DR0-DR3, or its debugger's, against what KVM loaded at entries; `None` without a steps file."""
    differences: tuple[Difference, ...]

    def __bool__(self) -> bool:
        """Return whether nothing differs."""
        return all(score.exact for _, score in self.scores)

    @property
    def scores(self) -> list[tuple[str, Score]]:
        """The scores by name."""
        named = [
            ("install", self.install),
            ("uninstall", self.uninstall),
            ("restore", self.restore),
            ("sync", self.sync),
            ("step", self.step),
            ("guest_at_sync", self.guest_at_sync),
            ("guest_at_entry", self.guest_at_entry),
        ]
        return [(name, score) for name, score in named if score is not None]


@dataclass(frozen=True, slots=True)
class Replay:
    """A trace under a policy."""

    trace: str
    policy: str
    vendor: str
    events: int
    cost: Cost
    phases: tuple[Phase, ...]
    lower_bound: bool
    """The policy would have trapped accesses that the trace cannot show: the cost is at least this."""
    not_expressible: tuple[tuple[int, str], ...]
    """Lines that the policy's kernel has no word for, and why."""
    observed: tuple[Observed, ...]
    undetermined: tuple[tuple[int, str], ...]
    """Lines whose effect the trace does not determine, and why."""
    verify: Verification | None

    def law(self, name: str) -> Observed:
        """Return what was seen of a law."""
        return next(observed for observed in self.observed if observed.law == name)

    @property
    def apart(self) -> bool:
        """Whether host and guest were kept apart: after every event, armed was what is owed."""
        return not (self.law("host-armed").failures or self.law("guest-armed").failures)

    def to_dict(self) -> dict[str, object]:
        """Return plain data, as `--json` prints it."""
        verify: dict[str, object] | None = None
        if self.verify is not None:
            verify = {name: _score(score) for name, score in self.verify.scores}
            verify |= {name: None for name in OF_STEPS if name not in verify}
            verify["undetermined"] = [{"line": line, "reason": reason} for line, reason in self.undetermined]
            verify["undetermined_counts"] = {name: score.undetermined for name, score in self.verify.scores}
            differences = [_difference(difference) for difference in self.verify.differences]
            verify["first_difference"] = differences[0] if differences else None
            verify["differences"] = differences
        return {
            "trace": self.trace,
            "policy": self.policy,
            "vendor": self.vendor,
            "events": self.events,
            "cost": self.cost.to_dict(),
            "lower_bound": self.lower_bound,
            "phases": [
                {"name": phase.name, "cost": phase.cost.to_dict(), "partial": phase.partial} for phase in self.phases
            ],
            "not_expressible": [{"line": line, "reason": reason} for line, reason in self.not_expressible],
            "observed": [
                {"law": o.law, "occasions": o.occasions, "failures": o.failures, "first": o.first}
                for o in self.observed
            ],
            "verify": verify,
        }


def _score(score: Score) -> dict[str, int]:
    return {"predicted": score.predicted, "observed": score.observed, "matched": score.matched}


def _difference(difference: Difference) -> dict[str, object]:
    return {
        "line": difference.line,
        "cpu": difference.cpu,
        "predicted": difference.predicted,
        "observed": difference.observed,
    }


def read_trace(path: str | os.PathLike[str]) -> _core.Trace:
    """Read a trace, and the steps file beside it.

    Raises:
        TraceError: It cannot be read, or is none.
    """
    trace, mistake = _core.Trace.read(Path(path))
    if trace is None:
        raise TraceError(mistake or "the trace cannot be read")
    return trace


def replay(
    traces: Paths,
    *,
    policies: Sequence[str | type[Policy]] = (DEFAULT_POLICY,),
    vendor: Literal["intel", "amd"] | None = None,
    verify: bool = False,
    progress: Callable[[int], None] | None = None,
    executor: Executor | None = None,
) -> list[Replay]:
    """Replay traces, each under each policy.

    Args:
        traces: A trace, or several: ftrace text, trace-cmd's or perf's report, plain, .gz or .zst.
        policies: Under which: names, `FILE.py:CLASS`, or classes.
        vendor: Whose virtualisation; default: as the trace's exits show.
        verify: Whether to compare with what the kernel did: the trace's truth lines, and the steps file beside it.
        progress: Called now and then with the number of rows done; with an executor, of replays.
        executor: Where each trace is replayed; default: here. Other processes load policies written in Python again.

    Returns:
        A replay for each trace and policy, in that order.

    Raises:
        TraceError: A trace cannot be read.
        ValueError: A policy that there is not.
        Interrupted: Ctrl-C, with what is known so far.
    """
    paths = several(traces)
    names = [resolve(policy) for policy in policies]
    replays: list[Replay] = []
    if executor is not None:
        work = [_Work(os.fspath(path), policy, vendor, verify) for path in paths for policy in policies]
        try:
            for result in each(_replay, work, executor):
                replays.append(result)
                if progress is not None:
                    progress(len(replays))
        except KeyboardInterrupt as interrupt:
            raise Interrupted(replays) from interrupt
        return replays
    try:
        for path in paths:
            trace = read_trace(path)
            for name in names:
                replay = replay_one(trace, path, name, vendor, verify=verify, progress=progress)
                replays.append(replay)
    except KeyboardInterrupt as interrupt:
        raise Interrupted(replays) from interrupt
    audit(*names)
    return replays


class _Work(NamedTuple):
    """A trace to replay under a policy."""

    trace: str
    policy: str | type[Policy]
    vendor: Literal["intel", "amd"] | None
    verify: bool


def _replay(work: _Work) -> Replay:
    (result,) = replay(work.trace, policies=[work.policy], vendor=work.vendor, verify=work.verify)
    return result


def replay_one(
    trace: _core.Trace,
    name: str,
    policy: str,
    vendor: str | None,
    *,
    verify: bool,
    progress: Callable[[int], None] | None,
) -> Replay:
    """Replay a trace that has been read."""
    result = trace.replay(policy, vendor, verify, progress)
    policy, events, cost, phases, lower_bound, not_expressible, observed, undetermined, verified = result
    verification = None
    if verified is not None:
        install, uninstall, restore, sync, of_steps, differences = verified
        step, at_sync, at_entry = (None, None, None) if of_steps is None else (Score(*score) for score in of_steps)
        verification = Verification(
            Score(*install),
            Score(*uninstall),
            Score(*restore),
            Score(*sync),
            step,
            at_sync,
            at_entry,
            tuple(Difference(*difference) for difference in differences),
        )
    return Replay(
        trace=name,
        policy=policy,
        vendor=vendor or trace.vendor,
        events=events,
        cost=Cost(*cost),
        phases=tuple(Phase(name, Cost(*spent), partial) for name, spent, partial in phases),
        lower_bound=lower_bound,
        not_expressible=tuple(not_expressible),
        observed=tuple(Observed(*law) for law in observed),
        undetermined=tuple(undetermined),
        verify=verification,
    )
