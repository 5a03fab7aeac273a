//! Linux 2.6.33 to 3.14: the breakpoint layer keeps the host's registers; nothing is ever read back.
//!
//! Source: `vcpu_enter_guest` at 24f1e32c60c4 with 59d8eb53ea99; VMX's write of DR6 came with 2.6.32 (3d53c27d05d3).

use debugreg::{Dr, Steps, bank};

use crate::machine::Machine;
use crate::step::{Kvm, Probe};

pub(super) fn vm_entry<P: Probe>(kvm: &mut Kvm<'_, P>) {
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

pub(super) fn vm_exit<P: Probe>(kvm: &mut Kvm<'_, P>) {
    if bank::is_active(&mut kvm.host) {
        Machine::refresh_marked(&mut kvm.host);
    }
}
