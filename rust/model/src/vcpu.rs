//! A vCPU: what the guest sees, what KVM keeps, what the VMCS or VMCB holds.

use debugreg::{Dr6, Dr7, Registers};

use crate::event::GuestDebug;
use crate::policy::{Delta, Policy, WORDS};

/// The VMCS or VMCB, as far as debug registers go.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub struct Vmcs {
    /// `vmcb.save.dr6`; unused on Intel.
    pub dr6: u64,
    /// GUEST_DR7, `vmcb.save.dr7`.
    pub dr7: u64,
    /// Whether MOV DR exits.
    pub dr_intercept: bool,
}

/// What a guest hypervisor has asked for when it entered its guest.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub struct Nested {
    /// DR7 in its VMCB or VMCS.
    pub dr7: u64,
    /// Its guest's #DB exits to it.
    pub intercepts_db: bool,
}

/// `kvm_run.debug.arch`, as the last KVM_EXIT_DEBUG left it.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct DebugExit {
    /// What it says of DR6.
    pub dr6: u64,
    /// What it says of DR7.
    pub dr7: u64,
}

/// Why a guest has left, as far as a policy may ask.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug, Default)]
pub enum Exit {
    /// #DB was intercepted.
    Db,
    /// A MOV to or from a debug register was.
    MovDr,
    /// An NMI came.
    Nmi,
    /// Anything else.
    #[default]
    Other,
}

impl Exit {
    /// As a policy is told.
    pub const fn name(self) -> &'static str {
        match self {
            Exit::Db => "db",
            Exit::MovDr => "dr",
            Exit::Nmi => "nmi",
            Exit::Other => "other",
        }
    }
}

/// A vCPU.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "KVM keeps as many")]
pub struct Vcpu {
    /// CR4.DE: DR4 and DR5 are #UD, not other names of DR6 and DR7.
    pub debug_extensions: bool,
    /// What the guest's own writes, `KVM_SET_DEBUGREGS`, INIT and delivered #DBs make of its registers: what it is
    /// entitled to read. No policy looks at this.
    pub own: Registers,
    /// What `KVM_SET_GUEST_DEBUG` asked for.
    pub debug: GuestDebug,
    /// `arch.db`: guest-visible DR0-DR3.
    pub db: [u64; 4],
    /// `arch.dr6`.
    pub dr6: u64,
    /// `arch.dr7`.
    pub dr7: u64,
    /// `arch.eff_db`: what an entry loads.
    pub eff_db: [u64; 4],
    /// `arch.guest_debug_dr7`: not validated, not masked.
    pub guest_debug_dr7: u64,
    /// `KVM_DEBUGREG_BP_ENABLED`: the effective DR7 enables something.
    pub bp_enabled: bool,
    /// `KVM_DEBUGREG_WONT_EXIT`: the guest accesses its registers without an exit until the next one.
    pub wont_exit: bool,
    /// `KVM_DEBUGREG_RELOAD` (4.1 to 5.14): the next entry loads DR0-DR3, enabled or not.
    pub reload: bool,
    /// The guest's registers stay in the hardware from exit to entry (Xen's `flag_dr_dirty`).
    pub kept: bool,
    /// The instruction before was a MOV SS.
    pub mov_ss: bool,
    /// A #DB that waits for injection, with its events in positive polarity if it has any.
    pub pending_db: Option<Option<u64>>,
    /// A #BP that the VMM injects waits for injection.
    pub pending_bp: bool,
    /// DR6 and DR7 as an SMI has saved them, while its handler runs.
    pub smram: Option<(u64, u64)>,
    /// The guest is a hypervisor, and its own guest runs.
    pub nested: Option<Nested>,
    /// What the VMM was last told.
    pub debug_exit: DebugExit,
    /// Why its guest has left, while the exit is under way.
    pub exit: Exit,
    /// The registers of a guest whose state KVM cannot see (VMSA, TDVPS).
    pub vmsa: Registers,
    /// The host's registers, where a policy saves them.
    pub saved: Registers,
    /// The slots whose addresses the last entry loaded, as in DR6.B0-B3.
    pub loaded: u8,
    /// What a policy that is not of this crate remembers of it.
    pub words: [u64; WORDS],
    /// The VMCS or VMCB.
    pub vmcs: Vmcs,
}

impl Default for Vcpu {
    /// After power-on.
    fn default() -> Vcpu {
        Vcpu {
            debug_extensions: false,
            own: Registers::RESET,
            debug: GuestDebug::default(),
            db: [0; 4],
            dr6: Dr6::IDLE.0,
            dr7: Dr7::RESET.0,
            eff_db: [0; 4],
            guest_debug_dr7: 0,
            bp_enabled: false,
            wont_exit: false,
            reload: false,
            kept: false,
            mov_ss: false,
            pending_db: None,
            pending_bp: false,
            smram: None,
            nested: None,
            debug_exit: DebugExit::default(),
            exit: Exit::Other,
            vmsa: Registers::RESET,
            saved: Registers::RESET,
            loaded: 0,
            words: [0; WORDS],
            vmcs: Vmcs { dr6: Dr6::IDLE.0, dr7: Dr7::RESET.0, dr_intercept: true },
        }
    }
}

impl Vcpu {
    /// `KVM_GUESTDBG_USE_HW_BP`: the debugger has the registers.
    pub fn debugger_owns(&self) -> bool {
        self.debug.control & GuestDebug::USE_HW_BP != 0
    }

    /// Whether any `KVM_GUESTDBG_*` flag is set.
    pub fn is_debugged(&self) -> bool {
        self.debug.control != 0
    }

    /// Whether a #DB exits for the debugger's sake.
    pub fn debugger_intercepts_db(&self) -> bool {
        self.debug.control & (GuestDebug::USE_HW_BP | GuestDebug::SINGLESTEP) != 0
    }

    /// `KVM_GUESTDBG_SINGLESTEP`: TF is forced, and hidden from the guest.
    pub fn is_stepped(&self) -> bool {
        self.debug.control & GuestDebug::SINGLESTEP != 0
    }

    /// Whose a #DB is: what the debugger is told of it, and what is queued for the guest. One that only single-steps gets
    /// the guest's own breakpoints too, and the guest loses them (Z-8).
    pub(crate) fn share_db(&self, policy: Policy, events: u64) -> (Option<u64>, Option<u64>) {
        if !self.debugger_intercepts_db() {
            return (None, Some(events));
        }
        if self.debugger_owns() || policy.has(Delta::Z8) {
            return (Some(events), None);
        }
        let (steps, guests) = (events & Dr6::BS, events & !Dr6::BS);
        ((steps != 0).then_some(steps), (guests != 0 || steps == 0).then_some(guests))
    }

    /// `kvm_get_effective_dr7`.
    pub fn effective_dr7(&self) -> u64 {
        if self.debugger_owns() { self.guest_debug_dr7 } else { self.dr7 }
    }

    /// The registers that should be in force while the guest runs.
    pub fn effective(&self) -> Registers {
        if self.debugger_owns() {
            Registers { dr: self.debug.dr, dr6: self.own.dr6, dr7: self.debug.dr7 }
        } else {
            self.own
        }
    }
}
