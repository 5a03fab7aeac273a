//! Linux 2.6.30 and 2.6.31: reads the host's registers at every entry, writes them back at every exit.
//!
//! Source: `vcpu_enter_guest`, `vmx_vcpu_run` at 42dbaa5a0577 (numbers as in its step list); svm.c of 2.6.30
//! (`init_vmcb`, `svm_get_dr`, `svm_vcpu_run`).

use debugreg::{Dr, Slot, Steps};

use super::hooks::{Half, MovDr};
use super::{Delta, Policy, common};
use crate::machine::Vendor;
use crate::step::{Kvm, Probe};

pub(super) struct Linux2_6_30;

impl Half for Linux2_6_30 {
    const HAS_DEBUGREGS: bool = false;

    fn vm_entry<P: Probe>(kvm: &mut Kvm<'_, P>) {
        // 1
        let dr6 = kvm.host.read_dr(Dr::Status);
        kvm.vcpu().saved.dr6 = dr6;
        // 2
        let dr7 = kvm.host.read_dr(Dr::Control);
        kvm.vcpu().saved.dr7 = dr7;
        // 3
        if kvm.vcpu().bp_enabled {
            for slot in Slot::ALL {
                let address = kvm.host.read_dr(Dr::Address(slot));
                kvm.vcpu().saved.dr[slot.index()] = address;
            }
            kvm.load_addresses();
        }
        // 4a
        if kvm.is_intel() {
            let dr6 = kvm.vcpu().dr6;
            kvm.host.write_dr(Dr::Status, dr6);
        }
    }

    fn vm_exit<P: Probe>(kvm: &mut Kvm<'_, P>) {
        // 4c
        if kvm.is_intel() {
            kvm.vcpu().dr6 = kvm.host.read_dr(Dr::Status);
        }
        let saved = kvm.vcpu().saved;
        // 5
        if kvm.vcpu().bp_enabled {
            let disarmed = kvm.disarmed();
            kvm.host.write_dr(Dr::Control, disarmed);
            for slot in Slot::ALL {
                kvm.host.write_dr(Dr::Address(slot), saved.dr[slot.index()]);
            }
        }
        // 6
        kvm.host.write_dr(Dr::Status, saved.dr6);
        // 7
        kvm.host.write_dr(Dr::Control, saved.dr7);
    }

    fn intercepts(policy: Policy, vendor: Vendor, mov: MovDr) -> bool {
        vendor == Vendor::Intel || common::intercepted_by_svm_2_6_30(policy, mov)
    }

    /// VMX too only for a debugger: that is why the exit reads DR6.
    fn intercepts_db(policy: Policy, vendor: Vendor) -> bool {
        vendor == Vendor::Amd && !policy.has(Delta::H18)
    }
}
