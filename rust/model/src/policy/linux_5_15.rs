//! Linux 5.15 to today: lazy access to the guest's registers, quiet entry. 6.14 and 6.16 differ by deltas only.
//!
//! Source: `vcpu_enter_guest`, `vmx_vcpu_run`, `svm_vcpu_run` (arch/x86/kvm, 6.12 and 7bb6284aa7b3); numbers as in the
//! step list of the newest kernel.

use debugreg::{Dr, Steps, bank};

use super::hooks::Half;
use super::{Delta, common};
use crate::machine::Machine;
use crate::step::{Kvm, Probe};

pub(super) struct Linux5_15;

impl Half for Linux5_15 {
    const OPENS_WINDOWS: bool = true;

    fn vm_entry<P: Probe>(kvm: &mut Kvm<'_, P>) {
        // 7
        if kvm.switches() {
            // 7a-7e
            kvm.load_addresses();
        } else {
            // 7a'
            kvm.disarm_host();
        }
        // 10b
        common::load_dr6(kvm);
    }

    fn vm_reentry<P: Probe>(kvm: &mut Kvm<'_, P>) {
        if kvm.has(Delta::H01) {
            common::load_dr6(kvm);
        }
    }

    fn vm_exit<P: Probe>(kvm: &mut Kvm<'_, P>) {
        // 15
        if kvm.vcpu().wont_exit {
            common::close_window(kvm);
        }
        common::clean_dr6(kvm);
        // 16
        if bank::is_active(&mut kvm.host) {
            Machine::refresh_marked(&mut kvm.host);
        }
    }

    fn vcpu_put<P: Probe>(kvm: &mut Kvm<'_, P>) {
        if kvm.has(Delta::H04) {
            kvm.host.write_dr(Dr::Status, 0);
        }
    }
}
