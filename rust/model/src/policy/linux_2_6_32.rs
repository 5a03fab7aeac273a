//! Linux 2.6.32: nothing is read; what an exit writes back is the current thread's.
//!
//! A breakpoint that is nobody's thread's (kgdb) is gone after the first exit: the processor has disarmed DR7, and
//! nothing arms it again (H-29).
//!
//! Source: `vcpu_enter_guest` of 2.6.32 (3d53c27d05d3); `vmx_vcpu_run`.

use debugreg::{Dr, Slot, Steps};

use super::hooks::{Half, MovDr};
use super::{Policy, common};
use crate::machine::Vendor;
use crate::step::{Kvm, Probe};

pub(super) struct Linux2_6_32;

impl Half for Linux2_6_32 {
    const HAS_DEBUGREGS: bool = false;

    fn vm_entry<P: Probe>(kvm: &mut Kvm<'_, P>) {
        if kvm.vcpu().bp_enabled {
            kvm.load_addresses();
            if kvm.is_intel() {
                let dr6 = kvm.vcpu().dr6;
                kvm.host.write_dr(Dr::Status, dr6);
            }
        }
    }

    fn vm_exit<P: Probe>(kvm: &mut Kvm<'_, P>) {
        let task = kvm.host.machine.thread(kvm.id);
        let thread = kvm.host.machine.task(task).thread;
        if kvm.vcpu().bp_enabled || thread.is_debugged() {
            for slot in Slot::ALL {
                kvm.host.write_dr(Dr::Address(slot), thread.dr[slot.index()]);
            }
            kvm.host.write_dr(Dr::Status, thread.dr6);
            kvm.host.write_dr(Dr::Control, thread.dr7);
        }
    }

    fn intercepts(policy: Policy, vendor: Vendor, mov: MovDr) -> bool {
        vendor == Vendor::Intel || common::intercepted_by_svm_2_6_30(policy, mov)
    }
}
