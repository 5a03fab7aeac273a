"""Safe within a scope, or the shortest scenario that breaks a law."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

from debugreg import _core
from debugreg._jobs import each
from debugreg._policies import audit, resolve
from debugreg.errors import Interrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor

    from debugreg._policy import Policy

__all__ = ["Kept", "Law", "Scope", "Verdict", "Violation", "check", "event_kinds", "laws", "laws_kept"]

MEMORY = 4 << 30
"""Bytes that an exploration may take unless it is told otherwise."""


@dataclass(frozen=True, slots=True)
class Law:
    """A law that a policy is held to."""

    name: str
    sentence: str
    source: str


@dataclass(frozen=True, slots=True)
class Scope:
    """How large a machine is explored, and what happens on it."""

    cpus: int = 1
    tasks: int = 2
    """The idle one apart; the thread of a vCPU is one of them."""
    vcpus: int = 1
    slots: int = 1
    """Registers that host breakpoints may use, and that a guest uses."""
    addresses: int = 1
    """How many addresses are watched and accessed."""
    counters: int = 1
    """How many breakpoints the host has at once."""
    events: str = ""
    """Kinds of events (`event_kinds`), with commas between them; empty: the usual ones; `+NAME,...`: others besides."""
    nmi: bool = False
    """Whether an NMI strikes before any step."""
    kgdb: bool = False
    """Whether an NMI has kgdb set and clear breakpoints."""
    announce: bool = False
    """Whether an NMI has kgdb announce a slot, and give it back."""
    races: bool = False
    """Whether events of other CPUs come before any step."""
    hypervisor: bool = True
    """Whether the host is itself a guest: an NMI then asks the shadow alone whether anything is armed."""
    fred: bool = False
    disabled_match: bool = False
    decode_assists: bool = True
    kgdb_early: bool = False
    symmetry: bool = True
    """Whether states that differ in names of addresses only are one."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A law is broken."""

    law: str
    why: str
    """What is there, and what should be."""
    scenario: str
    """The events that lead to it, as few as there can be; `debugreg run` shows it."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of an exploration. True if the policy is safe within the scope."""

    policy: str
    vendor: str
    scope: Scope
    laws: str
    """The laws, with commas between them, or `all`."""
    ok: bool | None
    """Whether it is safe; None if that is not known, because it ended early."""
    states: int
    transitions: int
    """Events that were performed, each with its interruption."""
    depth: int
    """Events from the start to the farthest state."""
    seconds: float
    reached: dict[str, int]
    """How often each kind of events was performed. One that never was makes a policy not safe."""
    state_bytes: int
    """Bytes that a state takes, with its link to the one before."""
    bytes: int
    """Bytes that all states take, with their parts; what threads remember on the way comes on top."""
    violation: Violation | None
    stopped: Literal["asked", "memory", "walked"] | None
    """Why it ended before everything was seen."""

    def __bool__(self) -> bool:
        """Return whether the policy is safe."""
        return self.ok is True

    def then(self, other: Verdict) -> Verdict:
        """Return what both walks together have found, if this one has found nothing."""
        return replace(
            other,
            transitions=self.transitions + other.transitions,
            depth=max(self.depth, other.depth),
            seconds=self.seconds + other.seconds,
            reached={kind: count + other.reached[kind] for kind, count in self.reached.items()},
        )

    @property
    def law(self) -> str | None:
        """The law that is broken."""
        return self.violation.law if self.violation else None

    @property
    def scenario(self) -> str | None:
        """The shortest scenario that breaks it."""
        return self.violation.scenario if self.violation else None

    @property
    def never(self) -> tuple[str, ...]:
        """The kinds of events that never happened."""
        return tuple(kind for kind, count in self.reached.items() if not count)

    def to_dict(self) -> dict[str, object]:
        """Return plain data, as `--json` prints it."""
        return {
            "policy": self.policy,
            "vendor": self.vendor,
            "scope": {**asdict(self.scope), "laws": self.laws},
            "ok": self.ok,
            "states": self.states,
            "transitions": self.transitions,
            "depth": self.depth,
            "seconds": self.seconds,
            "reached": self.reached,
            "state_bytes": self.state_bytes,
            "bytes": self.bytes,
            "violation": asdict(self.violation) if self.violation else None,
            "stopped": self.stopped,
        }


def laws() -> list[Law]:
    """Return the laws.

    Example:
        >>> [law.name for law in laws()][:3]
        ['host-armed', 'guest-armed', 'debugger-owns']
    """
    return [Law(*row) for row in _core.laws()]


def event_kinds() -> list[tuple[str, bool, str]]:
    """Return the kinds of events: name, whether they are among the usual ones, and what happens."""
    return _core.event_kinds()


def check(
    policy: str | type[Policy] = "linux",
    scope: Scope | None = None,
    *,
    vendor: Literal["intel", "amd"] = "amd",
    laws: Sequence[str] = (),
    walks: int | None = None,
    seed: int = 1,
    threads: int = 0,
    memory: int = MEMORY,
    progress: Callable[[int, int, int, int], None] | None = None,
    executor: Executor | None = None,
    **changes: object,
) -> Verdict:
    """Explore a policy: every state that it can get into within a scope, every event in each.

    Args:
        policy: A name, `FILE.py:CLASS`, or a class.
        scope: How large a machine, and what happens on it; default: one of everything, and the usual events.
        vendor: Whose virtualisation.
        laws: Which laws; default: all.
        walks: Walk at random so many times, where seeing everything would take too long. Never says "safe".
        seed: What random walks are determined by.
        threads: How many; 0: one for each core. The result is the same for any number.
        memory: Bytes that it may take; it ends before it takes more.
        progress: Called now and then with states, those that wait, transitions, and depth.
        executor: Where it is done; default: here. Random walks are shared out, an exploration is one piece of work
            (many of them: `sweep`).
        changes: Fields of the scope that are other than in `scope`.

    Returns:
        Safe or not, and if not, the shortest scenario that breaks a law.

    Raises:
        PolicyError: A policy written in Python does not do what one may do.
        ValueError: There is no such policy, law or kind of events, or a number is out of range.
        TypeError: There is no such field of a scope.
        Interrupted: Ctrl-C, with what is known so far.

    Example:
        >>> bool(check("lean", nmi=True))
        True
        >>> verdict = check("skip")
        >>> verdict.law
        'entry-quiet'
        >>> print(verdict.scenario.splitlines()[-1])
        v0 vm_entry
    """
    # A change of the wrong name is a TypeError that names it.
    scope = replace(scope or Scope(), **changes)  # type: ignore[arg-type]
    if executor is not None:
        work = _Work(policy, scope, vendor, tuple(laws), walks, seed, threads, memory)
        return _shared(work, executor, progress)
    fields = asdict(scope)
    events = fields.pop("events") or None
    core = _core.CheckScope(vendor=vendor, events=events, laws=",".join(laws) or None, **fields)
    name = resolve(policy)
    start = time.perf_counter()
    told = core.check(name, threads, memory, walks, seed, progress)
    ok, states, transitions, depth, reached, state_bytes, size, violation, stopped = told
    verdict = Verdict(
        policy=name,
        vendor=vendor,
        scope=replace(scope, events=core.events),
        laws=core.laws,
        ok=ok,
        states=states,
        transitions=transitions,
        depth=depth,
        seconds=time.perf_counter() - start,
        reached=dict(reached),
        state_bytes=state_bytes,
        bytes=size,
        violation=Violation(*violation) if violation else None,
        stopped=cast('Literal["asked", "memory", "walked"] | None', stopped),
    )
    if stopped == "asked":
        raise Interrupted(verdict)
    audit(name)
    return verdict


class _Work(NamedTuple):
    """Something to explore, or to walk in."""

    policy: str | type[Policy]
    scope: Scope
    vendor: Literal["intel", "amd"]
    laws: tuple[str, ...]
    walks: int | None
    seed: int
    threads: int
    memory: int


SHARE = 1024
"""Random walks in one piece of work."""


def _check(work: _Work) -> Verdict:
    policy, scope, *rest = work
    options = dict(zip(_Work._fields[2:], rest, strict=True))
    return check(policy, scope, **options)  # type: ignore[arg-type]


def _shared(work: _Work, executor: Executor, progress: Callable[[int, int, int, int], None] | None) -> Verdict:
    start = time.perf_counter()
    walks = range(0, work.walks, SHARE) if work.walks else (0,)
    shares = [
        work._replace(walks=work.walks and min(SHARE, work.walks - at), seed=(work.seed + at) % (1 << 64))
        for at in walks
    ]
    total: Verdict | None = None
    try:
        for part in each(_check, shares, executor):
            total = part if total is None else total.then(part)
            if progress is not None:
                progress(total.states, 0, total.transitions, total.depth)
            if total.violation:
                break
    except KeyboardInterrupt as interrupt:
        raise Interrupted(total) from interrupt
    if total is None:
        raise ValueError("walks must be at least 1")
    return replace(total, seconds=time.perf_counter() - start)


def sweep(
    policies: Sequence[str | type[Policy]],
    scopes: Sequence[Scope],
    *,
    vendor: Literal["intel", "amd"] = "amd",
    laws: Sequence[str] = (),
    memory: int = MEMORY,
    progress: Callable[[int, int], None] | None = None,
    executor: Executor | None = None,
) -> list[Verdict]:
    """Explore policies, each in every scope.

    Args:
        policies: As in `check`; a class must be one that another process can import.
        scopes: In which.
        vendor: Whose virtualisation.
        laws: Which laws; default: all.
        memory: Bytes that each exploration may take.
        progress: Called with the number of explorations done, and of all.
        executor: Any of `concurrent.futures`, or one like them (Dask: `Client.get_executor()`); default: one after the
            other, here. The verdicts are the same, but for their `seconds`.

    Returns:
        A verdict for each policy and scope: all scopes of the first policy, then those of the next.

    Raises:
        ValueError: As `check`.
        Interrupted: Ctrl-C, with the verdicts so far.

    Example:
        >>> [verdict.law for verdict in sweep(["skip", "lean"], [Scope(), Scope(nmi=True)])]
        ['entry-quiet', 'entry-quiet', None, None]
    """
    threads = 0 if executor is None else 1
    work = [
        _Work(policy, scope, vendor, tuple(laws), None, 1, threads, memory) for policy in policies for scope in scopes
    ]
    verdicts: list[Verdict] = []
    try:
        for verdict in each(_check, work, executor):
            verdicts.append(verdict)
            if progress is not None:
                progress(len(verdicts), len(work))
    except KeyboardInterrupt as interrupt:
        raise Interrupted(verdicts) from interrupt
    return verdicts


@dataclass(frozen=True, slots=True)
class Kept:
    """Which laws a policy keeps within a scope, each judged to the end. True if it keeps all."""

    verdict: Verdict
    """The first verdict, under all laws."""
    broken: dict[str, Violation]
    """By law: the shortest scenario that breaks it, among those that break none of the laws before."""
    judged: bool
    """Whether the laws that are left were judged to the end."""

    def __bool__(self) -> bool:
        """Return whether it keeps all."""
        return self.verdict.ok is True

    def keeps(self, law: str) -> bool | None:
        """Return whether it keeps a law; None if that is not known."""
        return False if law in self.broken else True if self.judged else None

    def to_dict(self) -> dict[str, object]:
        """Return plain data: the verdict, and what of each law."""
        return {**self.verdict.to_dict(), "laws": {law.name: self.keeps(law.name) for law in laws()}}


def laws_kept(
    policy: str | type[Policy] = "linux",
    scope: Scope | None = None,
    *,
    vendor: Literal["intel", "amd"] = "amd",
    progress: Callable[[int, int, int, int], None] | None = None,
) -> Kept:
    """Find every law that a policy breaks within a scope: each is left out once it is found.

    Args:
        policy: As in `check`.
        scope: As in `check`.
        vendor: Whose virtualisation.
        progress: As in `check`.

    Example:
        >>> list(laws_kept("skip", Scope(nmi=True)).broken)
        ['entry-quiet']
    """
    first = None
    names = [law.name for law in laws()]
    broken: dict[str, Violation] = {}
    while True:
        verdict = check(policy, scope, vendor=vendor, laws=names, progress=progress)
        first = verdict if first is None else first
        if verdict.violation is None:
            return Kept(first, broken, judged=verdict.stopped is None and not verdict.never)
        broken[verdict.violation.law] = verdict.violation
        names.remove(verdict.violation.law)
        if not names:
            return Kept(first, broken, judged=True)
