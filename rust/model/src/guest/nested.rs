//! A guest that is a hypervisor itself (L1), and its guest (L2).
//!
//! DR0-DR3 are the same for both, as on hardware; DR7 is L2's own, DR6 on SVM too. VMX: DR7 goes in and out through
//! `kvm_set_dr`, so that a debugger's override and the loading of addresses stay right. SVM: VMRUN puts vmcb12's DR7
//! straight into vmcb02, and KVM's own idea of DR7 stays L1's (Z-2, Z-3).
//!
//! Which of L2's MOV DR exit to L1, and everything else of nested virtualisation, is left out.
//!
//! Source: `nested_vmcb02_prepare_save`, `nested_svm_vmexit` (svm/nested.c, 6.18 and 5.8), `prepare_vmcs02`,
//! `sync_vmcs02_to_vmcs12` (vmx/nested.c).

use debugreg::{Dr, Dr6, Dr7};

use crate::event::{Misuse, Outcome};
use crate::machine::Machine;
use crate::policy::hooks::World;
use crate::policy::{Delta, common};
use crate::step::{Field, Probe};
use crate::vcpu::Nested;
use crate::{CpuId, VcpuId};

impl Machine {
    /// VMRUN, VMLAUNCH or VMRESUME of L1.
    pub(crate) fn nested_entry<P: Probe>(
        &mut self,
        id: VcpuId,
        dr6: Option<u64>,
        dr7: Option<u64>,
        intercepts_db: bool,
        probe: &mut P,
    ) -> Result<Outcome, Misuse> {
        self.policy.is_kvm()?;
        let cpu = self.in_guest(id)?;
        if self.policy.world() != World::Virtualised {
            return Err(Misuse::NotExpressible("a guest of a guest needs VMX or SVM"));
        }
        if self.vcpu(id).nested.is_some() {
            return Err(Misuse::NotExpressible("a guest of a guest of a guest"));
        }
        let (dr6, dr7) = (dr6.unwrap_or(Dr6::IDLE.0), dr7.unwrap_or(Dr7::RESET.0));
        self.leave(id, cpu, probe);
        if dr7 > u64::from(u32::MAX) || self.is_amd() && dr6 > u64::from(u32::MAX) {
            // The entry fails before anything has happened.
            self.enter(id, cpu, probe);
            return Ok(Outcome::ExitNested { dr6, dr7 });
        }
        self.vcpus[id.index()].nested = Some(Nested { dr7, intercepts_db });
        if self.is_amd() {
            self.vmrun(id, cpu, dr6 | Dr6::IDLE.0, dr7 | Dr7::FIXED, probe);
        } else {
            self.load_dr(id, cpu, Dr::Control, dr7, probe);
        }
        Ok(self.enter(id, cpu, probe))
    }

    fn vmrun<P: Probe>(&mut self, id: VcpuId, cpu: CpuId, dr6: u64, dr7: u64, probe: &mut P) {
        let policy = self.policy;
        let own = &mut self.vcpus[id.index()].own;
        (own.dr6, own.dr7) = (dr6, dr7);
        let mut kvm = self.kvm(id, cpu, probe);
        common::store_dr6(&mut kvm, dr6);
        if !policy.has(Delta::Z2) {
            kvm.vcpu().dr7 = dr7;
        }
        let overridden = kvm.vcpu().debugger_owns() && !policy.has(Delta::Z3);
        let vmcb02 = if overridden { kvm.vcpu().guest_debug_dr7 } else { dr7 };
        kvm.write_field(Field::GuestDr7, vmcb02);
        if !policy.has(Delta::Z2) {
            kvm.vcpu().bp_enabled = Dr7(vmcb02).any_armed();
        }
    }

    /// An exit of L2's that L1 has asked for.
    pub(crate) fn nested_exit<P: Probe>(&mut self, id: VcpuId, probe: &mut P) -> Result<Outcome, Misuse> {
        let cpu = self.in_guest(id)?;
        if self.vcpu(id).nested.is_none() {
            return Err(Misuse::NotExpressible("the guest's own guest is not running: nested_entry comes first"));
        }
        self.leave(id, cpu, probe);
        Ok(self.reflect(id, cpu, 0, probe))
    }

    /// The exit goes on to L1: what its VMCB or VMCS then says, and L1 runs. `events` are those of a #DB.
    pub(super) fn reflect<P: Probe>(&mut self, id: VcpuId, cpu: CpuId, events: u64, probe: &mut P) -> Outcome {
        let Some(nested) = self.vcpus[id.index()].nested.take() else { return Outcome::Ok };
        let (policy, vendor, is_amd) = (self.policy, self.options.vendor, self.is_amd());
        let mut kvm = self.kvm(id, cpu, probe);
        let (dr6, dr7);
        if is_amd {
            if events != 0 {
                // Delivered, and GD cleared, before the nested #VMEXIT.
                common::deliver_events(&mut kvm, events);
                common::clear_gd(&mut kvm);
            }
            let vmcb02 = kvm.read_field(Field::GuestDr7);
            let hidden = kvm.vcpu().debugger_owns() && !policy.has(Delta::Z3);
            // L2 may have written DR7 since; KVM has that where a VMRUN tells it of DR7.
            let l2s = if policy.has(Delta::Z2) { nested.dr7 } else { kvm.vcpu().dr7 };
            dr7 = if hidden { l2s } else { vmcb02 };
            dr6 = common::get_dr(policy, vendor, kvm.vcpu(), Dr::Status);
        } else {
            // The cause is in vmcs12's exit qualification; DR6 is not changed.
            dr7 = kvm.vcpu().dr7;
            dr6 = Dr6::from_events(events).0;
        }
        if is_amd && policy.has(Delta::H27) {
            kvm.write_field(Field::GuestDr7, 0);
        } else {
            kvm.vcpu().dr7 = Dr7::RESET.0;
            common::update_dr7(&mut kvm);
        }
        self.vcpus[id.index()].own.dr7 = Dr7::RESET.0;
        self.enter(id, cpu, probe);
        Outcome::ExitNested { dr6, dr7 }
    }
}
