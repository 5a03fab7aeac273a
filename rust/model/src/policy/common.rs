//! What KVM halves share: the guest's registers as KVM keeps them, and the window of lazy access.
//!
//! The window is a state machine. *Idle* (MOV DR exits, nothing enabled): an entry loads nothing. *Armed* (MOV DR exits,
//! the effective DR7 enables something, `bp_enabled`): an entry loads DR0-DR3, an exit reads nothing back. *Open*
//! (`wont_exit`, MOV DR does not exit): an entry loads DR0-DR3 and DR6, the next exit that leaves the run loop reads all
//! of them back and shuts the window. [`open_window`] and [`close_window`] are its two edges; `update_dr7` decides
//! between idle and armed.
//!
//! Source: arch/x86/kvm/x86.c (`kvm_set_dr`, `kvm_get_dr`, `kvm_update_dr0123`, `kvm_update_dr7`,
//! `kvm_deliver_exception_payload`), vmx.c and svm.c (`*_sync_dirty_debug_regs`, `handle_dr`, `dr_interception`), 6.12;
//! numbers as in the step list of the newest kernel.

use debugreg::{Dr, Dr6, Dr7, Slot, Steps, bank};

use super::hooks::{DrHandling, MovDr};
use super::{Delta, KvmHalf, Policy};
use crate::guest::fixed;
use crate::machine::Vendor;
use crate::step::{Field, Kvm, Mark, Probe};
use crate::vcpu::Vcpu;

impl<P: Probe> Kvm<'_, P> {
    pub(super) fn has(&self, delta: Delta) -> bool {
        self.host.machine.policy.has(delta)
    }

    pub(super) fn is_intel(&self) -> bool {
        self.host.machine.options.vendor == Vendor::Intel
    }

    fn dr6_in_vmcb(&self) -> bool {
        self.host.machine.policy.dr6_in_vmcb(self.host.machine.options.vendor)
    }

    /// What a policy writes to disarm DR7.
    pub(super) fn disarmed(&self) -> u64 {
        if self.has(Delta::HB34) { 0 } else { Dr7::RESET.0 }
    }

    /// Nothing of the guest's is loaded, but the host has something armed: disarms DR7, so that no host breakpoint fires
    /// inside the entry (5.14, f85d40160691).
    pub(super) fn disarm_host(&mut self) {
        if !self.has(Delta::H05) && bank::is_active(&mut self.host) {
            let disarmed = self.disarmed();
            self.host.write_dr(Dr::Control, disarmed);
        }
    }

    /// Disarms DR7, then loads DR0-DR3 with the effective addresses.
    pub(super) fn load_addresses(&mut self) {
        let disarmed = self.disarmed();
        self.host.write_dr(Dr::Control, disarmed);
        self.write_addresses();
    }

    /// Loads DR0-DR3 with the effective addresses.
    pub(super) fn write_addresses(&mut self) {
        let addresses = self.vcpu().eff_db;
        for slot in Slot::ALL {
            self.host.write_dr(Dr::Address(slot), addresses[slot.index()]);
            self.vcpu().loaded |= slot.bit();
        }
    }

    /// `switch_db_regs` is not zero: the entry loads DR0-DR3.
    pub(super) fn switches(&mut self) -> bool {
        let vcpu = self.vcpu();
        vcpu.bp_enabled || vcpu.wont_exit || vcpu.reload
    }
}

/// `kvm_update_dr0123`. From 4.1 to 5.14 it also has the next entry load them, enabled or not (KVM_DEBUGREG_RELOAD).
pub(crate) fn update_dr0123<P: Probe>(kvm: &mut Kvm<'_, P>) {
    let reloads = kvm.host.machine.policy.kvm == KvmHalf::Linux3_15;
    let vcpu = kvm.vcpu();
    if !vcpu.debugger_owns() {
        vcpu.eff_db = vcpu.db;
        vcpu.reload = reloads;
    }
}

/// `kvm_update_dr7`: the vendor's DR7, and whether it enables anything.
pub(crate) fn update_dr7<P: Probe>(kvm: &mut Kvm<'_, P>) {
    let dr7 = kvm.vcpu().effective_dr7();
    set_vendor_dr7(kvm, dr7);
}

/// What INIT did to DR7 up to 3.6: the reset value reaches the hardware, whoever owns the registers (H-13).
pub(crate) fn drop_debuggers_dr7<P: Probe>(kvm: &mut Kvm<'_, P>) {
    let dr7 = kvm.vcpu().dr7;
    set_vendor_dr7(kvm, dr7);
}

fn set_vendor_dr7<P: Probe>(kvm: &mut Kvm<'_, P>, dr7: u64) {
    kvm.write_field(Field::GuestDr7, dr7);
    kvm.vcpu().bp_enabled = Dr7(dr7).any_armed();
}

/// `kvm_set_dr`: the guest's view; the effective one too unless a debugger has it.
pub(crate) fn set_dr<P: Probe>(kvm: &mut Kvm<'_, P>, dr: Dr, value: u64) {
    let value = fixed(dr, value);
    match dr {
        Dr::Address(slot) => {
            let vcpu = kvm.vcpu();
            vcpu.db[slot.index()] = value;
            if !vcpu.debugger_owns() {
                vcpu.eff_db[slot.index()] = value;
            }
        }
        Dr::Status => store_dr6(kvm, value),
        Dr::Control => {
            kvm.vcpu().dr7 = value;
            update_dr7(kvm);
        }
    }
}

/// Stores the guest's DR6 (with `kvm_update_dr6`, to 5.6).
pub(crate) fn store_dr6<P: Probe>(kvm: &mut Kvm<'_, P>, value: u64) {
    kvm.vcpu().dr6 = value;
    if kvm.dr6_in_vmcb() && !kvm.vcpu().debugger_owns() {
        kvm.write_field(Field::GuestDr6, value);
    }
}

/// `kvm_get_dr`: the guest-visible value, never the debugger's, of a guest that does not run.
pub(crate) fn get_dr(policy: Policy, vendor: Vendor, vcpu: &Vcpu, dr: Dr) -> u64 {
    // `svm_get_dr` to 2.6.34, and the `get_dr6` hook to 5.6.
    let in_vmcb = policy.dr6_in_vmcb(vendor) && !vcpu.debugger_owns();
    match dr {
        Dr::Address(slot) => vcpu.db[slot.index()],
        Dr::Status if in_vmcb => vcpu.vmcs.dr6,
        Dr::Status => vcpu.dr6,
        Dr::Control if in_vmcb && policy.is_old() => vcpu.vmcs.dr7,
        Dr::Control => vcpu.dr7,
    }
}

/// Which MOV DR exit on SVM to 2.6.33 (`init_vmcb`): the others run natively, on what the VMCB holds.
pub(super) fn intercepted_by_svm_2_6_30(policy: Policy, mov: MovDr) -> bool {
    match (mov.is_write, mov.number) {
        (_, 0..=3) | (true, 5 | 7) => true,
        (false, 7) => !policy.has(Delta::H33),
        _ => false,
    }
}

/// Injects what waits for the entry. A #DB clears GD.
pub(crate) fn inject<P: Probe>(kvm: &mut Kvm<'_, P>) {
    kvm.vcpu().pending_bp = false;
    let Some(payload) = kvm.vcpu().pending_db.take() else { return };
    if let Some(payload) = payload {
        deliver_events(kvm, payload);
    }
    clear_gd(kvm);
}

/// `kvm_deliver_exception_payload` for #DB. Where the VMCB has DR6, the hardware has put the events there already.
pub(crate) fn deliver_events<P: Probe>(kvm: &mut Kvm<'_, P>, payload: u64) {
    if !kvm.dr6_in_vmcb() {
        let loses_sticky = kvm.has(Delta::H09);
        let vcpu = kvm.vcpu();
        let before = if loses_sticky { Dr6::IDLE } else { Dr6(vcpu.dr6) };
        // Bit 12 means something in a payload; a processor has it at zero in DR6, an emulator may not.
        vcpu.dr6 = before.after_db(payload).0 & !Dr6::RESERVED_ZERO;
    }
}

/// Any #DB that is delivered clears DR7.GD.
pub(crate) fn clear_gd<P: Probe>(kvm: &mut Kvm<'_, P>) {
    if kvm.vcpu().dr7 & Dr7::GD != 0 && !kvm.has(Delta::H15) {
        kvm.vcpu().dr7 &= !Dr7::GD;
        update_dr7(kvm);
    }
}

/// The vendor's part of DR6 at entry since 5.15: VMX loads the register itself, for a guest that may look at it.
pub(super) fn load_dr6<P: Probe>(kvm: &mut Kvm<'_, P>) {
    if kvm.is_intel() && kvm.vcpu().wont_exit {
        let dr6 = kvm.vcpu().dr6;
        kvm.host.write_dr(Dr::Status, dr6);
    }
    load_vmcb_dr6(kvm);
}

/// SVM has DR6 in the VMCB, since 5.7 idle unless the guest may look at it, so that a #DB shows its own events only.
pub(super) fn load_vmcb_dr6<P: Probe>(kvm: &mut Kvm<'_, P>) {
    if !kvm.is_intel() && !kvm.has(Delta::H06) {
        let dr6 = if kvm.vcpu().wont_exit { kvm.vcpu().dr6 } else { Dr6::IDLE.0 };
        kvm.update_field(Field::GuestDr6, dr6);
    }
}

/// Opens the window: from the next entry to the next exit the guest's MOV DR do not exit. A debugger keeps it shut.
pub(super) fn open_window<P: Probe>(kvm: &mut Kvm<'_, P>) -> DrHandling {
    if kvm.vcpu().is_debugged() {
        return DrHandling::Emulate;
    }
    kvm.write_field(Field::DrIntercept, 0);
    kvm.vcpu().wont_exit = true;
    DrHandling::Open
}

/// What KVM_SET_GUEST_DEBUG should do to a window that was opened and not entered yet: nothing has been loaded, so
/// nothing is to be read back.
pub(crate) fn shut_window<P: Probe>(kvm: &mut Kvm<'_, P>) {
    if kvm.vcpu().wont_exit {
        kvm.vcpu().wont_exit = false;
        kvm.write_field(Field::DrIntercept, 1);
    }
}

/// Reads DR0-DR3 back.
pub(super) fn read_addresses<P: Probe>(kvm: &mut Kvm<'_, P>) {
    for slot in Slot::ALL {
        let address = kvm.host.read_dr(Dr::Address(slot));
        kvm.vcpu().db[slot.index()] = address;
    }
}

/// Reads back all that a guest may have changed by itself.
pub(super) fn read_back<P: Probe>(kvm: &mut Kvm<'_, P>) {
    read_addresses(kvm);
    kvm.vcpu().dr6 = if kvm.is_intel() { kvm.host.read_dr(Dr::Status) } else { kvm.read_field(Field::GuestDr6) };
    kvm.vcpu().dr7 = kvm.read_field(Field::GuestDr7);
}

/// Closes the window at an exit: reads back what the guest may have changed, intercepts again, recomputes.
pub(super) fn close_window<P: Probe>(kvm: &mut Kvm<'_, P>) {
    kvm.host.mark(Mark::Sync);
    // 15a-f
    read_back(kvm);
    // 15g, 15h
    kvm.vcpu().wont_exit = false;
    kvm.write_field(Field::DrIntercept, 1);
    // 15i: since 5.15; in between each vcpu_put did it (H-04), before nobody (H-03)
    if kvm.is_intel() && !kvm.has(Delta::H03) && !kvm.has(Delta::H04) {
        kvm.host.write_dr(Dr::Status, Dr6::IDLE.0);
    }
    if kvm.has(Delta::H02) {
        kvm.vcpu().eff_db = kvm.vcpu().db;
        return;
    }
    // 15j, 15k
    update_dr0123(kvm);
    kvm.vcpu().reload = false;
    update_dr7(kvm);
}

/// What nobody does today on SVM (Z-9): a guest's DR6 may still be in the register, for AMD's manual does not list DR6
/// among what #VMEXIT restores. The VMCB tells whether there is anything in it.
pub(super) fn clean_dr6<P: Probe>(kvm: &mut Kvm<'_, P>) {
    if !kvm.is_intel() && !kvm.has(Delta::Z9) && kvm.vcpu().vmcs.dr6 != Dr6::IDLE.0 {
        kvm.host.write_dr(Dr::Status, Dr6::IDLE.0);
    }
}
