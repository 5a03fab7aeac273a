"""The policies that have names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from debugreg import _core

if TYPE_CHECKING:
    from debugreg._policy import Policy

__all__ = ["DeltaState", "PolicyRow", "policies"]


@dataclass(frozen=True, slots=True)
class DeltaState:
    """A known difference between kernels, and whether a policy has it by nature."""

    id: str
    state: str
    """`'on'` or `'fixed'`."""
    line: str


@dataclass(frozen=True, slots=True)
class PolicyRow:
    """A policy: a host half, a KVM half, and the deltas that make a difference to it."""

    name: str
    host: str
    """`'thread'` (to 2.6.32) or `'perf'`."""
    kvm: str
    line: str
    deltas: tuple[DeltaState, ...]

    def to_dict(self) -> dict[str, object]:
        """Return plain data, as `--json` prints it."""
        deltas = [{"id": delta.id, "state": delta.state, "line": delta.line} for delta in self.deltas]
        return {"name": self.name, "host": self.host, "kvm": self.kvm, "line": self.line, "deltas": deltas}


def policies() -> list[PolicyRow]:
    """Return every named policy.

    A delta can be switched: `linux-5.15+H-01=fixed`, `linux-6.14+HB-34=on`.

    Example:
        >>> [row.name for row in policies()][:2]
        ['linux-2.6.30', 'linux-2.6.32']
    """
    rows = _core.policies()
    return [
        PolicyRow(name, host, kvm, line, tuple(DeltaState(*delta) for delta in deltas))
        for name, host, kvm, line, deltas in rows
    ]


def resolve(policy: str | type[Policy]) -> str:
    """Return the name of a policy, with what is written in Python loaded.

    Raises:
        ValueError: There is no such policy.
        PolicyError: It is written in Python, and cannot be loaded.
    """
    if isinstance(policy, str) and ".py:" not in policy:
        return _core.policy_name(policy)
    from debugreg._policy import resolve as load

    return load(policy)


def audit(*names: str) -> None:
    """Find out whether policies written in Python remember what they must not (`_policy.audit`)."""
    import sys

    # If it is not loaded, none is.
    if "debugreg._policy" in sys.modules:
        from debugreg._policy import audit as again

        again(*names)


def load_declared(text: str) -> None:
    """Load the policies written in Python that a scenario's `machine` line names."""
    import re

    for names in re.findall(r"^[ \t]*machine\b[^#\n]*\spolicy=(\S*)", text, re.MULTILINE):
        for name in names.split(","):
            if ".py:" in name:
                resolve(name)
