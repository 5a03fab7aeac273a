//! The laws: what a switch policy must never do, each a pure function of a state or of one transition.
//!
//! They compare what is there with what was asked for ([`Machine::owed`], a guest's [`own`](crate::Vcpu) registers), never
//! with what a policy has noted down, and they know no bug by name. [`judge`] performs an event under all of them; in
//! `state.rs` is what holds between events, in `transition.rs` what holds before every step, in `outcome.rs` what an event
//! should come to.

mod outcome;
mod state;
mod transition;

use std::fmt;

use crate::event::{Event, Misuse, Outcome};
use crate::machine::Machine;
use crate::scenario::At;

pub use transition::Witness;

macro_rules! laws {
    ($($law:ident $name:literal, $sentence:literal, $source:literal;)*) => {
        /// A law.
        #[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[allow(missing_docs, reason = "`sentence` says what each is")]
        #[repr(u8)]
        pub enum Law { $($law),* }

        impl Law {
            /// All, in the order in which they are told.
            pub const ALL: &[Law] = &[$(Law::$law),*];

            /// As users write it.
            pub const fn name(self) -> &'static str {
                match self { $(Law::$law => $name),* }
            }

            /// What it says.
            pub const fn sentence(self) -> &'static str {
                match self { $(Law::$law => $sentence),* }
            }

            /// Why it holds of a correct kernel.
            pub const fn source(self) -> &'static str {
                match self { $(Law::$law => $source),* }
            }
        }
    };
}

laws! {
    HostArmed "host-armed",
        "In host context a CPU has armed exactly the breakpoints that its own counters and the running task's ask for; \
         inside a transition some of those of before and after, and nothing else.",
        "linux-host 3.1, 7.2, 8: install, uninstall and the task switch; `hw_breakpoint_restore`";
    GuestArmed "guest-armed",
        "While a guest runs, the registers have armed exactly what it has set itself, or its debugger instead, and the entry \
         succeeds.",
        "kvm 5, 14: `vcpu_enter_guest`, KVM_SET_GUEST_DEBUG";
    DebuggerOwns "debugger-owns",
        "Under KVM_GUESTDBG_USE_HW_BP no breakpoint of the guest's own reaches the hardware.",
        "kvm 5: `kvm_get_effective_dr7`; the mail, wish 2";
    EntryQuiet "entry-quiet",
        "At the entry itself no breakpoint of the host is armed any more.",
        "kvm 3.8: the entry is no-instrumentation code since 5.14 (f85d40160691); H-05";
    ShadowTrue "shadow-true",
        "Between transitions the shadow enables, bit for bit, what the hardware has armed; wherever an NMI can come, a \
         shadow that is inactive means that nothing is armed; the NMI is handled with nothing armed; GD, which would make \
         the next MOV DR trap, is never set.",
        "linux-host INV4: `local_db_save` under a hypervisor asks the shadow alone";
    GuestReadsOwn "guest-reads-own",
        "What a guest, or its VMM, reads from DR0-DR7 follows from the guest's own writes, KVM_SET_DEBUGREGS, INIT and \
         delivered #DBs.",
        "kvm 2, 6: `kvm_get_dr`, `kvm_vcpu_ioctl_x86_get_debugregs`; SDM vol. 3, \"Debug Registers\"";
    Dr6True "dr6-true",
        "Whoever is told of a #DB finds his own events in DR6, and DR7 as it was in force; nobody hears of an event that was \
         not his.",
        "SDM vol. 3, \"Debug Status Register (DR6)\"; linux-host 9; kvm 5";
    NoLoss "no-loss",
        "An access that meets a breakpoint in force is told to its owner, once; what withholds it is exclude_user, \
         exclude_kernel, a data access that KVM emulates, a debugger that has the registers.",
        "linux-host 9: `hw_breakpoint_handler`; kvm 5: `handle_exception_nmi`, `db_interception`";
    KgdbUntouched "kgdb-untouched",
        "A breakpoint that kgdb has set stays armed in host context until kgdb takes it away.",
        "the mail, wish 1; linux-host 12";
    SlotsSound "slots-sound",
        "A breakpoint is admitted iff the rule of slots admits it, one that is refused changes nothing, and what was admitted \
         gets a register.",
        "linux-host 5: `reserve_bp_slot`";
    SkipFree "skip-free",
        "With no breakpoint anywhere a task switch, an entry and an exit execute no MOV DR.",
        "the mail, wish 4";
}

impl fmt::Display for Law {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Some of the laws.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub struct Laws(u16);

impl Laws {
    /// Every law.
    pub const ALL: Laws = Laws((1 << Law::ALL.len()) - 1);
    /// None.
    pub const NONE: Laws = Laws(0);

    /// Whether a law is among them.
    #[inline]
    pub const fn has(self, law: Law) -> bool {
        self.0 >> law as u8 & 1 != 0
    }

    /// With one more.
    #[must_use]
    pub const fn with(self, law: Law) -> Laws {
        Laws(self.0 | 1 << law as u8)
    }

    /// Without one.
    #[must_use]
    pub const fn without(self, law: Law) -> Laws {
        Laws(self.0 & !(1 << law as u8))
    }

    /// Whether there are none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Each of them.
    pub fn iter(self) -> impl Iterator<Item = Law> {
        Law::ALL.iter().copied().filter(move |&law| self.has(law))
    }

    /// `all`, or names with commas between them.
    ///
    /// # Errors
    ///
    /// What was found and what is allowed.
    pub fn parse(text: &str) -> Result<Laws, String> {
        if text == "all" {
            return Ok(Laws::ALL);
        }
        text.split(',').try_fold(Laws::NONE, |laws, name| {
            let law = Law::ALL.iter().find(|law| law.name() == name);
            law.map(|&law| laws.with(law)).ok_or_else(|| {
                let all: Vec<_> = Law::ALL.iter().map(|law| law.name()).collect();
                format!("unknown law '{name}': allowed are all, {}", all.join(", "))
            })
        })
    }
}

impl fmt::Display for Laws {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Laws::ALL {
            return f.write_str("all");
        }
        let names: Vec<_> = self.iter().map(Law::name).collect();
        f.write_str(&names.join(","))
    }
}

/// A law is broken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Breach {
    /// Which one.
    pub law: Law,
    /// What is there, and what should be.
    pub why: String,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "breaks {}: {}", self.law, self.why)
    }
}

/// What came of an event under laws.
#[derive(Debug)]
pub struct Judged {
    /// Its outcome.
    pub outcome: Outcome,
    /// The first law that it broke.
    pub breach: Option<Breach>,
    /// How many steps it took.
    pub steps: usize,
    /// Whether its interruption took place, if it had one.
    pub interrupted: bool,
}

/// Performs an event under laws, with something that happens before one of its steps.
///
/// # Errors
///
/// [`Misuse`] if the event or its interruption makes no sense here; the machine is then in no particular state.
pub fn judge(
    machine: &mut Machine,
    event: &Event,
    interruption: Option<(At, &Event)>,
    laws: Laws,
) -> Result<Judged, Misuse> {
    let mut judged = judge_transition(machine, event, interruption, laws)?;
    judged.breach = judged.breach.or_else(|| machine.breach(laws));
    Ok(judged)
}

/// [`judge`] without a look at the state that it comes to.
pub(crate) fn judge_transition(
    machine: &mut Machine,
    event: &Event,
    interruption: Option<(At, &Event)>,
    laws: Laws,
) -> Result<Judged, Misuse> {
    let mut witness = Witness::new(machine, event, laws);
    if let Some((at, event)) = interruption {
        witness = witness.interrupted_by(at, event.clone());
    }
    let outcome = machine.apply(event, &mut witness)?;
    witness.conclude_transition(machine, event, outcome)
}
