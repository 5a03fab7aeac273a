//! #DB in a guest: who intercepts it, what DR6 says, who is told.
//!
//! Source: `handle_exception_nmi` (vmx.c), `db_interception` (svm.c), `kvm_queue_exception_p` (x86.c), 6.12. VMX: the
//! cause is in the exit qualification, DR6 is not modified. SVM: the VMCB's DR6 is updated as if the exception had been
//! delivered.

use debugreg::{Dr, Dr6, Dr7};

use crate::event::{Outcome, Vector};
use crate::machine::{Machine, Vendor};
use crate::policy::Delta;
use crate::step::Probe;
use crate::vcpu::DebugExit;
use crate::{CpuId, VcpuId};

impl Machine {
    /// #DB in a guest that runs, with these events: KVM intercepts it, and it goes to the debugger or back into the
    /// guest. Old kernels intercept it only for a debugger, and the processor delivers it by itself otherwise.
    pub(super) fn guest_db<P: Probe>(
        &mut self,
        id: VcpuId,
        cpu: CpuId,
        events: u64,
        fault: bool,
        probe: &mut P,
    ) -> Outcome {
        let debugged = self.vcpu(id).debugger_gets_db(self.policy, events);
        if !self.vcpu(id).debugger_intercepts_db() && !self.policy.intercepts_db(self.options.vendor) {
            for registers in [&mut self.cpus[cpu.index()].bank.hardware, &mut self.vcpus[id.index()].own] {
                registers.dr6 = Dr6(registers.dr6).after_db(events).0;
                registers.dr7 &= !Dr7::GD;
            }
            let dr6 = self.cpu(cpu).bank.hardware.dr6;
            return Outcome::Exception { vector: Vector::Debug, dr6, fault };
        }
        if self.is_amd() {
            let hardware = &mut self.cpus[cpu.index()].bank.hardware;
            hardware.dr6 = Dr6(hardware.dr6).after_db(events).0;
        }
        // A register that was not loaded for the guest holds an address that is not its own (Z-10).
        let strangers = if self.policy.has(Delta::Z10) { 0 } else { Dr6::TRAPS & !u64::from(self.vcpu(id).loaded) };
        self.leave(id, cpu, probe);
        let events = events & !strangers;
        if debugged {
            let vcpu = self.vcpu(id);
            let dr6 = match self.options.vendor {
                Vendor::Amd => vcpu.vmcs.dr6 & !strangers,
                Vendor::Intel => events | Dr6::IDLE.0,
            };
            let told = DebugExit { dr6, dr7: vcpu.vmcs.dr7 };
            // `db_interception` to 5.6 fills in neither.
            let untold = self.is_amd() && self.policy.has(Delta::H32);
            return self.exit_debug(id, cpu, if untold { vcpu.debug_exit } else { told }, probe);
        }
        self.handle_guest_db(id, events);
        self.enter(id, cpu, probe);
        Outcome::Exception { vector: Vector::Debug, dr6: self.guest_dr(id, cpu, Dr::Status), fault }
    }

    /// The exit handler of #DB. Whether the debugger gets it or the guest: the guest's waits for the next entry.
    pub(super) fn handle_guest_db(&mut self, id: VcpuId, events: u64) {
        if !self.vcpu(id).debugger_gets_db(self.policy, events) {
            self.queue_db(id, events);
        }
    }

    /// A #DB for the guest, to be injected at the next entry.
    pub(super) fn queue_db(&mut self, id: VcpuId, events: u64) {
        let vcpu = &mut self.vcpus[id.index()];
        vcpu.pending_db = Some(Some(events));
        vcpu.own.dr6 = Dr6(vcpu.own.dr6).after_db(events).0;
    }

    /// `KVM_EXIT_DEBUG`: KVM_RUN ends, and its page says what there was.
    pub(super) fn exit_debug<P: Probe>(&mut self, id: VcpuId, cpu: CpuId, told: DebugExit, probe: &mut P) -> Outcome {
        self.vcpus[id.index()].debug_exit = told;
        self.return_to_user(id, cpu, probe);
        Outcome::ExitDebug { dr6: told.dr6, dr7: told.dr7 }
    }
}
