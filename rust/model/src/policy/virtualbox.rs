//! VirtualBox: a guest that has breakpoints, or whose MOV DR has exited, keeps the registers until its thread leaves the
//! ring-0 context (for the VMM, or because another thread runs).
//!
//! Before the guest's are loaded the host's are read and disarmed, and they come back at that end. Two holes are in the
//! source as read: what is read in the handler of a MOV DR is DR7 as the VM exit has left it (a comment there knows), so
//! that the host's breakpoints are gone for good; and for a guest that uses no breakpoints nobody brings DR7 back after
//! an exit. Its debugger, whose slots win over the guest's one by one (`CPUMRecalcHyperDRx`), is not a user of KVM's
//! ioctls and is left out.
//!
//! Source: `CPUMR0LoadGuestDebugState`, `cpumR0SaveHostDebugState`, `CPUMR0DebugStateMaybeSaveGuestAndRestoreHost`
//! (CPUMR0.cpp, 7.0), `hmR0SvmLoadSharedDebugState`, `hmR0SvmLeave` (HMSVMR0.cpp, 5.0 to 6.0).

use debugreg::{Dr, Dr7, Steps};

use super::hooks::{DrHandling, Half};
use super::{Policy, common};
use crate::machine::Vendor;
use crate::step::{Field, Kvm, Probe};

pub(super) struct VirtualBox;

impl Half for VirtualBox {
    const IS_KVM: bool = false;

    /// `hmR0SvmLoadSharedDebugState`: enabled breakpoints, or GD, have to be in force from the first instruction.
    fn vm_entry<P: Probe>(kvm: &mut Kvm<'_, P>) {
        let dr7 = kvm.vcpu().dr7;
        if Dr7(dr7).any_armed() || dr7 & Dr7::GD != 0 {
            load(kvm);
        }
    }

    fn vm_exit<P: Probe>(_: &mut Kvm<'_, P>) {}

    /// `CPUMR0DebugStateMaybeSaveGuestAndRestoreHost`.
    fn vcpu_put<P: Probe>(kvm: &mut Kvm<'_, P>) {
        if !std::mem::take(&mut kvm.vcpu().kept) {
            return;
        }
        common::read_back(kvm);
        kvm.vcpu().eff_db = kvm.vcpu().db;
        kvm.write_field(Field::DrIntercept, 1);
        if kvm.host.read_dr(Dr::Control) != Dr7::RESET.0 {
            kvm.host.write_dr(Dr::Control, Dr7::RESET.0);
        }
        kvm.restore_host();
    }

    fn dr_access<P: Probe>(kvm: &mut Kvm<'_, P>) -> DrHandling {
        load(kvm);
        DrHandling::Open
    }

    fn intercepts_db(_: Policy, _: Vendor) -> bool {
        false
    }
}

/// `CPUMR0LoadGuestDebugState`.
fn load<P: Probe>(kvm: &mut Kvm<'_, P>) {
    if std::mem::replace(&mut kvm.vcpu().kept, true) {
        return;
    }
    kvm.save_host(Dr7::RESET.0);
    kvm.write_addresses();
    let dr6 = kvm.vcpu().dr6;
    if kvm.is_intel() {
        kvm.host.write_dr(Dr::Status, dr6);
    } else {
        kvm.update_field(Field::GuestDr6, dr6);
    }
    kvm.write_field(Field::DrIntercept, 0);
}
