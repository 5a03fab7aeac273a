//! No switching at all, as bhyve had it before D13229: a guest's MOV DR do not exit, and what the processor does by itself
//! at an entry and an exit is all that happens.
//!
//! Host and guest share DR0-DR3 (and DR6 on VMX), and an exit leaves the host's DR7 disarmed. The bug report: "hardware
//! watchpoints do not work reliably within a guest".

use super::Policy;
use super::hooks::{Half, MovDr};
use crate::machine::Vendor;
use crate::step::{Kvm, Probe};

pub(super) struct Nothing;

impl Half for Nothing {
    const IS_KVM: bool = false;

    fn vm_entry<P: Probe>(_: &mut Kvm<'_, P>) {}

    fn vm_exit<P: Probe>(_: &mut Kvm<'_, P>) {}

    fn intercepts(_: Policy, _: Vendor, _: MovDr) -> bool {
        false
    }

    fn intercepts_db(_: Policy, _: Vendor) -> bool {
        false
    }
}
