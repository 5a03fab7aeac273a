//! A vCPU: what the guest sees, what KVM keeps, what the VMCS or VMCB holds.

use debugreg::{Dr6, Dr7, Registers};

use crate::TaskId;
use crate::event::GuestDebug;
use crate::policy::{Delta, Policy};

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

/// `kvm_run.debug.arch`, as the last KVM_EXIT_DEBUG left it.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct DebugExit {
    /// What it says of DR6.
    pub dr6: u64,
    /// What it says of DR7.
    pub dr7: u64,
}

/// A vCPU.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub struct Vcpu {
    /// The thread that runs it.
    pub task: TaskId,
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
    /// A #DB that waits for injection, with its events in positive polarity if it has any.
    pub pending_db: Option<Option<u64>>,
    /// What the VMM was last told.
    pub debug_exit: DebugExit,
    /// The host's registers, where a policy saves them.
    pub saved: Registers,
    /// The slots whose addresses the last entry loaded, as in DR6.B0-B3.
    pub loaded: u8,
    /// Between `vcpu_load` and `vcpu_put`: its thread is inside KVM_RUN, on its CPU.
    pub in_run: bool,
    /// The VMCS or VMCB.
    pub vmcs: Vmcs,
}

impl Vcpu {
    pub(crate) fn new(task: TaskId) -> Vcpu {
        Vcpu {
            task,
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
            pending_db: None,
            debug_exit: DebugExit::default(),
            saved: Registers::RESET,
            loaded: 0,
            in_run: false,
            vmcs: Vmcs { dr6: Dr6::IDLE.0, dr7: Dr7::RESET.0, dr_intercept: true },
        }
    }

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

    /// Whether a #DB with these events goes to the debugger. One that only single-steps gets the guest's own breakpoints
    /// too (Z-8).
    pub(crate) fn debugger_gets_db(&self, policy: Policy, events: u64) -> bool {
        let steps = policy.has(Delta::Z8) || events & !Dr6::BS == 0;
        self.debugger_owns() || self.debugger_intercepts_db() && steps
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
