"""What the explorer found beyond the museum: each is found again, in its scope, by the tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import debugreg as dr

__all__ = ["FINDINGS", "Finding", "found"]


@dataclass(frozen=True)
class Finding:
    """Something that breaks a law, and whether a kernel was asked."""

    title: str
    policy: str
    law: str
    effect: str
    asked: str
    scope: dict[str, object] = field(default_factory=dict)

    def __hash__(self) -> int:
        """Return a hash: titles are unique."""
        return hash(self.title)


FINDINGS = [
    Finding(
        "A VMM single-steps its guest, and a task of the host dies (AMD)",
        "linux",
        "dr6-true",
        "Z-9 takes a guest that writes DR6. Here nothing is needed of the guest: its debugger steps it, the "
        "#VMEXIT leaves DR6.BS in the register, and the next perf breakpoint that a task of that CPU hits reads "
        "as a single step of its own: SIGTRAP, to a task that nobody traces. It is the same gap (nothing cleans "
        "DR6 after an exit on SVM since 5.15), and `+Z-9=fixed` closes it. `skip` and `linux-2.6.33` have it too.",
        "Not confirmed. It takes an AMD processor whose #VMEXIT does not restore DR6: QEMU's emulation restores "
        "it, and the kernel that was asked (6.18, kvm-pvm, which executes no VMRUN) tells of the hit alone.",
        {"events": "+step"},
    ),
    Finding(
        "A POKE of DR7 that is refused keeps slots",
        "linux-fixed",
        "slots-sound",
        "The first of the registers that the value enables gets an event and a slot; the second is refused, the "
        "call fails, and the first stays, disabled, until the tracee ends (M5 of the anomalies, found here from "
        "the law alone).",
        "Confirmed on the running kernel (6.18): `scenarios/anomalies/M5-failed-poke-keeps-slots.scn` holds with "
        "`--on kernel`.",
        {"events": "open-other,close,ptrace", "slots": 2, "counters": 4, "vcpus": 0},
    ),
    Finding(
        "After INIT, or KVM_SET_DEBUGREGS, an entry writes six registers for nobody (4.1 to 5.14)",
        "linux-5.14+H-04=fixed",
        "skip-free",
        "KVM_DEBUGREG_RELOAD has the next entry load DR0-DR3 and DR6, though nothing is enabled anywhere. Once "
        "per INIT; no register is wrong.",
        "Not asked: no kernel of those years was at hand.",
        {"events": "+init"},
    ),
    Finding(
        "kgdb watches an address, and a user's task that writes to it gets SIGTRAP",
        "linux-fixed",
        "dr6-true",
        "The #DB comes from user mode, where no notifier of kgdb's claims it: the event marks the task's own DR6, "
        "and the task is sent a signal that nobody asked for. With `+announce` it is not.",
        "Not asked: the kernels that were asked have no kgdb. `scenarios/kgdb/user-hit.scn` states it.",
        {"events": "+kgdb"},
    ),
    Finding(
        "A debugger's DR7.GD does not hold up a guest under PVM",
        "pvm",
        "no-loss",
        "PVM emulates every MOV DR, and the emulator asks the guest's own DR7 for GD (H-21): the debugger is not told.",
        "On the running kernel (6.18, kvm-pvm) the line is unobserved: its guest is not told apart from one that "
        "went on.",
        {"events": "+debug-gd"},
    ),
    Finding(
        "A debugger's DR7.GD holds up one MOV DR of a guest, and then none (AMD)",
        "linux-fixed",
        "no-loss",
        "The VMCB has DR7 as a #DB handler would find it, without GD (APM vol. 2, 15.12.2), and KVM puts it back only "
        "when something calls `kvm_update_dr7`: KVM_SET_GUEST_DEBUG again, as KVM's own selftest does each time. On "
        "VMX the #DB leaves DR7 in the VMCS alone.",
        "Not confirmed: the emulator asks for the intercept before it asks for GD, and kvm-pvm executes no VMRUN.",
        {"events": "+debug-gd"},
    ),
    Finding(
        "Under PVM in a virtual machine, an NMI is handled with the guest's watchpoints armed",
        "pvm",
        "shadow-true",
        "PVM writes the guest's DR7 some instructions before the guest runs. `local_db_save` believes the shadow if "
        "the kernel is itself a guest (X86_FEATURE_HYPERVISOR), and the shadow knows of the host's breakpoints only: "
        "it neither reads nor clears DR7. The filter leaves addresses below 2^63 alone, so that it takes a handler "
        "that reads user memory (a call chain of perf's) to meet one. Without a hypervisor DR7 is read, and the same "
        "scope is safe.",
        "Not asked: the window is a few instructions long, and no NMI can be aimed at it from outside.",
        {"nmi": True},
    ),
]


@cache
def found(finding: Finding) -> dr.Verdict:
    """Explore."""
    return dr.check(finding.policy, **finding.scope)  # type: ignore[arg-type]
