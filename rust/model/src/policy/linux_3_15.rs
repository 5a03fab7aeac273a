//! Linux 3.15 to 5.14: lazy access to the guest's registers. 4.15 and 5.14 differ by deltas only.
//!
//! Source: `vcpu_enter_guest`, `vmx_vcpu_run`, `svm_vcpu_run`, `kvm_arch_vcpu_put` (arch/x86/kvm, 3.15 at c77fb5fe6f03,
//! 4.4, 5.6, 5.14); numbers as in the step list of 3.15.

use debugreg::{Dr, Steps, bank};

use super::hooks::Half;
use super::{Delta, common};
use crate::machine::Machine;
use crate::step::{Kvm, Probe};

pub(super) struct Linux3_15;

impl Half for Linux3_15 {
    const OPENS_WINDOWS: bool = true;

    fn vm_entry<P: Probe>(kvm: &mut Kvm<'_, P>) {
        if kvm.switches() {
            // 1-5
            kvm.load_addresses();
            // 6: also for a guest that cannot look at it, and on SVM, where VMRUN loads it anyway
            let dr6 = kvm.vcpu().dr6;
            kvm.host.write_dr(Dr::Status, dr6);
            // 7
            kvm.vcpu().reload = false;
        } else {
            kvm.disarm_host();
        }
        common::load_vmcb_dr6(kvm);
    }

    fn vm_reentry<P: Probe>(kvm: &mut Kvm<'_, P>) {
        if kvm.has(Delta::H01) {
            common::load_vmcb_dr6(kvm);
        }
    }

    fn vm_exit<P: Probe>(kvm: &mut Kvm<'_, P>) {
        if kvm.vcpu().wont_exit {
            common::close_window(kvm);
        }
        common::clean_dr6(kvm);
        if bank::is_active(&mut kvm.host) {
            Machine::refresh_marked(&mut kvm.host);
        }
    }

    fn vcpu_put<P: Probe>(kvm: &mut Kvm<'_, P>) {
        if kvm.has(Delta::H04) && !kvm.has(Delta::H03) {
            kvm.host.write_dr(Dr::Status, 0);
        }
    }
}
