//! What KVM halves share: the guest's registers as KVM keeps them, and the window of lazy access.
//!
//! Source: arch/x86/kvm/x86.c (`kvm_set_dr`, `kvm_update_dr0123`, `kvm_update_dr7`, `kvm_deliver_exception_payload`),
//! vmx.c and svm.c (`*_sync_dirty_debug_regs`, `handle_dr`, `dr_interception`), 6.12.

use debugreg::{Dr, Dr6, Dr7, Slot, Steps, bank};

use super::{Delta, DrHandling};
use crate::guest::fixed;
use crate::machine::Vendor;
use crate::step::{Field, Kvm, Mark, Probe};

impl<P: Probe> Kvm<'_, P> {
    pub(super) fn has(&self, delta: Delta) -> bool {
        self.host.machine.policy.has(delta)
    }

    pub(super) fn is_intel(&self) -> bool {
        self.host.machine.options.vendor == Vendor::Intel
    }

    /// Whether the guest's DR6 and DR7 live in the VMCB.
    fn registers_in_vmcb(&self) -> bool {
        self.host.machine.policy.registers_in_vmcb(self.host.machine.options.vendor)
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
        let (disarmed, addresses) = (self.disarmed(), self.vcpu().eff_db);
        self.host.write_dr(Dr::Control, disarmed);
        for slot in Slot::ALL {
            self.host.write_dr(Dr::Address(slot), addresses[slot.index()]);
        }
    }

    /// `switch_db_regs` is not zero: the entry loads DR0-DR3.
    pub(super) fn switches(&mut self) -> bool {
        let vcpu = self.vcpu();
        vcpu.bp_enabled || vcpu.wont_exit
    }
}

/// `kvm_update_dr0123`.
pub(crate) fn update_dr0123<P: Probe>(kvm: &mut Kvm<'_, P>) {
    let vcpu = kvm.vcpu();
    if !vcpu.debugger_owns() {
        vcpu.eff_db = vcpu.db;
    }
}

/// `kvm_update_dr7`: the vendor's DR7, and whether it enables anything.
pub(crate) fn update_dr7<P: Probe>(kvm: &mut Kvm<'_, P>) {
    let dr7 = kvm.vcpu().effective_dr7();
    kvm.write_field(Field::GuestDr7, dr7);
    kvm.vcpu().bp_enabled = Dr7(dr7).any_armed();
}

/// `kvm_set_dr`: the guest's view; the effective one too unless a debugger has it.
pub(crate) fn set_dr<P: Probe>(kvm: &mut Kvm<'_, P>, dr: Dr, value: u64) {
    let value = fixed(dr, value);
    match dr {
        Dr::Address(slot) => {
            kvm.vcpu().db[slot.index()] = value;
            update_dr0123(kvm);
        }
        Dr::Status => store_dr6(kvm, value),
        Dr::Control => {
            kvm.vcpu().dr7 = value;
            update_dr7(kvm);
        }
    }
}

/// Stores the guest's DR6.
pub(crate) fn store_dr6<P: Probe>(kvm: &mut Kvm<'_, P>, value: u64) {
    if kvm.registers_in_vmcb() {
        kvm.write_field(Field::GuestDr6, value);
    } else {
        kvm.vcpu().dr6 = value;
    }
}

/// Delivers a #DB that waits for the entry.
pub(crate) fn inject_db<P: Probe>(kvm: &mut Kvm<'_, P>) {
    if let Some(events) = kvm.vcpu().pending_db.take() {
        deliver_db(kvm, events);
    }
}

/// What INIT did to DR7 up to 3.6: the reset value reaches the hardware, whoever owns the registers (H-13).
pub(crate) fn drop_debuggers_dr7<P: Probe>(kvm: &mut Kvm<'_, P>) {
    let dr7 = kvm.vcpu().dr7;
    kvm.write_field(Field::GuestDr7, dr7);
    kvm.vcpu().bp_enabled = Dr7(dr7).any_armed();
}

/// `kvm_deliver_exception_payload` for #DB. Where the VMCB has DR6, the hardware has put the events there already.
fn deliver_db<P: Probe>(kvm: &mut Kvm<'_, P>, events: Option<u64>) {
    if let Some(events) = events
        && !kvm.registers_in_vmcb()
    {
        let loses_sticky = kvm.has(Delta::H09);
        let vcpu = kvm.vcpu();
        let before = if loses_sticky { Dr6::IDLE } else { Dr6(vcpu.dr6) };
        vcpu.dr6 = before.after_db(events).0;
    }
    if kvm.vcpu().dr7 & Dr7::GD != 0 && !kvm.has(Delta::H15) {
        kvm.vcpu().dr7 &= !Dr7::GD;
        update_dr7(kvm);
    }
}

/// The vendor's part of DR6 at entry: VMX loads the register itself, for a guest that may look at it; SVM has it in the
/// VMCB, idle otherwise so that a #DB shows its own events only.
pub(super) fn load_dr6<P: Probe>(kvm: &mut Kvm<'_, P>) {
    let (open, dr6) = (kvm.vcpu().wont_exit, kvm.vcpu().dr6);
    match (kvm.is_intel(), open) {
        (true, true) => kvm.host.write_dr(Dr::Status, dr6),
        (true, false) => {}
        (false, true) => kvm.update_field(Field::GuestDr6, dr6),
        (false, false) => kvm.update_field(Field::GuestDr6, Dr6::IDLE.0),
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

/// Closes the window at an exit: reads back what the guest may have changed, intercepts again, recomputes.
pub(super) fn close_window<P: Probe>(kvm: &mut Kvm<'_, P>) {
    kvm.host.mark(Mark::Sync);
    // 15a-d
    for slot in Slot::ALL {
        let address = kvm.host.read_dr(Dr::Address(slot));
        kvm.vcpu().db[slot.index()] = address;
    }
    // 15e, 15f
    kvm.vcpu().dr6 = if kvm.is_intel() { kvm.host.read_dr(Dr::Status) } else { kvm.read_field(Field::GuestDr6) };
    kvm.vcpu().dr7 = kvm.read_field(Field::GuestDr7);
    // 15g, 15h
    kvm.vcpu().wont_exit = false;
    kvm.write_field(Field::DrIntercept, 1);
    // 15i
    if kvm.is_intel() {
        kvm.host.write_dr(Dr::Status, Dr6::IDLE.0);
    }
    // 15j, 15k
    update_dr0123(kvm);
    update_dr7(kvm);
}
