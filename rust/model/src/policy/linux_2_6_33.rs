//! Linux 2.6.33 to 3.14: the breakpoint layer keeps the host's registers; nothing is ever read back.
//!
//! Source: `vcpu_enter_guest` at 24f1e32c60c4 with 59d8eb53ea99; vmx.c and svm.c of 2.6.33.

use debugreg::{Dr, Steps, bank};

use super::hooks::{Half, MovDr};
use super::{Policy, common};
use crate::machine::{Machine, Vendor};
use crate::step::{Kvm, Probe};

pub(super) struct Linux2_6_33;

impl Half for Linux2_6_33 {
    const HAS_DEBUGREGS: bool = false;

    fn vm_entry<P: Probe>(kvm: &mut Kvm<'_, P>) {
        if kvm.vcpu().bp_enabled {
            // 1-5
            kvm.load_addresses();
            if kvm.is_intel() {
                let dr6 = kvm.vcpu().dr6;
                kvm.host.write_dr(Dr::Status, dr6);
            }
        } else {
            kvm.disarm_host();
        }
    }

    fn vm_exit<P: Probe>(kvm: &mut Kvm<'_, P>) {
        if bank::is_active(&mut kvm.host) {
            Machine::refresh_marked(&mut kvm.host);
        }
    }

    fn intercepts(policy: Policy, vendor: Vendor, mov: MovDr) -> bool {
        vendor == Vendor::Intel || common::intercepted_by_svm_2_6_30(policy, mov)
    }
}
