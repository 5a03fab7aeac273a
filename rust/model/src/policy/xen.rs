//! Xen: a guest's first MOV DR exits, and the registers are its own until its vCPU is descheduled.
//!
//! Exits in between switch nothing, for the hypervisor has no breakpoints of its own; here that is the host that the
//! vCPU's thread returns to, whose breakpoints stay disarmed as long. Whoever runs next brings its registers along if it
//! has any armed. That every #DB of a guest exits and is injected again (XSA-156) is left out: no register tells.
//!
//! Source: `__restore_debug_registers`, `vmx_restore_dr`, `vmx_save_dr`, `vmx_dr_access` (vmx.c), `svm_restore_dr`,
//! `svm_save_dr`, `svm_dr_access` (svm.c), `__context_switch` (domain.c), 4.17.

use debugreg::{Dr, Dr7, Steps, bank};

use super::hooks::{DrHandling, Half};
use super::{Policy, common};
use crate::machine::{Machine, Vendor};
use crate::step::{Field, Kvm, Probe};

pub(super) struct Xen;

impl Half for Xen {
    const IS_KVM: bool = false;

    /// `*_restore_dr`.
    fn vcpu_load<P: Probe>(kvm: &mut Kvm<'_, P>) {
        if Dr7(kvm.vcpu().dr7).any_armed() {
            restore(kvm);
        }
    }

    fn vm_entry<P: Probe>(_: &mut Kvm<'_, P>) {}

    fn vm_exit<P: Probe>(_: &mut Kvm<'_, P>) {}

    /// `*_save_dr`, and what the next vCPU's `*_restore_dr` or a PV guest's does.
    fn vcpu_put<P: Probe>(kvm: &mut Kvm<'_, P>) {
        if std::mem::take(&mut kvm.vcpu().kept) {
            kvm.write_field(Field::DrIntercept, 1);
            common::read_back(kvm);
            kvm.vcpu().eff_db = kvm.vcpu().db;
        }
        if bank::is_active(&mut kvm.host) {
            Machine::refresh_marked(&mut kvm.host);
        }
    }

    /// `*_dr_access`.
    fn dr_access<P: Probe>(kvm: &mut Kvm<'_, P>) -> DrHandling {
        restore(kvm);
        kvm.update_field(Field::DrIntercept, 0);
        DrHandling::Open
    }

    fn intercepts_db(_: Policy, _: Vendor) -> bool {
        false
    }
}

/// `__restore_debug_registers`: once until the vCPU is descheduled. On SVM the intercepts go with it.
fn restore<P: Probe>(kvm: &mut Kvm<'_, P>) {
    if std::mem::replace(&mut kvm.vcpu().kept, true) {
        return;
    }
    if !kvm.is_intel() {
        kvm.write_field(Field::DrIntercept, 0);
    }
    kvm.write_addresses();
    let (dr6, dr7) = (kvm.vcpu().dr6, kvm.vcpu().dr7);
    if kvm.is_intel() {
        kvm.host.write_dr(Dr::Status, dr6);
    } else {
        kvm.write_field(Field::GuestDr6, dr6);
        kvm.write_field(Field::GuestDr7, dr7);
    }
}
