//! Policies: who switches what, and when. A host half, a KVM half, and a list of deltas.
//!
//! One file per KVM half; each reads like the numbered steps that it implements and cites them.

pub(crate) mod common;
mod lean;
mod linux_2_6_30;
mod linux_2_6_33;
mod linux_5_15;
mod perf_sched;
mod skip;

use std::fmt;

use debugreg::Dr;
use thiserror::Error;

use crate::event::Misuse;
use crate::machine::Vendor;
use crate::step::{Kvm, Probe};
use crate::vcpu::Vcpu;

/// Who keeps the host's registers.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum HostHalf {
    /// The thread (to 2.6.32).
    Thread,
    /// perf counters (from 2.6.33).
    Perf,
}

impl HostHalf {
    /// As `debugreg policies` shows it.
    pub const fn name(self) -> &'static str {
        match self {
            HostHalf::Thread => "thread",
            HostHalf::Perf => "perf",
        }
    }
}

/// What KVM does at entry and exit.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum KvmHalf {
    /// [`linux_2_6_30`].
    Linux2_6_30,
    /// [`linux_2_6_33`].
    Linux2_6_33,
    /// [`linux_5_15`].
    Linux5_15,
    /// [`perf_sched`].
    PerfSched,
    /// [`skip`].
    Skip,
    /// [`lean`].
    Lean,
}

impl KvmHalf {
    /// As `debugreg policies` shows it: the file that has it.
    pub const fn name(self) -> &'static str {
        match self {
            KvmHalf::Linux2_6_30 => "linux-2.6.30",
            KvmHalf::Linux2_6_33 => "linux-2.6.33",
            KvmHalf::Linux5_15 => "linux-5.15",
            KvmHalf::PerfSched => "perf-sched",
            KvmHalf::Skip => "skip",
            KvmHalf::Lean => "lean",
        }
    }
}

/// What the exit handler of a guest's MOV DR does.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum DrHandling {
    /// Stops intercepting until the next exit; the guest executes the instruction again.
    Open,
    /// Performs this one access and skips the instruction.
    Emulate,
}

/// A known difference between two kernels, by its id in the reference.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs, reason = "`line` says what each is")]
#[repr(u8)]
pub enum Delta {
    Announce,
    Histogram,
    WprobeOr,
    HB01,
    HB02,
    HB03,
    HB14,
    HB22,
    HB23,
    HB31,
    H01,
    H05,
    H07,
    H08,
    H09,
    H11,
    H13,
    H15,
    H16,
    HB34,
}

impl Delta {
    /// All.
    pub const ALL: [Delta; 20] = [
        Delta::Announce,
        Delta::Histogram,
        Delta::WprobeOr,
        Delta::HB01,
        Delta::HB02,
        Delta::HB03,
        Delta::HB14,
        Delta::HB22,
        Delta::HB23,
        Delta::HB31,
        Delta::H01,
        Delta::H05,
        Delta::H07,
        Delta::H08,
        Delta::H09,
        Delta::H11,
        Delta::H13,
        Delta::H15,
        Delta::H16,
        Delta::HB34,
    ];

    /// The id as users write it.
    pub const fn id(self) -> &'static str {
        match self {
            Delta::Announce => "announce",
            Delta::Histogram => "histogram",
            Delta::WprobeOr => "wprobe-or",
            Delta::HB01 => "HB-01",
            Delta::HB02 => "HB-02",
            Delta::HB03 => "HB-03",
            Delta::HB14 => "HB-14",
            Delta::HB22 => "HB-22",
            Delta::HB23 => "HB-23",
            Delta::HB31 => "HB-31",
            Delta::H01 => "H-01",
            Delta::H05 => "H-05",
            Delta::H07 => "H-07",
            Delta::H08 => "H-08",
            Delta::H09 => "H-09",
            Delta::H11 => "H-11",
            Delta::H13 => "H-13",
            Delta::H15 => "H-15",
            Delta::H16 => "H-16",
            Delta::HB34 => "HB-34",
        }
    }

    /// What it is.
    pub const fn line(self) -> &'static str {
        match self {
            Delta::Announce => {
                "kgdb announces its slots, and nobody else's update of the registers touches them (the mail)"
            }
            Delta::Histogram => {
                "slots are kept as numbers of the kind that Linux keeps, not counted when somebody asks (6.1)"
            }
            Delta::WprobeOr => {
                "pointing an installed breakpoint elsewhere or-s the new R/W and LEN to the old (wprobe as posted)"
            }
            Delta::HB01 => "one counter for the whole machine decides whether a slot is free (before 2.6.33's release)",
            Delta::HB02 => {
                "a breakpoint that is refused after its slot was reserved keeps the slot for ever (to 2.6.33-rc)"
            }
            Delta::HB03 => "a task's breakpoints are counted against the task that has most (to 2.6.33-rc)",
            Delta::HB14 => "a task's breakpoints are counted in its context, also when they have left it (to 2.6.35)",
            Delta::HB22 => {
                "slots are reserved on the CPUs that are online, and given back on those that are then (to 3.10)"
            }
            Delta::HB23 => "a task's breakpoints of any CPU are left out when those of one are counted (to 3.10)",
            Delta::HB31 => {
                "the #DB handler stops at the first slot without an owner, and loses the hits above it (to 5.11-rc6)"
            }
            Delta::H01 => "a re-entry inside KVM's run loop loads a stale DR6 over the guest's (5.7 to 6.13)",
            Delta::H05 => "host breakpoints stay armed on the way into a guest that uses none (to 5.13)",
            Delta::H07 => "a GD exit to the debugger carries the guest's DR6 on VMX (to 5.6)",
            Delta::H08 => "unprivileged guest code can access debug registers on VMX (to 2.6.31, CVE-2009-3722)",
            Delta::H09 => "a #DB destroys the sticky bits of the guest's DR6 on VMX (to 3.13)",
            Delta::H11 => "INIT changes the guest's addresses, but not the ones that an entry loads (to 4.0)",
            Delta::H13 => "INIT drops the debugger's DR7 (to 3.6)",
            Delta::H15 => "DR7.GD survives the #DB that KVM injects (to 3.16)",
            Delta::H16 => "a guest reads 0 from DR4 and DR5 on VMX (to 2.6.34)",
            Delta::HB34 => "DR7 is disarmed with 0 instead of its reset value 0x400 (to 6.15)",
        }
    }

    const fn bit(self) -> u64 {
        1 << self as u8
    }

    /// Whether the two halves behave differently with it.
    const fn concerns(self, host: HostHalf, kvm: KvmHalf) -> bool {
        use KvmHalf::{Lean, Linux2_6_30, Linux2_6_33, Linux5_15, PerfSched, Skip};
        match (self, kvm) {
            (
                Delta::Announce
                | Delta::Histogram
                | Delta::WprobeOr
                | Delta::HB01
                | Delta::HB02
                | Delta::HB03
                | Delta::HB14
                | Delta::HB22
                | Delta::HB23
                | Delta::HB31,
                _,
            ) => matches!(host, HostHalf::Perf),
            (Delta::H01, half) => matches!(half, Linux5_15),
            (Delta::H05, half) => matches!(half, Linux2_6_33 | Linux5_15 | Skip | Lean),
            (Delta::H08 | Delta::H16, half) => matches!(half, Linux2_6_30 | Linux2_6_33),
            (Delta::H07 | Delta::H09 | Delta::H11 | Delta::H13 | Delta::H15, half) => {
                !matches!(half, PerfSched | Skip | Lean)
            }
            (Delta::HB34, half) => matches!(half, Linux2_6_33 | Linux5_15 | Linux2_6_30),
        }
    }
}

/// A policy as it has a name.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Named {
    /// The name.
    pub name: &'static str,
    /// Its host half.
    pub host: HostHalf,
    /// Its KVM half.
    pub kvm: KvmHalf,
    /// The deltas that it has by nature.
    natural: u64,
    /// What it is, in a line.
    pub line: &'static str,
}

const fn deltas(list: &[Delta]) -> u64 {
    let (mut bits, mut i) = (0, 0);
    while i < list.len() {
        bits |= list[i].bit();
        i += 1;
    }
    bits
}

/// What all old kernels here have.
const OLD: [Delta; 7] = [Delta::H07, Delta::H09, Delta::H11, Delta::H13, Delta::H15, Delta::H16, Delta::HB34];

/// The policies that have names; `linux` is the newest of Linux.
#[rustfmt::skip]
pub const NAMED: [Named; 9] = [
    Named { name: "linux-2.6.30", host: HostHalf::Thread, kvm: KvmHalf::Linux2_6_30,
        natural: deltas(&OLD) | deltas(&[Delta::H08]),
        line: "reads the host's registers at every entry and writes them back at every exit" },
    Named { name: "linux-2.6.33", host: HostHalf::Perf, kvm: KvmHalf::Linux2_6_33,
        natural: deltas(&OLD) | deltas(&[Delta::H05, Delta::HB31, Delta::WprobeOr]),
        line: "loads the guest's if it uses any, restores the host's from the shadow if that is active" },
    Named { name: "perf-sched", host: HostHalf::Perf, kvm: KvmHalf::PerfSched, natural: deltas(&[Delta::WprobeOr]),
        line: "Frederic's answer: counters are scheduled out before entry and in after exit" },
    Named { name: "skip", host: HostHalf::Perf, kvm: KvmHalf::Skip, natural: deltas(&[Delta::H05, Delta::WprobeOr]),
        line: "Jan's wish: nothing is written on the way out unless the guest has breakpoints" },
    Named { name: "lean", host: HostHalf::Perf, kvm: KvmHalf::Lean, natural: deltas(&[Delta::WprobeOr]),
        line: "quiet entry; only enabled slots are loaded and refreshed" },
    Named { name: "linux-5.15", host: HostHalf::Perf, kvm: KvmHalf::Linux5_15,
        natural: deltas(&[Delta::H01, Delta::HB34, Delta::WprobeOr]),
        line: "lazy guest access; quiet entry; DR6 is loaded for a guest that uses it only" },
    Named { name: "debian-6.12", host: HostHalf::Perf, kvm: KvmHalf::Linux5_15, natural: deltas(&[Delta::WprobeOr]),
        line: "linux-5.15 with the stable fixes of Debian's 6.12.95: H-01 and HB-34" },
    Named { name: "linux-6.14", host: HostHalf::Perf, kvm: KvmHalf::Linux5_15, natural: deltas(&[Delta::WprobeOr]),
        line: "as linux-5.15; DR6 is loaded once, outside the run loop (6.14), DR7 disarmed with 0x400 (6.16)" },
    Named { name: "linux", host: HostHalf::Perf, kvm: KvmHalf::Linux5_15, natural: deltas(&[Delta::WprobeOr]),
        line: "the newest Linux: linux-6.14" },
];

/// A policy: a named one, with deltas switched.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub struct Policy {
    named: u8,
    /// Who keeps the host's registers.
    pub host: HostHalf,
    /// What KVM does.
    pub kvm: KvmHalf,
    deltas: u64,
}

/// Why a text names no policy.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// No policy of that name.
    #[error("unknown policy '{0}': allowed are {list}", list = names())]
    Unknown(String),
    /// No delta of that id.
    #[error("unknown delta '{0}': allowed are {list}", list = ids(&Delta::ALL))]
    UnknownDelta(String),
    /// The delta makes no difference to the policy.
    #[error("delta {0} does not concern policy '{1}': allowed are {2}")]
    Unconcerned(&'static str, &'static str, String),
    /// A delta's state is neither on nor fixed.
    #[error("delta {0} can be 'on' or 'fixed', not '{1}'")]
    State(&'static str, String),
}

fn names() -> String {
    NAMED.map(|named| named.name).join(", ")
}

fn ids(deltas: &[Delta]) -> String {
    deltas.iter().map(|delta| delta.id()).collect::<Vec<_>>().join(", ")
}

impl Policy {
    /// `NAME(+ID[=on|fixed])*`.
    ///
    /// # Errors
    ///
    /// [`PolicyError`] says what is allowed instead.
    pub fn parse(text: &str) -> Result<Policy, PolicyError> {
        let mut parts = text.split('+');
        let name = parts.next().unwrap_or_default();
        let Some(index) = NAMED.iter().position(|named| named.name == name) else {
            return Err(PolicyError::Unknown(name.to_owned()));
        };
        let named = &NAMED[index];
        let mut policy = Policy { named: index as u8, host: named.host, kvm: named.kvm, deltas: named.natural };
        for part in parts {
            let (id, state) = part.split_once('=').unwrap_or((part, "on"));
            let Some(delta) = Delta::ALL.into_iter().find(|delta| delta.id() == id) else {
                return Err(PolicyError::UnknownDelta(id.to_owned()));
            };
            if !delta.concerns(named.host, named.kvm) {
                return Err(PolicyError::Unconcerned(delta.id(), named.name, ids(&policy.concerned())));
            }
            match state {
                "on" => policy.deltas |= delta.bit(),
                "fixed" => policy.deltas &= !delta.bit(),
                other => return Err(PolicyError::State(delta.id(), other.to_owned())),
            }
        }
        Ok(policy)
    }

    /// The named policy that this one is made from.
    pub fn named(&self) -> &'static Named {
        &NAMED[usize::from(self.named)]
    }

    /// Whether the policy has a delta.
    #[inline]
    pub const fn has(&self, delta: Delta) -> bool {
        self.deltas & delta.bit() != 0
    }

    /// Whether the slot rule is kept as numbers: by itself, or because a bug in keeping them is switched on.
    pub(crate) const fn keeps_numbers(&self) -> bool {
        const NUMBERS: u64 =
            deltas(&[Delta::Histogram, Delta::HB01, Delta::HB03, Delta::HB14, Delta::HB22, Delta::HB23]);
        self.deltas & NUMBERS != 0
    }

    /// The deltas that make a difference to this policy.
    pub fn concerned(&self) -> Vec<Delta> {
        Delta::ALL.into_iter().filter(|delta| delta.concerns(self.host, self.kvm)).collect()
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = self.named();
        f.write_str(named.name)?;
        for delta in Delta::ALL.into_iter().filter(|delta| self.has(*delta) != (named.natural & delta.bit() != 0)) {
            write!(f, "+{}={}", delta.id(), if self.has(delta) { "on" } else { "fixed" })?;
        }
        Ok(())
    }
}

/// The hooks: each KVM half's own where it differs.
impl Policy {
    /// On the way in, from `vcpu_enter_guest` to the entry itself.
    #[inline]
    pub(crate) fn vm_entry<P: Probe>(self, kvm: &mut Kvm<'_, P>) {
        match self.kvm {
            KvmHalf::Linux2_6_30 => linux_2_6_30::vm_entry(kvm),
            KvmHalf::Linux2_6_33 => linux_2_6_33::vm_entry(kvm),
            KvmHalf::Linux5_15 => linux_5_15::vm_entry(kvm),
            KvmHalf::PerfSched => perf_sched::vm_entry(kvm),
            KvmHalf::Skip => skip::vm_entry(kvm),
            KvmHalf::Lean => lean::vm_entry(kvm),
        }
    }

    /// A re-entry inside the run loop.
    pub(crate) fn vm_reentry<P: Probe>(self, kvm: &mut Kvm<'_, P>) {
        if self.has(Delta::H01) {
            common::load_dr6(kvm);
        }
    }

    /// On the way out, with interrupts still off.
    #[inline]
    pub(crate) fn vm_exit<P: Probe>(self, kvm: &mut Kvm<'_, P>) {
        match self.kvm {
            KvmHalf::Linux2_6_30 => linux_2_6_30::vm_exit(kvm),
            KvmHalf::Linux2_6_33 => linux_2_6_33::vm_exit(kvm),
            KvmHalf::Linux5_15 => linux_5_15::vm_exit(kvm),
            KvmHalf::PerfSched => perf_sched::vm_exit(kvm),
            KvmHalf::Skip => skip::vm_exit(kvm),
            KvmHalf::Lean => lean::vm_exit(kvm),
        }
    }

    /// The exit handler of a guest's MOV DR.
    pub(crate) fn dr_access<P: Probe>(self, kvm: &mut Kvm<'_, P>) -> DrHandling {
        match self.kvm {
            KvmHalf::Linux5_15 | KvmHalf::Lean => common::open_window(kvm),
            KvmHalf::Linux2_6_30 | KvmHalf::Linux2_6_33 | KvmHalf::PerfSched | KvmHalf::Skip => DrHandling::Emulate,
        }
    }

    /// Whether a guest's #DB exits although nobody debugs it: on VMX since 2.6.32, on SVM since 4.4.
    pub(crate) fn intercepts_db(self, vendor: Vendor) -> bool {
        match self.kvm {
            KvmHalf::Linux2_6_30 => false,
            KvmHalf::Linux2_6_33 => vendor == Vendor::Intel,
            KvmHalf::Linux5_15 | KvmHalf::PerfSched | KvmHalf::Skip | KvmHalf::Lean => true,
        }
    }

    /// `KVM_GET_DEBUGREGS` and `KVM_SET_DEBUGREGS` came with 2.6.34.
    pub(crate) fn has_debugregs(self) -> Result<(), Misuse> {
        match self.kvm {
            KvmHalf::Linux2_6_30 | KvmHalf::Linux2_6_33 => {
                Err(Misuse::NotExpressible("KVM_GET_DEBUGREGS and KVM_SET_DEBUGREGS came with 2.6.34"))
            }
            _ => Ok(()),
        }
    }

    /// Whether the guest's DR6 and DR7 live in the VMCB rather than in KVM's own memory: on SVM, to 5.6 for DR6.
    fn registers_in_vmcb(self, vendor: Vendor) -> bool {
        vendor == Vendor::Amd && matches!(self.kvm, KvmHalf::Linux2_6_30 | KvmHalf::Linux2_6_33)
    }

    /// `kvm_get_dr`: the guest-visible value, never the debugger's.
    pub(crate) fn get_dr(self, vcpu: &Vcpu, dr: Dr, vendor: Vendor) -> u64 {
        match dr {
            Dr::Address(slot) => vcpu.db[slot.index()],
            Dr::Status if self.registers_in_vmcb(vendor) => vcpu.vmcs.dr6,
            Dr::Status => vcpu.dr6,
            Dr::Control if self.registers_in_vmcb(vendor) && !vcpu.debugger_owns() => vcpu.vmcs.dr7,
            Dr::Control => vcpu.dr7,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_and_print_back() {
        for text in NAMED.map(|named| named.name) {
            assert_eq!(Policy::parse(text).expect(text).to_string(), text);
        }
        for (text, printed) in [
            ("linux-5.15+H-01=fixed", "linux-5.15+H-01=fixed"),
            ("linux-5.15+H-01", "linux-5.15"),
            ("linux-6.14+HB-34", "linux-6.14+HB-34=on"),
            ("skip+H-05=fixed", "skip+H-05=fixed"),
        ] {
            assert_eq!(Policy::parse(text).expect(text).to_string(), printed);
        }
    }

    #[test]
    fn what_names_no_policy_says_what_would() {
        let said = |text: &str| Policy::parse(text).expect_err(text).to_string();
        assert!(said("linus").contains("allowed are linux-2.6.30"));
        assert!(said("skip+H-99").contains("unknown delta 'H-99'"));
        assert!(said("perf-sched+H-05").contains("does not concern"));
        assert!(said("skip+H-05=off").contains("'on' or 'fixed', not 'off'"));
    }

    #[test]
    fn debian_is_linux_5_15_with_two_fixes() {
        let debian = Policy::parse("debian-6.12").expect("named");
        let spelled = Policy::parse("linux-5.15+H-01=fixed+HB-34=fixed").expect("named");
        assert_eq!((debian.host, debian.kvm, debian.deltas), (spelled.host, spelled.kvm, spelled.deltas));
    }
}
