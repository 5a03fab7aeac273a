//! #DB in a guest: who intercepts it, what DR6 says, who is told.
//!
//! VMX: the cause is in the exit qualification, DR6 is not modified. SVM: the VMCB's DR6 is updated as if the exception
//! had been delivered; since 5.7 it was loaded idle, or with what the guest has in it while it has the registers to
//! itself. Either way KVM gets the events as a *payload*, and delivers it into the guest's DR6 at injection.
//!
//! Source: `handle_exception_nmi` (vmx.c), `db_interception` (svm.c), `kvm_queue_exception_p` (x86.c), 6.12.

use debugreg::{Dr, Dr6, Dr7};

use crate::event::{Outcome, Vector};
use crate::hit::Exception;
use crate::machine::{Machine, Vendor};
use crate::policy::Delta;
use crate::policy::hooks::World;
use crate::step::Probe;
use crate::vcpu::{DebugExit, Exit};
use crate::{CpuId, VcpuId};

impl Machine {
    /// #DB in a guest that runs: KVM intercepts it, and it goes to the debugger or back into the guest. Old kernels
    /// intercept it only for a debugger, and the processor delivers it by itself otherwise.
    pub(super) fn guest_db<P: Probe>(
        &mut self,
        id: VcpuId,
        cpu: CpuId,
        exception: Exception,
        probe: &mut P,
    ) -> Outcome {
        let Exception { events, is_fault } = exception;
        let goes_past = self.is_tcg() && events == 0;
        if goes_past || !self.db_exits(id) {
            for registers in [&mut self.cpus[cpu.index()].bank.hardware, &mut self.vcpus[id.index()].own] {
                registers.dr6 = raised(registers.dr6, events);
                registers.dr7 &= !Dr7::GD;
            }
            let dr6 = if goes_past { self.guest_dr(id, cpu, Dr::Status) } else { self.cpu(cpu).bank.hardware.dr6 };
            return Outcome::Exception { vector: Vector::Debug, dr6, fault: is_fault };
        }
        let in_software = self.policy.world() == World::Software;
        self.hardware_db(cpu, events);
        self.vcpus[id.index()].exit = Exit::Db;
        // A register that was not loaded for the guest holds an address that is not its own (Z-10).
        let unloaded = Dr6::TRAPS & !u64::from(self.vcpu(id).loaded);
        let strangers = if self.policy.has(Delta::Z10) { 0 } else { unloaded };
        let is_l1s = self.vcpu(id).nested.is_some_and(|nested| nested.intercepts_db);
        self.entitle(id, events & !unloaded, is_l1s);
        self.leave(id, cpu, probe);
        self.vcpus[id.index()].vmcs.dr6 &= !strangers;
        let payload = !strangers
            & match self.options.vendor {
                Vendor::Intel if !in_software => events,
                _ => Dr6(self.vcpu(id).vmcs.dr6).events(),
            };
        let (told, queued) = self.vcpu(id).share_db(self.policy, payload);
        // The debugger comes first (5.7, H-26 was that it did not).
        if is_l1s && (told.is_none() || self.is_amd() && self.policy.has(Delta::H26)) {
            return self.reflect(id, cpu, payload, probe);
        }
        if let Some(queued) = queued {
            self.vcpus[id.index()].pending_db = Some(Some(queued));
        }
        if let Some(told) = told {
            let vcpu = self.vcpu(id);
            // PVM reports the debugger's DR7 also where it has none.
            let dr7 = if in_software { vcpu.guest_debug_dr7 } else { vcpu.vmcs.dr7 };
            let told = DebugExit { dr6: Dr6::from_events(told).0, dr7 };
            // `db_interception` to 5.6 fills in neither.
            let is_told = !self.is_amd() || !self.policy.has(Delta::H32);
            let told = if is_told { told } else { self.vcpu(id).debug_exit };
            return self.exit_debug(id, cpu, told, probe);
        }
        self.enter(id, cpu, probe);
        Outcome::Exception { vector: Vector::Debug, dr6: self.guest_dr(id, cpu, Dr::Status), fault: is_fault }
    }

    /// What the processor does to DR6 and DR7 before a #DB is intercepted: what it does for a handler on SVM (and under
    /// PVM, where the host has one), and nothing on VMX.
    pub(super) fn hardware_db(&mut self, cpu: CpuId, events: u64) {
        if self.is_amd() || self.policy.world() == World::Software {
            let hardware = &mut self.cpus[cpu.index()].bank.hardware;
            hardware.dr6 = raised(hardware.dr6, events);
            hardware.dr7 = Vendor::Amd.dr7_after_db(hardware.dr7);
        }
    }

    /// What a #DB entitles the guest to find in DR6: its own events, whoever is told of them. Those of a debugger's
    /// registers or single step are not its own; a #DB of a nested guest that exits to L1 changes DR6 on SVM only.
    fn entitle(&mut self, id: VcpuId, events: u64, is_l1s: bool) {
        let vcpu = &mut self.vcpus[id.index()];
        let debuggers = match (vcpu.debugger_owns(), vcpu.is_stepped()) {
            (true, _) => u64::MAX,
            (false, true) => Dr6::BS,
            (false, false) => 0,
        };
        if !is_l1s || self.options.vendor == Vendor::Amd {
            vcpu.own.dr6 = raised(vcpu.own.dr6, events & !debuggers);
        }
    }

    /// Whether a #DB of the guest's exits.
    pub(super) fn db_exits(&self, id: VcpuId) -> bool {
        self.vcpu(id).debugger_intercepts_db() || self.policy.intercepts_db(self.options.vendor)
    }

    /// The exit handler of #DB, for one whose events are known: the guest's waits for the next entry.
    pub(super) fn handle_guest_db(&mut self, id: VcpuId, events: u64) {
        if let (_, Some(queued)) = self.vcpu(id).share_db(self.policy, events) {
            self.queue_db(id, queued, events);
        }
    }

    /// A #DB for the guest, to be injected at the next entry: what KVM delivers, and what the guest is entitled to.
    pub(super) fn queue_db(&mut self, id: VcpuId, payload: u64, events: u64) {
        let vcpu = &mut self.vcpus[id.index()];
        vcpu.pending_db = Some(Some(payload));
        vcpu.own.dr6 = raised(vcpu.own.dr6, events);
    }

    /// `KVM_EXIT_DEBUG`: KVM_RUN ends, and its page says what there was.
    pub(super) fn exit_debug<P: Probe>(&mut self, id: VcpuId, cpu: CpuId, told: DebugExit, probe: &mut P) -> Outcome {
        self.vcpus[id.index()].debug_exit = told;
        self.return_to_user(id, cpu, probe);
        Outcome::ExitDebug { dr6: told.dr6, dr7: told.dr7 }
    }
}

/// DR6 after a #DB; INT1 raises one without touching it.
fn raised(dr6: u64, events: u64) -> u64 {
    if events == 0 { dr6 } else { Dr6(dr6).after_db(events).0 }
}
