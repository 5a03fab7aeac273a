//! VM entry and exit, and the interrupts that cause them.

use debugreg::{Dr7, announce};

use crate::event::{ExitReason, Misuse, Outcome};
use crate::machine::Machine;
use crate::policy::hooks::World;
use crate::policy::{Delta, common};
use crate::step::{Mark, On, Probe};
use crate::vcpu::Exit;
use crate::{CpuId, TaskId, VcpuId};

impl Machine {
    /// VM entry.
    pub(crate) fn vm_entry<P: Probe>(&mut self, id: VcpuId, probe: &mut P) -> Result<Outcome, Misuse> {
        let cpu = self.running_on(self.thread(id))?;
        Ok(self.enter(id, cpu, probe))
    }

    pub(super) fn enter<P: Probe>(&mut self, id: VcpuId, cpu: CpuId, probe: &mut P) -> Outcome {
        let before = self.touched(cpu);
        let policy = self.policy;
        if policy.has(Delta::Announce) {
            let loan = announce::lend(&mut On { machine: self, cpu, probe });
            self.cpus[cpu.index()].loan = Some(loan);
        }
        let is_loaded = std::mem::replace(&mut *self.in_run[id.index()], true);
        let vcpu = &mut self.vcpus[id.index()];
        vcpu.loaded = 0;
        if vcpu.pending_db.is_some() {
            vcpu.own.dr7 &= !Dr7::GD;
        }
        let mut kvm = self.kvm(id, cpu, probe);
        if !is_loaded {
            policy.vcpu_load(&mut kvm);
        }
        common::inject(&mut kvm);
        policy.vm_entry(&mut kvm);
        if let Some(loan) = kvm.host.machine.cpu(cpu).loan.filter(|_| policy.world() != World::Software) {
            announce::settle(&mut kvm.host, loan);
        }
        kvm.host.mark(Mark::Entry);
        kvm.host.enter_guest();
        self.count_skip(cpu, before);
        let refused = self.vcpu(id).vmcs.dr7 > u64::from(u32::MAX);
        if refused && policy.world() == World::Virtualised {
            return self.fail_entry(id, cpu, probe);
        }
        self.hardware_entry(id, cpu);
        Outcome::Ok
    }

    /// Bits 63:32 of the guest's DR7 must be zero (SDM vol. 3, "Checks on Guest Control Registers, Debug Registers, and
    /// MSRs"; APM vol. 2, 15.5.1). The processor is back with DR7 disarmed, as after an exit.
    fn fail_entry<P: Probe>(&mut self, id: VcpuId, cpu: CpuId, probe: &mut P) -> Outcome {
        let policy = self.policy;
        self.cpus[cpu.index()].bank.hardware.dr7 = Dr7::RESET.0;
        policy.vm_exit(&mut self.kvm(id, cpu, probe));
        self.take_back(cpu, probe);
        self.return_to_user(id, cpu, probe);
        Outcome::ExitFailEntry
    }

    /// VM exit, with its handler.
    pub(crate) fn vm_exit<P: Probe>(
        &mut self,
        id: VcpuId,
        reason: ExitReason,
        probe: &mut P,
    ) -> Result<Outcome, Misuse> {
        let cpu = self.in_guest(id)?;
        if reason == ExitReason::Fastpath {
            self.reenter(id, cpu, probe);
            return Ok(Outcome::Ok);
        }
        self.vcpus[id.index()].exit = match reason {
            ExitReason::DrAccess(_) => Exit::MovDr,
            ExitReason::Db(_) => Exit::Db,
            ExitReason::Other("nmi") => Exit::Nmi,
            ExitReason::Fastpath | ExitReason::Other(_) => Exit::Other,
        };
        if let ExitReason::Db(Some(events)) = reason {
            self.hardware_db(cpu, events);
        }
        self.leave(id, cpu, probe);
        match reason {
            ExitReason::DrAccess(access) => {
                self.handle_dr(id, cpu, access, probe);
            }
            ExitReason::Db(Some(events)) => self.handle_guest_db(id, events),
            // It is the VMM that performs port I/O.
            ExitReason::Other("io") => self.return_to_user(id, cpu, probe),
            // Which events is not known: nothing can be said of the guest's DR6.
            ExitReason::Db(None) | ExitReason::Fastpath | ExitReason::Other(_) => {}
        }
        Ok(Outcome::Ok)
    }

    /// An exit that KVM handles inside its loop: the hardware leaves and enters, KVM touches no debug register, or
    /// reloads one that it should not (H-01).
    fn reenter<P: Probe>(&mut self, id: VcpuId, cpu: CpuId, probe: &mut P) {
        let policy = self.policy;
        self.hardware_exit(id, cpu);
        let mut kvm = self.kvm(id, cpu, probe);
        policy.vm_reentry(&mut kvm);
        kvm.host.enter_guest();
        self.hardware_entry(id, cpu);
    }

    pub(super) fn leave<P: Probe>(&mut self, id: VcpuId, cpu: CpuId, probe: &mut P) {
        let before = self.touched(cpu);
        let policy = self.policy;
        self.hardware_exit(id, cpu);
        policy.vm_exit(&mut self.kvm(id, cpu, probe));
        self.vcpus[id.index()].exit = Exit::Other;
        self.take_back(cpu, probe);
        self.count_skip(cpu, before);
    }

    /// Under the delta `announce`: the registers are the host's again.
    fn take_back<P: Probe>(&mut self, cpu: CpuId, probe: &mut P) {
        if let Some(loan) = self.cpus[cpu.index()].loan.take() {
            announce::take_back_from_guest(&mut On { machine: self, cpu, probe }, loan);
        }
    }

    /// Something that another CPU asks of this one: if it runs a guest, the interrupt is a VM exit, and the guest goes on
    /// afterwards.
    pub(crate) fn interrupt<P: Probe>(
        &mut self,
        cpu: CpuId,
        probe: &mut P,
        handler: impl FnOnce(&mut Machine, &mut P),
    ) {
        match self.guest(cpu) {
            None => handler(self, probe),
            Some(guest) => {
                self.leave(guest, cpu, probe);
                handler(self, probe);
                self.enter(guest, cpu, probe);
            }
        }
    }

    /// An exit whose cause is handled before KVM's own part of it.
    pub(crate) fn exit_and_enter<P: Probe, T>(
        &mut self,
        guest: VcpuId,
        cpu: CpuId,
        probe: &mut P,
        handler: impl FnOnce(&mut Machine, &mut P) -> T,
    ) -> T {
        self.nmi_exit(guest, cpu);
        let outcome = handler(self, probe);
        self.nmi_return(guest, cpu, probe);
        outcome
    }

    /// An NMI ends a guest's turn: the processor's part, before the NMI's handler.
    pub(crate) fn nmi_exit(&mut self, guest: VcpuId, cpu: CpuId) {
        self.hardware_exit(guest, cpu);
    }

    /// KVM's part, after it; the guest goes on.
    pub(crate) fn nmi_return<P: Probe>(&mut self, guest: VcpuId, cpu: CpuId, probe: &mut P) {
        let policy = self.policy;
        self.vcpus[guest.index()].exit = Exit::Nmi;
        policy.vm_exit(&mut self.kvm(guest, cpu, probe));
        self.vcpus[guest.index()].exit = Exit::Other;
        self.take_back(cpu, probe);
        self.enter(guest, cpu, probe);
    }

    /// The thread of a vCPU is back in user space, or calls from there: KVM_RUN has ended (`vcpu_put`).
    pub(super) fn return_to_user<P: Probe>(&mut self, id: VcpuId, cpu: CpuId, probe: &mut P) {
        if *self.in_run[id.index()] {
            *self.in_run[id.index()] = false;
            let policy = self.policy;
            policy.vcpu_put(&mut self.kvm(id, cpu, probe));
        }
    }

    /// The thread of a vCPU leaves its CPU inside KVM_RUN (`kvm_sched_out`).
    pub(crate) fn preempt_vcpus<P: Probe>(&mut self, task: TaskId, cpu: CpuId, probe: &mut P) {
        for id in (0..self.vcpus.len()).map(VcpuId::from) {
            if self.thread(id) == task {
                self.return_to_user(id, cpu, probe);
            }
        }
    }
}
