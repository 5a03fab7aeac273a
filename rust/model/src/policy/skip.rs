//! Jan Kiszka's wish in the mail of September 2009: "we wanted to avoid sched-out activity".
//!
//! On the way out nothing is written unless the guest has breakpoints; on the way back the hardware is refreshed iff the
//! shadow is active or guest values were loaded. The price of the wish as written: host breakpoints stay armed up to
//! the entry itself (H-05). A guest's own accesses are emulated one by one, as all of KVM did then.

use debugreg::bank;

use super::common;
use super::hooks::Half;
use crate::machine::Machine;
use crate::step::{Kvm, Probe};

pub(super) struct Skip;

impl Half for Skip {
    fn vm_entry<P: Probe>(kvm: &mut Kvm<'_, P>) {
        if kvm.vcpu().bp_enabled {
            kvm.load_addresses();
        } else {
            kvm.disarm_host();
        }
        common::load_dr6(kvm);
    }

    fn vm_exit<P: Probe>(kvm: &mut Kvm<'_, P>) {
        if bank::is_active(&mut kvm.host) || kvm.vcpu().loaded != 0 {
            Machine::refresh_marked(&mut kvm.host);
        }
    }
}
