//! SEV-ES and SEV-SNP, whose guests' registers KVM cannot see.
//!
//! DR6 and DR7 are swapped by the processor in any case. Without DebugSwap DR0-DR3 are neither saved nor loaded, and DR7
//! is intercepted just so that it stays at its reset value: the guest's own #VC handler remembers what was written, and
//! no breakpoint ever fires (M26). What a guest reads from DR0-DR3 is what the host has left there. With DebugSwap the
//! processor loads the guest's DR0-DR3, and at an exit the host's from where KVM has stored them.
//!
//! Source: `sev_es_prepare_switch_to_guest`, `dr_interception`, `recalc_intercepts` (arch/x86/kvm/svm, 6.14);
//! `vc_handle_dr7_write` (arch/x86/coco/sev).

use debugreg::{Dr, Slot, Steps, bank};

use super::Policy;
use super::hooks::{Half, MovDr, World};
use crate::machine::{Machine, Vendor};
use crate::step::{Kvm, Probe};

pub(super) struct SevEs;
pub(super) struct DebugSwap;

impl Half for SevEs {
    const WORLD: World = World::SevEs;

    fn vm_entry<P: Probe>(kvm: &mut Kvm<'_, P>) {
        // 7a'
        kvm.disarm_host();
    }

    fn vm_exit<P: Probe>(kvm: &mut Kvm<'_, P>) {
        refresh(kvm);
    }

    /// DR7 alone.
    fn intercepts(_: Policy, _: Vendor, mov: MovDr) -> bool {
        matches!(mov.number, 5 | 7)
    }

    fn intercepts_db(_: Policy, _: Vendor) -> bool {
        false
    }
}

impl Half for DebugSwap {
    const WORLD: World = World::DebugSwap;

    /// 3: once for each time that the thread takes the vCPU up (with the four address-mask MSRs, which are not modelled).
    fn vcpu_load<P: Probe>(kvm: &mut Kvm<'_, P>) {
        for slot in Slot::ALL {
            let address = kvm.host.read_dr(Dr::Address(slot));
            kvm.vcpu().saved.dr[slot.index()] = address;
        }
    }

    fn vm_entry<P: Probe>(kvm: &mut Kvm<'_, P>) {
        // 7a'
        kvm.disarm_host();
    }

    fn vm_exit<P: Probe>(kvm: &mut Kvm<'_, P>) {
        refresh(kvm);
    }

    fn intercepts(_: Policy, _: Vendor, _: MovDr) -> bool {
        false
    }

    fn intercepts_db(_: Policy, _: Vendor) -> bool {
        false
    }
}

fn refresh<P: Probe>(kvm: &mut Kvm<'_, P>) {
    // 16
    if bank::is_active(&mut kvm.host) {
        Machine::refresh_marked(&mut kvm.host);
    }
}
