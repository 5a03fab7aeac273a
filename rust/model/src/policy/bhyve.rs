//! bhyve (FreeBSD, illumos): everything is saved and everything restored, at every entry and exit.
//!
//! DR7 is read and written 0 first, and written back last, so that nothing is armed in between. A guest's MOV DR and #DB
//! do not exit. The host's registers are those that were read, whatever a shadow says. KVM's ioctls it has not; that its
//! debug stub can take the registers in newer releases is left out.
//!
//! Source: `vmx_dr_enter_guest`, `vmx_dr_leave_guest` (vmx.c), `svm_dr_enter_guest`, `svm_dr_leave_guest` (svm.c), FreeBSD
//! 14 and illumos, since D13229; before that it switched as `none` does.

use debugreg::{Dr, Slot, Steps};

use super::hooks::{Half, MovDr};
use super::{Policy, common};
use crate::machine::Vendor;
use crate::step::{Kvm, Probe};

pub(super) struct Bhyve;

impl Half for Bhyve {
    const IS_KVM: bool = false;

    fn vm_entry<P: Probe>(kvm: &mut Kvm<'_, P>) {
        kvm.save_host(0);
        kvm.write_addresses();
        // SVM has DR6 in the VMCB, and both have DR7 there.
        if kvm.is_intel() {
            let dr6 = kvm.vcpu().dr6;
            kvm.host.write_dr(Dr::Status, dr6);
        }
    }

    fn vm_exit<P: Probe>(kvm: &mut Kvm<'_, P>) {
        common::read_addresses(kvm);
        kvm.vcpu().eff_db = kvm.vcpu().db;
        if kvm.is_intel() {
            kvm.vcpu().dr6 = kvm.host.read_dr(Dr::Status);
        }
        kvm.restore_host();
    }

    fn intercepts(_: Policy, _: Vendor, _: MovDr) -> bool {
        false
    }

    fn intercepts_db(_: Policy, _: Vendor) -> bool {
        false
    }
}

impl<P: Probe> Kvm<'_, P> {
    /// Reads the host's registers and disarms DR7.
    pub(super) fn save_host(&mut self, disarmed: u64) {
        let dr7 = self.host.read_dr(Dr::Control);
        if dr7 != disarmed {
            self.host.write_dr(Dr::Control, disarmed);
        }
        for slot in Slot::ALL {
            let address = self.host.read_dr(Dr::Address(slot));
            self.vcpu().saved.dr[slot.index()] = address;
        }
        let dr6 = self.host.read_dr(Dr::Status);
        let saved = &mut self.vcpu().saved;
        (saved.dr6, saved.dr7) = (dr6, dr7);
    }

    /// Writes back what was read, DR7 last.
    pub(super) fn restore_host(&mut self) {
        let saved = self.vcpu().saved;
        for slot in Slot::ALL {
            self.host.write_dr(Dr::Address(slot), saved.dr[slot.index()]);
        }
        self.host.write_dr(Dr::Status, saved.dr6);
        self.host.write_dr(Dr::Control, saved.dr7);
    }
}
