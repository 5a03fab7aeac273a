"""What a policy costs, counted in steps."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["WEIGHT", "Cost"]

WEIGHT = 20
"""How many debug-register accesses a VM exit is worth when policies are ranked."""


@dataclass(slots=True)
class Cost:
    """Steps that were taken.

    Example:
        >>> Cost(dr_writes=6, vm_exits=1).weighted()
        26
    """

    dr_writes: int = 0
    """MOV to a debug register."""
    dr_reads: int = 0
    """MOV from a debug register."""
    vmcs: int = 0
    """Accesses to fields of a VMCS or VMCB."""
    vm_exits: int = 0
    """VM exits that the policy caused."""
    skips: int = 0
    """Hook calls (task switch, VM entry, VM exit) that touched neither a debug register nor the VMCS or VMCB."""

    def weighted(self, weight: int = WEIGHT) -> int:
        """Return writes + reads + weight x exits: what policies are ranked by."""
        return self.dr_writes + self.dr_reads + weight * self.vm_exits

    def to_dict(self) -> dict[str, int]:
        """Return the counts by name."""
        return {name: getattr(self, name) for name in self.__slots__}
