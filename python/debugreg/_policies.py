"""The policies that have names."""

from __future__ import annotations

from dataclasses import dataclass

from debugreg import _core

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
