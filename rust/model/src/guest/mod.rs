//! A guest: VM entry and exit, what its instructions do to the registers, and the ioctls of its VMM.
//!
//! What the processor does by itself (loading DR7 at entry, disarming it at exit) is here; what KVM does is in
//! [`crate::policy`]. Source: Intel SDM vol. 3 ("VM Entries", "VM Exits") and AMD APM vol. 2 chapter 15; KVM's common code
//! as cited at each function.

mod access;
mod db;
mod emulator;
mod entry;
mod hardware;
mod ioctl;
mod mov_dr;
mod nested;
mod system;

use debugreg::{Breakpoint, Dr, Dr6, Dr7, Registers, Slot};

use crate::event::Misuse;
use crate::machine::{Machine, Vendor};
use crate::policy::common;
use crate::policy::hooks::World;
use crate::policy::pvm::filtered;
use crate::step::{Kvm, On};
use crate::{CpuId, VcpuId};

impl Machine {
    fn kvm<'a, P>(&'a mut self, id: VcpuId, cpu: CpuId, probe: &'a mut P) -> Kvm<'a, P> {
        Kvm { host: On { machine: self, cpu, probe }, id }
    }

    /// The CPU of a guest that is running.
    fn in_guest(&self, id: VcpuId) -> Result<CpuId, Misuse> {
        let cpu = self.task(self.thread(id)).cpu;
        if self.guest(cpu) == Some(id) { Ok(cpu) } else { Err(Misuse::NotInGuest(id)) }
    }

    /// The CPU of a vCPU whose guest is not running.
    fn out_of_guest(&self, id: VcpuId) -> Result<CpuId, Misuse> {
        match self.in_guest(id) {
            Ok(cpu) => Err(Misuse::InGuest(cpu, id)),
            Err(_) => Ok(self.task(self.thread(id)).cpu),
        }
    }

    /// What KVM does to a guest's registers behind its back, it cannot do to one whose state is protected.
    fn unprotected(&self) -> Result<(), Misuse> {
        self.policy.is_kvm()?;
        if self.policy.world().is_protected() {
            return Err(Misuse::NotExpressible("KVM cannot see the registers of a protected guest"));
        }
        Ok(())
    }

    /// The registers that should be in force while a guest runs; under PVM, as far as its filter lets them through.
    pub(crate) fn effective(&self, id: VcpuId) -> Registers {
        let effective = self.vcpu(id).effective();
        match self.policy.world() {
            World::Software => Registers { dr7: filtered(effective.dr7, effective.dr), ..effective },
            _ => effective,
        }
    }

    fn is_amd(&self) -> bool {
        self.options.vendor == Vendor::Amd
    }

    /// What KVM would answer for one of the guest's registers now.
    fn kvm_get_dr(&self, id: VcpuId, dr: Dr) -> u64 {
        common::get_dr(self.policy, self.options.vendor, self.vcpu(id), dr)
    }

    /// What the guest would read from one of its registers now.
    fn guest_dr(&self, id: VcpuId, cpu: CpuId, dr: Dr) -> u64 {
        let vmcb_has_it = dr == Dr::Status && self.policy.dr6_in_vmcb(self.options.vendor);
        if !self.mov_dr_exits(id, dr.number(), false) || vmcb_has_it && !self.vcpu(id).debugger_owns() {
            self.cpu(cpu).bank.hardware.get(dr)
        } else {
            self.kvm_get_dr(id, dr)
        }
    }

    /// Sets a guest register as a trace shows that the guest itself did, whether or not the access exits.
    pub fn observe_guest_dr(&mut self, id: VcpuId, dr: Dr, value: u64) {
        let cpu = self.task(self.thread(id)).cpu;
        self.vcpus[id.index()].own.set(dr, fixed(dr, value));
        if self.guest(cpu) == Some(id) {
            self.write_hardware(cpu, dr, value);
        }
    }

    /// Whether a guest that runs would raise #DB by a MOV DR that does not exit: DR7.GD.
    pub fn detects_mov_dr(&self, id: VcpuId) -> bool {
        self.in_guest(id).is_ok_and(|cpu| self.cpu(cpu).bank.hardware.dr7 & Dr7::GD != 0)
    }

    /// Finds a guest running on a CPU, as a recording does that begins after its entry: nothing is executed.
    pub fn find_in_guest(&mut self, id: VcpuId, cpu: CpuId) {
        self.hardware_entry(id, cpu);
    }

    /// Finds that a #DB of unknown events waits for a guest, as the exit shows that it made if nobody debugs it.
    pub fn find_db(&mut self, id: VcpuId) {
        let vcpu = &mut self.vcpus[id.index()];
        if !vcpu.is_debugged() && vcpu.pending_db.is_none() {
            vcpu.pending_db = Some(None);
        }
    }

    /// Finds whether a guest's MOV DR exit, as a recording does that begins after what decided it. A policy without lazy
    /// windows has none to find open.
    pub fn find_window(&mut self, id: VcpuId, open: bool) {
        let open = open && self.policy.opens_windows();
        let vcpu = &mut self.vcpus[id.index()];
        vcpu.wont_exit = open;
        vcpu.vmcs.dr_intercept = !open;
    }

    /// Finds what a guest has in its registers, as a recording does that begins after it was put there.
    pub fn find_guest_registers(&mut self, id: VcpuId, registers: Registers) {
        let vcpu = &mut self.vcpus[id.index()];
        (vcpu.own, vcpu.db, vcpu.eff_db) = (registers, registers.dr, registers.dr);
        (vcpu.dr7, vcpu.vmcs.dr7) = (registers.dr7, registers.dr7);
        vcpu.bp_enabled = Dr7(registers.dr7).any_armed();
    }

    /// The breakpoint that a guest has in a slot by its own account.
    pub fn guest_breakpoint(&self, id: VcpuId, slot: Slot) -> Breakpoint {
        let own = self.vcpu(id).own;
        Dr7(own.dr7).breakpoint(slot, own.dr[slot.index()])
    }
}

/// What a register holds after a MOV of `value` on a part without RTM and bus-lock detection.
pub(crate) fn fixed(dr: Dr, value: u64) -> u64 {
    match dr {
        Dr::Address(_) => value,
        Dr::Status => Dr6::from_bits_truncate(value).0 | Dr6::RTM | Dr6::BLD,
        Dr::Control => Dr7::from_bits_truncate(value).0,
    }
}
