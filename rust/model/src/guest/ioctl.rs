//! What the VMM of a guest asks of KVM.

use debugreg::{Dr, Dr6, Dr7};

use super::fixed;
use crate::event::{GuestDebug, Misuse, Outcome};
use crate::machine::Machine;
use crate::policy::{Delta, common};
use crate::step::Probe;
use crate::{Errno, Refusal, VcpuId};

impl Machine {
    /// `kvm_arch_vcpu_ioctl_set_guest_debug` (6.12): nothing is validated.
    pub(crate) fn set_guest_debug<P: Probe>(
        &mut self,
        id: VcpuId,
        debug: GuestDebug,
        probe: &mut P,
    ) -> Result<Outcome, Misuse> {
        self.policy.is_kvm()?;
        let cpu = self.out_of_guest(id)?;
        self.return_to_user(id, cpu, probe);
        if let Some(refusal) = self.protected() {
            return Ok(refusal);
        }
        let injects = |bit| debug.control & bit != 0;
        let waits = self.vcpu(id).pending_db.is_some() || self.vcpu(id).pending_bp;
        if injects(GuestDebug::INJECT_DB | GuestDebug::INJECT_BP) && waits {
            return Ok(refused(Errno::EBUSY, "an exception is waiting to be injected already"));
        }
        if !self.policy.has(Delta::Z5) && debug.control & GuestDebug::USE_HW_BP != 0 && has_upper(debug.dr7) {
            return Ok(refused(Errno::EINVAL, "bits 63:32 of dr7 must be zero"));
        }
        let policy = self.policy;
        let mut kvm = self.kvm(id, cpu, probe);
        // Without ENABLE the call switches everything off.
        let enabled = debug.control & GuestDebug::ENABLE != 0;
        if enabled && !policy.has(Delta::Z1) {
            common::shut_window(&mut kvm);
        }
        let vcpu = kvm.vcpu();
        vcpu.debug = if enabled { debug } else { GuestDebug::default() };
        if vcpu.debugger_owns() {
            vcpu.eff_db = debug.dr;
            vcpu.guest_debug_dr7 = debug.dr7;
        } else {
            vcpu.eff_db = vcpu.db;
        }
        if injects(GuestDebug::INJECT_DB) {
            // Without events: DR6 is the debugger's business.
            vcpu.pending_db = Some(None);
        } else if injects(GuestDebug::INJECT_BP) {
            vcpu.pending_bp = true;
        }
        common::update_dr7(&mut kvm);
        Ok(Outcome::Ok)
    }

    /// `kvm_vcpu_ioctl_x86_get_debugregs`: the guest-visible values, never the debugger's.
    pub(crate) fn get_debugregs<P: Probe>(&mut self, id: VcpuId, probe: &mut P) -> Result<Outcome, Misuse> {
        let cpu = self.out_of_guest(id)?;
        self.policy.is_kvm()?;
        self.policy.has_debugregs()?;
        self.return_to_user(id, cpu, probe);
        if let Some(refusal) = self.protected() {
            return Ok(refusal);
        }
        // `kvm_handle_exception_payload_quirk`: who has not asked for payloads finds them delivered.
        if let Some(Some(payload)) = self.vcpu(id).pending_db {
            self.vcpus[id.index()].pending_db = Some(None);
            common::deliver_events(&mut self.kvm(id, cpu, probe), payload);
        }
        let [dr6, dr7] = [Dr::Status, Dr::Control].map(|dr| self.kvm_get_dr(id, dr));
        Ok(Outcome::Registers(debugreg::Registers { dr: self.vcpu(id).db, dr6, dr7 }))
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
        self.policy.is_kvm()?;
        self.policy.has_debugregs()?;
        self.return_to_user(id, cpu, probe);
        if let Some(refusal) = self.protected() {
            return Ok(refusal);
        }
        let policy = self.policy;
        if !policy.has(Delta::H12) && [dr6, dr7].into_iter().flatten().any(has_upper) {
            return Ok(refused(
                Errno::EINVAL,
                "bits 63:32 of dr6 and dr7 must be zero (kvm_vcpu_ioctl_x86_set_debugregs)",
            ));
        }
        let stored = |dr, value| if policy.has(Delta::Z7) { value } else { fixed(dr, value) };
        let (dr6, dr7) = (dr6.map(|value| stored(Dr::Status, value)), dr7.map(|value| stored(Dr::Control, value)));
        let mut kvm = self.kvm(id, cpu, probe);
        let vcpu = kvm.vcpu();
        for (has, value) in vcpu.db.iter_mut().zip(dr) {
            *has = value.unwrap_or(*has);
        }
        vcpu.dr7 = dr7.unwrap_or(vcpu.dr7);
        if let Some(dr6) = dr6 {
            common::store_dr6(&mut kvm, dr6);
        }
        if !policy.has(Delta::H11) {
            common::update_dr0123(&mut kvm);
        }
        if !policy.has(Delta::H10) {
            common::update_dr7(&mut kvm);
        }
        self.own_view(id, dr6);
        Ok(Outcome::Ok)
    }

    /// INIT (`kvm_vcpu_reset`): what waited to be injected is gone, the debugger's settings survive.
    pub(crate) fn init<P: Probe>(&mut self, id: VcpuId, probe: &mut P) -> Result<Outcome, Misuse> {
        self.unprotected()?;
        let cpu = self.out_of_guest(id)?;
        self.return_to_user(id, cpu, probe);
        let policy = self.policy;
        let mut kvm = self.kvm(id, cpu, probe);
        let vcpu = kvm.vcpu();
        (vcpu.pending_db, vcpu.pending_bp) = (None, false);
        (vcpu.smram, vcpu.nested, vcpu.mov_ss) = (None, None, false);
        vcpu.db = [0; 4];
        vcpu.dr7 = Dr7::RESET.0;
        common::store_dr6(&mut kvm, Dr6::IDLE.0);
        if !policy.has(Delta::H11) {
            common::update_dr0123(&mut kvm);
        }
        if policy.has(Delta::H13) {
            common::drop_debuggers_dr7(&mut kvm);
        } else {
            common::update_dr7(&mut kvm);
        }
        self.own_view(id, Some(Dr6::IDLE.0));
        Ok(Outcome::Ok)
    }

    /// `guest_state_protected`: -EINVAL.
    fn protected(&self) -> Option<Outcome> {
        let is_protected = self.policy.world().is_protected();
        is_protected.then(|| refused(Errno::EINVAL, "KVM cannot see the registers of a protected guest"))
    }

    /// The guest is entitled to what it was given from outside, as far as its registers can hold it.
    fn own_view(&mut self, id: VcpuId, dr6: Option<u64>) {
        let vcpu = &mut self.vcpus[id.index()];
        let dr6 = dr6.map_or(vcpu.own.dr6, |dr6| fixed(Dr::Status, dr6));
        vcpu.own = debugreg::Registers { dr: vcpu.db, dr6, dr7: fixed(Dr::Control, vcpu.dr7) };
    }
}

fn refused(errno: Errno, rule: &'static str) -> Outcome {
    Outcome::Refused(Refusal::new(errno, rule))
}

fn has_upper(value: u64) -> bool {
    value > u64::from(u32::MAX)
}
