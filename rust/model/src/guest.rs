//! A guest: VM entry and exit, what its instructions do to the registers, and the ioctls of its VMM.
//!
//! What the processor does by itself (loading DR7 at entry, disarming it at exit) is here; what KVM does is in
//! [`crate::policy`]. Source: reference of VMX and SVM in Intel SDM vol. 3 ("VM Entries", "VM Exits") and AMD APM vol. 2
//! chapter 15; KVM's common code as cited at each function.

use debugreg::announce;
use debugreg::trip::{Access, trip};
use debugreg::{Breakpoint, Dr, Dr6, Dr7, Slot};

use crate::event::{DrAccess, ExitReason, GuestDebug, Insn, Misuse, Outcome, Vector};
use crate::machine::{Machine, Vendor};
use crate::policy::{Delta, DrHandling, common};
use crate::step::{Kvm, Mark, On, Probe};
use crate::{CpuId, VcpuId};

impl Machine {
    fn kvm<'a, P>(&'a mut self, id: VcpuId, cpu: CpuId, probe: &'a mut P) -> Kvm<'a, P> {
        Kvm { host: On { machine: self, cpu, probe }, id }
    }

    /// The CPU of a guest that is running.
    fn in_guest(&self, id: VcpuId) -> Result<CpuId, Misuse> {
        let cpu = self.task(self.vcpu(id).task).cpu;
        if self.cpu(cpu).guest == Some(id) { Ok(cpu) } else { Err(Misuse::NotInGuest(id)) }
    }

    /// The CPU of a vCPU whose guest is not running.
    fn out_of_guest(&self, id: VcpuId) -> Result<CpuId, Misuse> {
        match self.in_guest(id) {
            Ok(cpu) => Err(Misuse::InGuest(cpu, id)),
            Err(_) => Ok(self.task(self.vcpu(id).task).cpu),
        }
    }

    /// VM entry.
    pub(crate) fn vm_entry<P: Probe>(&mut self, id: VcpuId, probe: &mut P) -> Result<Outcome, Misuse> {
        let cpu = self.running_on(self.vcpu(id).task)?;
        self.enter(id, cpu, probe);
        Ok(Outcome::Ok)
    }

    fn enter<P: Probe>(&mut self, id: VcpuId, cpu: CpuId, probe: &mut P) {
        let before = self.cpu(cpu).bank.cost.touched();
        let policy = self.policy;
        if policy.has(Delta::Announce) {
            let loan = announce::lend(&mut On { machine: self, cpu, probe });
            self.cpus[cpu.index()].loan = Some(loan);
        }
        let vcpu = &mut self.vcpus[id.index()];
        if vcpu.pending_db.is_some() {
            vcpu.own.dr7 &= !Dr7::GD;
        }
        let mut kvm = self.kvm(id, cpu, probe);
        common::inject_db(&mut kvm);
        policy.vm_entry(&mut kvm);
        kvm.host.mark(Mark::Entry);
        self.count_skip(cpu, before);
        self.hardware_entry(id, cpu);
    }

    /// What VMX and SVM load by themselves.
    fn hardware_entry(&mut self, id: VcpuId, cpu: CpuId) {
        let vmcs = self.vcpu(id).vmcs;
        let cpu = &mut self.cpus[cpu.index()];
        cpu.bank.hardware.dr7 = vmcs.dr7 | Dr7::FIXED;
        if self.options.vendor == Vendor::Amd {
            cpu.bank.hardware.dr6 = vmcs.dr6;
        }
        cpu.guest = Some(id);
    }

    /// What VMX and SVM save by themselves, and that both leave DR7 disarmed. DR6 stays as the guest had it: the manuals
    /// do not list it among what an exit restores.
    fn hardware_exit(&mut self, id: VcpuId, cpu: CpuId) {
        let cpu = &mut self.cpus[cpu.index()];
        let vmcs = &mut self.vcpus[id.index()].vmcs;
        vmcs.dr7 = cpu.bank.hardware.dr7;
        if self.options.vendor == Vendor::Amd {
            vmcs.dr6 = cpu.bank.hardware.dr6;
        }
        cpu.bank.hardware.dr7 = Dr7::RESET.0;
        cpu.guest = None;
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
        self.leave(id, cpu, probe);
        match reason {
            ExitReason::DrAccess(access) => {
                self.handle_dr(id, cpu, access, probe);
            }
            ExitReason::Db(Some(events)) => self.handle_guest_db(id, events),
            // Which events is not known: nothing can be said of the guest's DR6.
            _ => {}
        }
        Ok(Outcome::Ok)
    }

    /// An exit that KVM handles inside its loop: the hardware leaves and enters, KVM touches no debug register, or
    /// reloads one that it should not (H-01).
    fn reenter<P: Probe>(&mut self, id: VcpuId, cpu: CpuId, probe: &mut P) {
        let policy = self.policy;
        self.hardware_exit(id, cpu);
        policy.vm_reentry(&mut self.kvm(id, cpu, probe));
        self.hardware_entry(id, cpu);
    }

    fn leave<P: Probe>(&mut self, id: VcpuId, cpu: CpuId, probe: &mut P) {
        let before = self.cpu(cpu).bank.cost.touched();
        let policy = self.policy;
        self.hardware_exit(id, cpu);
        policy.vm_exit(&mut self.kvm(id, cpu, probe));
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
        match self.cpu(cpu).guest {
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
        policy.vm_exit(&mut self.kvm(guest, cpu, probe));
        self.take_back(cpu, probe);
        self.enter(guest, cpu, probe);
    }

    /// The exit handler of a MOV DR: opens the window and lets the guest try again, or emulates the one access.
    fn handle_dr<P: Probe>(&mut self, id: VcpuId, cpu: CpuId, access: DrAccess, probe: &mut P) -> DrHandling {
        self.cpus[cpu.index()].bank.cost.vm_exits += 1;
        let policy = self.policy;
        let mut kvm = self.kvm(id, cpu, probe);
        let handling = policy.dr_access(&mut kvm);
        if let (DrHandling::Emulate, Some(value)) = (handling, access.write)
            && let Some(dr) = Dr::from_number(access.dr)
        {
            common::set_dr(&mut kvm, dr, value);
            self.vcpus[id.index()].own.set(dr, fixed(dr, value));
        }
        handling
    }

    /// The exit handler of #DB. Whether the debugger gets it or the guest: the guest's waits for the next entry.
    fn handle_guest_db(&mut self, id: VcpuId, events: u64) {
        if !self.vcpu(id).debugger_gets_db() {
            self.queue_db(id, events);
        }
    }

    /// A #DB for the guest, to be injected at the next entry.
    fn queue_db(&mut self, id: VcpuId, events: u64) {
        let vcpu = &mut self.vcpus[id.index()];
        vcpu.pending_db = Some(Some(events));
        vcpu.own.dr6 = Dr6(vcpu.own.dr6).after_db(events).0;
    }

    /// #DB in a guest that runs, with these events: KVM intercepts it, and it goes to the debugger or back into the
    /// guest. Old kernels intercept it only for a debugger, and the processor delivers it by itself otherwise.
    fn guest_db<P: Probe>(&mut self, id: VcpuId, cpu: CpuId, events: u64, fault: bool, probe: &mut P) -> Outcome {
        if !self.vcpu(id).is_debugged() && !self.policy.intercepts_db(self.options.vendor) {
            for registers in [&mut self.cpus[cpu.index()].bank.hardware, &mut self.vcpus[id.index()].own] {
                registers.dr6 = Dr6(registers.dr6).after_db(events).0;
                registers.dr7 &= !Dr7::GD;
            }
            let dr6 = self.cpu(cpu).bank.hardware.dr6;
            return Outcome::Exception { vector: Vector::Debug, dr6, fault };
        }
        if self.options.vendor == Vendor::Amd {
            // The VMCB is updated as if the exception had been delivered.
            let hardware = &mut self.cpus[cpu.index()].bank.hardware;
            hardware.dr6 = Dr6(hardware.dr6).after_db(events).0;
        }
        self.leave(id, cpu, probe);
        let vcpu = self.vcpu(id);
        if vcpu.debugger_gets_db() {
            let dr6 = match self.options.vendor {
                Vendor::Amd => vcpu.vmcs.dr6,
                Vendor::Intel => events | Dr6::IDLE.0,
            };
            return Outcome::ExitDebug { dr6, dr7: vcpu.vmcs.dr7 };
        }
        self.handle_guest_db(id, events);
        self.enter(id, cpu, probe);
        Outcome::Exception { vector: Vector::Debug, dr6: self.guest_dr(id, cpu, Dr::Status), fault }
    }

    /// A memory or port access of the guest.
    pub(crate) fn guest_access<P: Probe>(
        &mut self,
        id: VcpuId,
        access: Access,
        insn: Insn,
        emulated: bool,
        probe: &mut P,
    ) -> Result<Outcome, Misuse> {
        let cpu = self.in_guest(id)?;
        if insn != Insn::Plain {
            return Err(Misuse::NotExpressible("insn= in a guest"));
        }
        let mut registers = self.cpu(cpu).bank.hardware;
        if emulated {
            // KVM's emulator compares code breakpoints with the effective registers, and nothing else.
            let vcpu = self.vcpu(id);
            registers.dr = vcpu.eff_db;
            registers.dr7 = vcpu.effective_dr7();
        }
        let execute = access.what == debugreg::trip::What::Execute;
        let tripped = trip(&registers, access);
        if tripped.armed == 0 || emulated && !execute {
            return Ok(Outcome::nothing());
        }
        let shown = tripped.armed | if self.options.disabled_match { tripped.disabled } else { 0 };
        Ok(self.guest_db(id, cpu, u64::from(shown), execute, probe))
    }

    /// MOV to a debug register in the guest.
    pub(crate) fn mov_to_dr<P: Probe>(
        &mut self,
        id: VcpuId,
        number: u8,
        value: u64,
        cpl: u8,
        probe: &mut P,
    ) -> Result<Outcome, Misuse> {
        self.mov_dr(id, number, Some(value), cpl, probe)
    }

    /// MOV from a debug register in the guest.
    pub(crate) fn mov_from_dr<P: Probe>(
        &mut self,
        id: VcpuId,
        number: u8,
        cpl: u8,
        probe: &mut P,
    ) -> Result<Outcome, Misuse> {
        self.mov_dr(id, number, None, cpl, probe)
    }

    /// SVM checks CPL and GD before it intercepts; VMX exits first, and KVM repeats the checks (`handle_dr`).
    fn mov_dr<P: Probe>(
        &mut self,
        id: VcpuId,
        number: u8,
        write: Option<u64>,
        cpl: u8,
        probe: &mut P,
    ) -> Result<Outcome, Misuse> {
        let cpu = self.in_guest(id)?;
        let Some(dr) = Dr::from_number(number) else { return Ok(self.exception(id, cpu, Vector::InvalidOpcode)) };
        let intercepted = self.vcpu(id).vmcs.dr_intercept;
        let exits_first = intercepted && self.options.vendor == Vendor::Intel;
        if !exits_first {
            let dr7 = self.cpu(cpu).bank.hardware.dr7;
            match mov_dr_fault(dr, write, cpl, dr7) {
                Some(Vector::Debug) => return Ok(self.guest_db(id, cpu, Dr6::BD, true, probe)),
                Some(vector) => return Ok(self.exception(id, cpu, vector)),
                None => {}
            }
        }
        if intercepted {
            self.leave(id, cpu, probe);
            let cpl = if self.policy.has(Delta::H08) { 0 } else { cpl };
            let fault = if exits_first { mov_dr_fault(dr, write, cpl, self.vcpu(id).vmcs.dr7) } else { None };
            if let Some(vector) = fault {
                self.cpus[cpu.index()].bank.cost.vm_exits += 1;
                return Ok(self.inject(id, cpu, vector, probe));
            }
            let handling = self.handle_dr(id, cpu, DrAccess { dr: number, write }, probe);
            self.enter(id, cpu, probe);
            if handling == DrHandling::Emulate {
                let broken = exits_first && matches!(number, 4 | 5) && self.policy.has(Delta::H16);
                return Ok(match write {
                    Some(_) => Outcome::Ok,
                    None if broken => Outcome::Value(0),
                    None => Outcome::Value(self.guest_dr(id, cpu, dr)),
                });
            }
        }
        // The window is open: the instruction runs natively.
        Ok(match write {
            Some(value) => {
                let value = fixed(dr, value);
                self.cpus[cpu.index()].bank.hardware.set(dr, value);
                self.vcpus[id.index()].own.set(dr, value);
                Outcome::Ok
            }
            None => Outcome::Value(self.cpu(cpu).bank.hardware.get(dr)),
        })
    }

    /// The exit handler of a MOV DR found that it faults: #DB is the debugger's if it owns the registers.
    fn inject<P: Probe>(&mut self, id: VcpuId, cpu: CpuId, vector: Vector, probe: &mut P) -> Outcome {
        if vector == Vector::Debug {
            let vcpu = self.vcpu(id);
            if vcpu.debugger_owns() {
                let dr6 = if self.policy.has(Delta::H07) { vcpu.dr6 } else { Dr6::BD | Dr6::IDLE.0 };
                return Outcome::ExitDebug { dr6, dr7: vcpu.vmcs.dr7 };
            }
            self.queue_db(id, Dr6::BD);
        }
        self.enter(id, cpu, probe);
        self.exception(id, cpu, vector)
    }

    fn exception(&self, id: VcpuId, cpu: CpuId, vector: Vector) -> Outcome {
        Outcome::Exception { vector, dr6: self.guest_dr(id, cpu, Dr::Status), fault: true }
    }

    /// What the guest would read from one of its registers now.
    fn guest_dr(&self, id: VcpuId, cpu: CpuId, dr: Dr) -> u64 {
        let vcpu = self.vcpu(id);
        if vcpu.vmcs.dr_intercept {
            self.policy.get_dr(vcpu, dr, self.options.vendor)
        } else {
            self.cpu(cpu).bank.hardware.get(dr)
        }
    }

    /// `kvm_arch_vcpu_ioctl_set_guest_debug` (6.12): nothing is validated.
    pub(crate) fn set_guest_debug<P: Probe>(
        &mut self,
        id: VcpuId,
        debug: GuestDebug,
        probe: &mut P,
    ) -> Result<Outcome, Misuse> {
        let cpu = self.out_of_guest(id)?;
        let vcpu = &mut self.vcpus[id.index()];
        let injects = debug.control & GuestDebug::INJECT_DB != 0;
        if injects && vcpu.pending_db.is_some() {
            return Ok(Outcome::Refused(crate::Refusal::new(
                crate::Errno::EBUSY,
                "an exception is waiting to be injected already",
            )));
        }
        // Without ENABLE the call switches everything off.
        let enabled = debug.control & GuestDebug::ENABLE != 0;
        vcpu.debug = if enabled { debug } else { GuestDebug::default() };
        if vcpu.debugger_owns() {
            vcpu.eff_db = debug.dr;
            vcpu.guest_debug_dr7 = debug.dr7;
        } else {
            vcpu.eff_db = vcpu.db;
        }
        if injects {
            // Without events: DR6 is the debugger's business.
            vcpu.pending_db = Some(None);
        }
        common::update_dr7(&mut self.kvm(id, cpu, probe));
        Ok(Outcome::Ok)
    }

    /// `kvm_vcpu_ioctl_x86_get_debugregs`: the guest-visible values, never the debugger's.
    pub(crate) fn get_debugregs(&self, id: VcpuId) -> Result<Outcome, Misuse> {
        self.out_of_guest(id)?;
        self.policy.has_debugregs()?;
        let vcpu = self.vcpu(id);
        let dr6 = self.policy.get_dr(vcpu, Dr::Status, self.options.vendor);
        Ok(Outcome::Registers(debugreg::Registers { dr: vcpu.db, dr6, dr7: vcpu.dr7 }))
    }

    /// `kvm_vcpu_ioctl_x86_set_debugregs`: EINVAL for the upper halves of DR6 and DR7, everything else is stored raw.
    pub(crate) fn set_debugregs<P: Probe>(
        &mut self,
        id: VcpuId,
        dr: [Option<u64>; 4],
        dr6: Option<u64>,
        dr7: Option<u64>,
        probe: &mut P,
    ) -> Result<Outcome, Misuse> {
        let cpu = self.out_of_guest(id)?;
        self.policy.has_debugregs()?;
        if [dr6, dr7].into_iter().flatten().any(|value| value > u64::from(u32::MAX)) {
            return Ok(Outcome::Refused(crate::Refusal::new(
                crate::Errno::EINVAL,
                "bits 63:32 of dr6 and dr7 must be zero (kvm_vcpu_ioctl_x86_set_debugregs)",
            )));
        }
        let vcpu = &mut self.vcpus[id.index()];
        for (i, value) in dr.into_iter().enumerate() {
            if let Some(value) = value {
                vcpu.db[i] = value;
            }
        }
        vcpu.dr7 = dr7.unwrap_or(vcpu.dr7);
        self.load_guest_view(id, cpu, dr6, probe);
        Ok(Outcome::Ok)
    }

    /// INIT (`kvm_vcpu_reset`): the debugger's settings survive.
    pub(crate) fn init<P: Probe>(&mut self, id: VcpuId, probe: &mut P) -> Result<Outcome, Misuse> {
        let cpu = self.out_of_guest(id)?;
        let vcpu = &mut self.vcpus[id.index()];
        vcpu.db = [0; 4];
        vcpu.dr7 = Dr7::RESET.0;
        self.load_guest_view(id, cpu, Some(Dr6::IDLE.0), probe);
        Ok(Outcome::Ok)
    }

    /// What follows every change of the guest's registers from outside.
    fn load_guest_view<P: Probe>(&mut self, id: VcpuId, cpu: CpuId, dr6: Option<u64>, probe: &mut P) {
        let policy = self.policy;
        let mut kvm = self.kvm(id, cpu, probe);
        if let Some(dr6) = dr6 {
            common::store_dr6(&mut kvm, dr6);
        }
        if !policy.has(Delta::H11) {
            common::update_dr0123(&mut kvm);
        }
        if policy.has(Delta::H13) {
            common::drop_debuggers_dr7(&mut kvm);
        } else {
            common::update_dr7(&mut kvm);
        }
        let vcpu = self.vcpu(id);
        let own = debugreg::Registers { dr: vcpu.db, dr6: dr6.unwrap_or(vcpu.own.dr6), dr7: vcpu.dr7 };
        self.vcpus[id.index()].own = own;
    }

    /// Sets a guest register as a trace shows that the guest itself did, whether or not the access exits.
    pub fn observe_guest_dr(&mut self, id: VcpuId, dr: Dr, value: u64) {
        let cpu = self.task(self.vcpu(id).task).cpu;
        let value = fixed(dr, value);
        self.vcpus[id.index()].own.set(dr, value);
        if self.cpu(cpu).guest == Some(id) {
            self.cpus[cpu.index()].bank.hardware.set(dr, value);
        }
    }

    /// The breakpoint that a guest has in a slot by its own account.
    pub fn guest_breakpoint(&self, id: VcpuId, slot: Slot) -> Breakpoint {
        let own = self.vcpu(id).own;
        Dr7(own.dr7).breakpoint(slot, own.dr[slot.index()])
    }
}

/// Why a MOV DR faults, given the DR7 whose GD counts: #GP for the privilege comes before #DB, and a value with bits
/// 63:32 set comes last.
fn mov_dr_fault(dr: Dr, write: Option<u64>, cpl: u8, dr7: u64) -> Option<Vector> {
    let upper = matches!(dr, Dr::Status | Dr::Control) && write.is_some_and(|value| value > u64::from(u32::MAX));
    if cpl > 0 {
        Some(Vector::GeneralProtection)
    } else if dr7 & Dr7::GD != 0 {
        Some(Vector::Debug)
    } else {
        upper.then_some(Vector::GeneralProtection)
    }
}

/// What a register holds after a MOV of `value` by a guest without RTM and bus-lock detection.
pub(crate) fn fixed(dr: Dr, value: u64) -> u64 {
    match dr {
        Dr::Address(_) => value,
        Dr::Status => Dr6::from_bits_truncate(value).0 | Dr6::RTM | Dr6::BLD,
        Dr::Control => Dr7::from_bits_truncate(value).0,
    }
}
