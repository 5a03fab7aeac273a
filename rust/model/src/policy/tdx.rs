//! TDX: the TDX module saves and loads all of a guest's registers, and leaves the host with reset values.
//!
//! KVM has nothing to load (KVM_DEBUGREG_AUTO_SWITCH is set for good) and nothing to read back; it brings the host's
//! registers back if the shadow is active. A debugger is refused, and so are KVM_GET_DEBUGREGS and KVM_SET_DEBUGREGS.
//!
//! Source: `vcpu_enter_guest` (6.16); changelogs of the TDX series (Yamahata, 2022 to 2024).

use debugreg::bank;

use super::Policy;
use super::hooks::{Half, MovDr, World};
use crate::machine::{Machine, Vendor};
use crate::step::{Kvm, Probe};

pub(super) struct Tdx;

impl Half for Tdx {
    const WORLD: World = World::Tdx;

    fn vm_entry<P: Probe>(kvm: &mut Kvm<'_, P>) {
        // 7a': `switch_db_regs & ~KVM_DEBUGREG_AUTO_SWITCH` is always 0
        kvm.disarm_host();
    }

    fn vm_exit<P: Probe>(kvm: &mut Kvm<'_, P>) {
        // 16
        if bank::is_active(&mut kvm.host) {
            Machine::refresh_marked(&mut kvm.host);
        }
    }

    fn intercepts(_: Policy, _: Vendor, _: MovDr) -> bool {
        false
    }

    fn intercepts_db(_: Policy, _: Vendor) -> bool {
        false
    }
}
