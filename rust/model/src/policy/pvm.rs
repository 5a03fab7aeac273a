//! PVM, KVM for a guest that runs unprivileged under its host, without virtualisation by hardware.
//!
//! A guest's kernel runs at CPL 3, so that each MOV DR is a #GP for KVM, which emulates it; the window is never opened.
//! Nothing but software switches DR7: the guest's is live for some instructions of the host on both sides, and what
//! protects the host is a filter. No slot whose bytes are not all below 2^63 is armed, and GD never is.
//!
//! Source: `pvm_vcpu_run_noinstr`, `pvm_eff_dr7` (arch/x86/kvm/pvm/pvm.c, RFC of 2024-02-26 and later trees).

use debugreg::{Dr, Dr6, Dr7, Slot, Steps, bank};

use super::hooks::{Half, World};
use crate::machine::Machine;
use crate::step::{Kvm, Probe};
use crate::vcpu::Exit;

pub(super) struct Pvm;

impl Half for Pvm {
    const WORLD: World = World::Software;

    fn vm_entry<P: Probe>(kvm: &mut Kvm<'_, P>) {
        if kvm.switches() {
            kvm.load_addresses();
        } else {
            kvm.disarm_host();
        }
        if is_loaded(kvm) {
            let dr7 = filtered(kvm.vcpu().effective_dr7(), kvm.vcpu().eff_db);
            kvm.host.write_dr(Dr::Control, dr7);
        }
    }

    fn vm_exit<P: Probe>(kvm: &mut Kvm<'_, P>) {
        if is_loaded(kvm) {
            kvm.host.write_dr(Dr::Control, 0);
        }
        if kvm.vcpu().exit == Exit::Db {
            let dr6 = kvm.host.read_dr(Dr::Status);
            kvm.vcpu().vmcs.dr6 = dr6;
            kvm.host.write_dr(Dr::Status, Dr6::IDLE.0);
        }
        if bank::is_active(&mut kvm.host) {
            Machine::refresh_marked(&mut kvm.host);
        }
    }
}

fn is_loaded<P: Probe>(kvm: &mut Kvm<'_, P>) -> bool {
    Dr7(kvm.vcpu().effective_dr7()).any_armed()
}

/// `pvm_eff_dr7`: what of a guest's DR7 may be in the register while the host's code runs.
pub(crate) fn filtered(dr7: u64, addresses: [u64; 4]) -> u64 {
    let is_guests = |address: u64| address.cast_signed() >= 0 && address.wrapping_add(7).cast_signed() >= 0;
    Slot::ALL
        .into_iter()
        .fold(Dr7(dr7 & !Dr7::GD), |dr7, slot| if is_guests(addresses[slot.index()]) { dr7 } else { dr7.disarm(slot) })
        .0
}
