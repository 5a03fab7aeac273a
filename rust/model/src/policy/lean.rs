//! Ours: a quiet entry, and no write for a slot that is not enabled.
//!
//! A traced kernel spends a quarter of its debug-register writes on slots that nothing enables. An entry disarms DR7
//! only if the host has something armed (otherwise it is disarmed already), loads the addresses that the guest's DR7
//! enables, and all of them only for a guest that may read them back. An exit refreshes the host's enabled slots.

use debugreg::{Dr, Dr7, Slot, Steps, announce, bank};

use super::hooks::Half;
use super::{Delta, common};
use crate::step::{Kvm, Probe};

pub(super) struct Lean;

impl Half for Lean {
    const OPENS_WINDOWS: bool = true;

    fn vm_entry<P: Probe>(kvm: &mut Kvm<'_, P>) {
        let loads = kvm.switches();
        let noisy = kvm.has(Delta::H05) && !loads;
        // Whoever announces may have withdrawn his breakpoint from the shadow just now, and left the hardware to us.
        let withdrawn = loads && kvm.has(Delta::Announce);
        if !noisy && (bank::is_active(&mut kvm.host) || withdrawn) {
            kvm.host.write_dr(Dr::Control, Dr7::RESET.0);
        }
        if loads {
            let (open, dr7, addresses) = (kvm.vcpu().wont_exit, Dr7(kvm.vcpu().effective_dr7()), kvm.vcpu().eff_db);
            for slot in Slot::ALL {
                if open || dr7.is_armed(slot) {
                    kvm.host.write_dr(Dr::Address(slot), addresses[slot.index()]);
                    kvm.vcpu().loaded |= slot.bit();
                }
            }
        }
        common::load_dr6(kvm);
    }

    fn vm_exit<P: Probe>(kvm: &mut Kvm<'_, P>) {
        if kvm.vcpu().wont_exit {
            common::close_window(kvm);
        }
        common::clean_dr6(kvm);
        if bank::is_active(&mut kvm.host) {
            kvm.host.mark(crate::step::Mark::Restore);
            if kvm.has(Delta::Announce) {
                announce::refresh(&mut kvm.host);
            } else {
                bank::refresh_enabled(&mut kvm.host);
            }
        }
    }
}
