"""How fast is a policy explored that is written in Python? The peer is the same policy in Rust, in the same scope."""

from __future__ import annotations

import pytest

import debugreg as dr

SCOPE = dr.Scope(nmi=True, slots=2, symmetry=False)
LAWS = [law.name for law in dr.laws() if law.name != "entry-quiet"]
TRANSITIONS = dr.check("skip", SCOPE, laws=LAWS).transitions


class Skip(dr.Policy):
    """As the policy `skip`, down to what is remembered: nothing."""

    def vm_entry(self, cpu, vcpu):
        """Load the guest's breakpoints, if it has any."""
        if vcpu.effective_dr7 & 0xFF:
            cpu.write_dr(7, 0x400)
            for number in range(4):
                cpu.write_dr(number, vcpu.effective_db[number])

    def vm_exit(self, cpu, vcpu, reason):  # noqa: ARG002 - its arguments are the interface
        """Refresh if there is anything to refresh, or to cover."""
        if cpu.breakpoints_active or vcpu.effective_dr7 & 0xFF:
            cpu.refresh()


def in_rust():
    """Explore it."""
    assert dr.check("skip", SCOPE, laws=LAWS)


def in_python():
    """Explore it, asked what it does."""
    assert dr.check(Skip, SCOPE, laws=LAWS)


SIDES = {"Rust": in_rust, "Python": in_python}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.benchmark(group="explore")
def test_explore(benchmark, side):
    """The whole scope."""
    benchmark(SIDES[side])
