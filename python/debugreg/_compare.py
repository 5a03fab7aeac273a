"""The main job: every policy on one trace."""

from __future__ import annotations

import pathlib
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Literal, NamedTuple

from debugreg import _core
from debugreg._check import Kept, Scope, laws_kept
from debugreg._cost import WEIGHT
from debugreg._jobs import each
from debugreg._policies import audit, resolve
from debugreg._replay import Replay, read_trace, replay_one
from debugreg.errors import Interrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor

    from debugreg._paths import Path
    from debugreg._policy import Policy

__all__ = ["Comparison", "compare", "shipped_trace"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Policies on a trace."""

    trace: str
    rows: int
    """Input rows of the trace."""
    weight: int
    """What a VM exit counts for, in debug-register accesses."""
    replays: tuple[Replay, ...]
    kept: tuple[Kept, ...] = ()
    """By policy: which laws it keeps within `SCOPE`; empty if that was not asked."""

    def weighted(self, replay: Replay) -> int:
        """Return what a policy is ranked by: writes + reads + weight x exits."""
        return replay.cost.weighted(self.weight)

    @property
    def cheapest(self) -> Replay | None:
        """The cheapest of those that are safe, and whose cost is fully known.

        Safe is who keeps every law; where that was not asked, who kept host and guest apart on this trace, and entered
        quietly.
        """
        by_trace = (r.apart and not r.law("entry-quiet").failures for r in self.replays)
        safe = [bool(kept) for kept in self.kept] or list(by_trace)
        kept = (
            r
            for r, is_safe in zip(self.replays, safe, strict=False)
            if is_safe and not (r.lower_bound or r.not_expressible)
        )
        # Where nobody had anything to do, nobody is cheap.
        return min(kept, key=self.weighted, default=None) if any(map(self.weighted, self.replays)) else None

    def ratio(self, replay: Replay) -> float | None:
        """Return a policy's cost against the cheapest's."""
        base = self.cheapest
        return self.weighted(replay) / self.weighted(base) if base and self.weighted(base) else None

    def to_dict(self) -> dict[str, object]:
        """Return plain data, as `--json` prints it."""
        checks: list[dict[str, object] | None] = [kept.to_dict() for kept in self.kept]
        checks = checks or [None] * len(self.replays)
        rows = [
            {
                "policy": replay.policy,
                "vendor": replay.vendor,
                "check": check,
                "replay": replay.to_dict(),
                "ratio": self.ratio(replay),
            }
            for replay, check in zip(self.replays, checks, strict=True)
        ]
        return {"trace": self.trace, "weight": self.weight, "policies": rows}


def shipped_trace() -> pathlib.Path:
    """Return the trace that ships with the package: kvm-amd of a stock Debian 6.12, in ten phases."""
    return pathlib.Path(__file__).with_name("data") / "kvm-amd-6.12-phases.txt.gz"


SCOPE = Scope(nmi=True)
"""In which a comparison judges every law: one of everything, two tasks, an NMI before any step."""


@cache
def _kept(policy: str, vendor: Literal["intel", "amd"]) -> Kept:
    return laws_kept(policy, SCOPE, vendor=vendor)


def compare(
    trace: Path | None = None,
    *,
    policies: Sequence[str | type[Policy]] = (),
    vendor: Literal["intel", "amd"] | None = None,
    weight: int = WEIGHT,
    laws: bool = True,
    progress: Callable[[str, int, int], None] | None = None,
    executor: Executor | None = None,
) -> Comparison:
    """Compare policies: what each costs on a trace, and which laws it keeps.

    Args:
        trace: The trace; default: the one that ships with the package.
        policies: Which; default: all that have names (`linux`, the same as the newest of them, left out).
        vendor: Whose virtualisation; default: as the trace's exits show.
        weight: What a VM exit counts for, in debug-register accesses.
        laws: Whether every law is judged for each policy, exhaustively within `SCOPE`.
        progress: Called with the policy, the rows done, and their number; with an executor, with the policy that is
            done, how many are, and how many there are.
        executor: Where each policy is replayed and judged; default: here.

    Raises:
        TraceError: The trace cannot be read.
        ValueError: A policy that there is not.
        Interrupted: Ctrl-C, with what is known so far.

    Example:
        >>> compare(policies=["skip", "lean"]).cheapest.policy
        'lean'
    """
    path = str(trace or shipped_trace())
    names = [resolve(policy) for policy in policies] or [name for name, *_ in _core.policies() if name != "linux"]
    read = read_trace(path)
    replays: list[Replay] = []
    kept: list[Kept] = []
    if executor is not None:
        of = policies or names
        try:
            for replay, judged in each(_compare, [_Work(path, policy, vendor, laws) for policy in of], executor):
                replays.append(replay)
                kept += judged
                if progress is not None:
                    progress(replay.policy, len(replays), len(of))
        except KeyboardInterrupt as interrupt:
            raise Interrupted(Comparison(path, read.rows, weight, tuple(replays), tuple(kept))) from interrupt
        return Comparison(path, read.rows, weight, tuple(replays), tuple(kept))
    try:
        for policy in names:
            told = None if progress is None else partial(_tell, progress, policy, read.rows)
            replays.append(replay_one(read, path, policy, vendor, verify=False, progress=told))
        for replay in replays if laws else ():
            kept.append(_kept(replay.policy, replay.vendor))
            if progress is not None:
                progress(f"laws: {replay.policy}", len(kept), len(replays))
    except KeyboardInterrupt as interrupt:
        # Half of the laws judge nobody.
        raise Interrupted(Comparison(path, read.rows, weight, tuple(replays))) from interrupt
    audit(*names)
    return Comparison(path, read.rows, weight, tuple(replays), tuple(kept))


class _Work(NamedTuple):
    """A policy to replay and judge."""

    trace: str
    policy: str | type[Policy]
    vendor: Literal["intel", "amd"] | None
    laws: bool


def _compare(work: _Work) -> tuple[Replay, tuple[Kept, ...]]:
    """Return its replay, and which laws it keeps, if that is asked."""
    done = compare(work.trace, policies=[work.policy], vendor=work.vendor, laws=work.laws)
    return done.replays[0], done.kept


def _tell(progress: Callable[[str, int, int], None], policy: str, rows: int, done: int) -> None:
    progress(policy, done, rows)
