//! Policies: who switches what, and when. A host half, a KVM half, and a list of deltas.
//!
//! One file per KVM half; each reads like the numbered steps that it implements and cites them. What halves share is in
//! `common.rs`, what a single fix changed in `delta.rs`, who is asked for what in `hooks.rs`.

mod bhyve;
pub(crate) mod common;
mod delta;
pub(crate) mod hooks;
mod lean;
mod linux_2_6_30;
mod linux_2_6_32;
mod linux_2_6_33;
mod linux_3_15;
mod linux_5_15;
mod none;
mod perf_sched;
pub(crate) mod pvm;
mod sev_es;
mod skip;
mod tdx;
mod user;
mod virtualbox;
mod xen;

use std::fmt;

use thiserror::Error;

use user::User;

use delta::{NEWEST, Release, of_release, set, v, v26};

pub use delta::Delta;
pub use user::{Ask, Hook, Op, UserHalf, WORDS, register};

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

/// What KVM does at entry and exit: a file of this folder.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs, reason = "each is its file")]
pub enum KvmHalf {
    Linux2_6_30,
    Linux2_6_32,
    Linux2_6_33,
    Linux3_15,
    Linux5_15,
    PerfSched,
    Skip,
    Lean,
    Pvm,
    Tdx,
    SevEs,
    DebugSwap,
    Bhyve,
    Xen,
    VirtualBox,
    Nothing,
    User,
}

impl KvmHalf {
    /// Whether what names no policy may count on it: the host's breakpoints fire outside guests and a guest's inside, and
    /// KVM can be asked.
    pub const fn is_general(self) -> bool {
        !matches!(self, KvmHalf::SevEs | KvmHalf::Bhyve | KvmHalf::Xen | KvmHalf::VirtualBox | KvmHalf::Nothing)
    }

    /// As `debugreg policies` shows it: the file that has it.
    pub const fn name(self) -> &'static str {
        match self {
            KvmHalf::Linux2_6_30 => "linux-2.6.30",
            KvmHalf::Linux2_6_32 => "linux-2.6.32",
            KvmHalf::Linux2_6_33 => "linux-2.6.33",
            KvmHalf::Linux3_15 => "linux-3.15",
            KvmHalf::Linux5_15 => "linux-5.15",
            KvmHalf::PerfSched => "perf-sched",
            KvmHalf::Skip => "skip",
            KvmHalf::Lean => "lean",
            KvmHalf::Pvm => "pvm",
            KvmHalf::Tdx => "tdx",
            KvmHalf::SevEs => "sev-es",
            KvmHalf::DebugSwap => "sev-es-debugswap",
            KvmHalf::Bhyve => "bhyve",
            KvmHalf::Xen => "xen",
            KvmHalf::VirtualBox => "virtualbox",
            KvmHalf::Nothing => "none",
            KvmHalf::User => "user",
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

impl Named {
    /// A release without stable backports, or what replaces the switching of one.
    const fn new(name: &'static str, host: HostHalf, kvm: KvmHalf, release: Release, line: &'static str) -> Named {
        Named { name, host, kvm, natural: of_release(release, host, kvm), line }
    }

    const fn without(self, fixed: &[Delta]) -> Named {
        Named { natural: self.natural & !set(fixed), ..self }
    }

    const fn with(self, deltas: &[Delta]) -> Named {
        Named { natural: self.natural | set(deltas), ..self }
    }
}

/// What is open in the newest Linux.
const HAZARDS: &[Delta] =
    &[Delta::Z1, Delta::Z2, Delta::Z3, Delta::Z5, Delta::Z6, Delta::Z7, Delta::Z8, Delta::Z9, Delta::Z10, Delta::Z11];

/// The policies that have names; `linux` is the newest of Linux.
#[rustfmt::skip]
pub const NAMED: &[Named] = &[
    Named::new("linux-2.6.30", HostHalf::Thread, KvmHalf::Linux2_6_30, v26(30),
        "reads the host's registers at every entry and writes them back at every exit"),
    Named::new("linux-2.6.32", HostHalf::Thread, KvmHalf::Linux2_6_32, v26(32),
        "reads nothing; writes the current thread's registers back if it has any or the guest's were loaded"),
    Named::new("linux-2.6.33", HostHalf::Perf, KvmHalf::Linux2_6_33, v26(33),
        "loads the guest's if it uses any, restores the host's from the shadow if that is active"),
    Named::new("linux-3.15", HostHalf::Perf, KvmHalf::Linux3_15, v(3, 15),
        "lazy guest access: the first MOV DR exits, the others until the next exit do not"),
    Named::new("linux-4.15", HostHalf::Perf, KvmHalf::Linux3_15, v(4, 15),
        "as linux-3.15 with its holes closed; each vcpu_put writes DR6"),
    Named::new("linux-5.14", HostHalf::Perf, KvmHalf::Linux3_15, v(5, 14),
        "as linux-4.15; quiet entry: DR7 is disarmed whenever the host has a breakpoint"),
    Named::new("perf-sched", HostHalf::Perf, KvmHalf::PerfSched, NEWEST,
        "Frederic's answer: counters are scheduled out before entry and in after exit"),
    Named::new("skip", HostHalf::Perf, KvmHalf::Skip, NEWEST,
        "Jan's wish: nothing is written on the way out unless the guest has breakpoints").with(&[Delta::H05]),
    Named::new("lean", HostHalf::Perf, KvmHalf::Lean, NEWEST,
        "quiet entry; only enabled slots are loaded and refreshed").without(&[Delta::Z1, Delta::Z9, Delta::Z10]),
    Named::new("linux-5.15", HostHalf::Perf, KvmHalf::Linux5_15, v(5, 15),
        "lazy guest access; quiet entry; DR6 is loaded for a guest that uses it only"),
    Named::new("debian-6.12", HostHalf::Perf, KvmHalf::Linux5_15, v(6, 12),
        "linux-5.15 as it stands in Debian's 6.12.95, with the stable fixes of H-01 and HB-34")
        .without(&[Delta::H01, Delta::HB34]),
    Named::new("linux-6.14", HostHalf::Perf, KvmHalf::Linux5_15, v(6, 14),
        "as linux-5.15; DR6 is loaded once, outside the run loop"),
    Named::new("pvm", HostHalf::Perf, KvmHalf::Pvm, v(6, 18),
        "no virtualisation by hardware: software switches DR7, behind a filter of addresses; each MOV DR is emulated"),
    Named::new("tdx", HostHalf::Perf, KvmHalf::Tdx, NEWEST,
        "the TDX module switches the guest's registers; KVM brings back the host's"),
    Named::new("sev-es", HostHalf::Perf, KvmHalf::SevEs, NEWEST,
        "a guest's DR7 stays at its reset value, and DR0-DR3 are nobody's: its breakpoints never fire"),
    Named::new("sev-es-debugswap", HostHalf::Perf, KvmHalf::DebugSwap, NEWEST,
        "the processor switches the guest's registers, and back to those that KVM has stored"),
    Named::new("bhyve", HostHalf::Perf, KvmHalf::Bhyve, NEWEST,
        "all registers are saved and loaded at every entry and exit"),
    Named::new("xen", HostHalf::Perf, KvmHalf::Xen, NEWEST,
        "a guest's first MOV DR exits; then the registers are its own until its vCPU is descheduled"),
    Named::new("virtualbox", HostHalf::Perf, KvmHalf::VirtualBox, NEWEST,
        "as xen, and a guest's breakpoints take the registers too; the host's are read first, and come back"),
    Named::new("none", HostHalf::Perf, KvmHalf::Nothing, NEWEST,
        "nobody switches anything"),
    Named::new("linux-fixed", HostHalf::Perf, KvmHalf::Linux5_15, NEWEST,
        "the newest Linux with each hazard closed that is still open (Z-)").without(HAZARDS),
    Named::new("linux", HostHalf::Perf, KvmHalf::Linux5_15, NEWEST,
        "the newest Linux: as linux-6.14; DR7 is disarmed with 0x400, the emulator heeds the debugger"),
];

/// A policy: a named one, with deltas switched.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Policy {
    named: &'static Named,
    /// Who keeps the host's registers.
    pub host: HostHalf,
    /// What KVM does.
    pub kvm: KvmHalf,
    deltas: u64,
    user: Option<User>,
}

/// Why a text names no policy.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// No policy of that name.
    #[error("unknown policy '{0}': allowed are {list}", list = names())]
    Unknown(String),
    /// No delta of that id.
    #[error("unknown delta '{0}': allowed are {list}", list = ids(Delta::ALL))]
    UnknownDelta(String),
    /// The delta makes no difference to the policy.
    #[error("delta {0} does not concern policy '{1}': allowed are {2}")]
    Unconcerned(&'static str, &'static str, String),
    /// A delta's state is neither on nor fixed.
    #[error("delta {0} can be 'on' or 'fixed', not '{1}'")]
    State(&'static str, String),
}

fn names() -> String {
    NAMED.iter().map(|named| named.name).collect::<Vec<_>>().join(", ")
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
        let mut policy = if let Some(named) = NAMED.iter().find(|named| named.name == name) {
            Policy::of(named, None)
        } else {
            let user = User::named(name).ok_or_else(|| PolicyError::Unknown(name.to_owned()))?;
            Policy::of(user.row(), Some(user))
        };
        let named = policy.named;
        for part in parts {
            let (id, state) = part.split_once('=').unwrap_or((part, "on"));
            let Some(delta) = Delta::ALL.iter().copied().find(|delta| delta.id() == id) else {
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

    const fn of(named: &'static Named, user: Option<User>) -> Policy {
        Policy { named, host: named.host, kvm: named.kvm, deltas: named.natural, user }
    }

    /// The named policy that this one is made from.
    pub const fn named(&self) -> &'static Named {
        self.named
    }

    /// Whether the policy has a delta.
    #[inline]
    pub const fn has(&self, delta: Delta) -> bool {
        self.deltas & delta.bit() != 0
    }

    /// Whether the slot rule is kept as numbers: by itself, or because a bug in keeping them is switched on.
    pub(crate) const fn keeps_numbers(&self) -> bool {
        const NUMBERS: u64 = set(&[Delta::Histogram, Delta::HB01, Delta::HB03, Delta::HB14, Delta::HB22, Delta::HB23]);
        self.deltas & NUMBERS != 0
    }

    /// The deltas that make a difference to this policy.
    pub fn concerned(&self) -> Vec<Delta> {
        Delta::ALL.iter().copied().filter(|delta| delta.concerns(self.host, self.kvm)).collect()
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = self.named();
        f.write_str(named.name)?;
        let natural = |delta: Delta| named.natural & delta.bit() != 0;
        for delta in Delta::ALL.iter().copied().filter(|&delta| self.has(delta) != natural(delta)) {
            write!(f, "+{}={}", delta.id(), if self.has(delta) { "on" } else { "fixed" })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_and_print_back() {
        for text in NAMED.iter().map(|named| named.name) {
            assert_eq!(Policy::parse(text).expect(text).to_string(), text);
        }
        for (text, printed) in [
            ("linux-5.15+H-01=fixed", "linux-5.15+H-01=fixed"),
            ("linux-5.15+H-01", "linux-5.15"),
            ("linux+HB-34", "linux+HB-34=on"),
            ("linux-3.15+H-02=fixed", "linux-3.15+H-02=fixed"),
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
    fn a_release_has_what_came_before_it_and_was_fixed_after_it() {
        let has = |text: &str, delta| Policy::parse(text).expect("named").has(delta);
        assert!(has("linux-3.15", Delta::H02) && !has("linux-4.15", Delta::H02));
        assert!(!has("linux-3.15", Delta::H04) && has("linux-4.15", Delta::H04) && !has("linux-5.15", Delta::H04));
        assert!(has("linux-2.6.30", Delta::H08) && !has("linux-2.6.32", Delta::H08));
        assert!(has("linux-6.14", Delta::HB34) && !has("linux", Delta::HB34) && !has("debian-6.12", Delta::HB34));
    }

    #[test]
    fn debian_is_linux_5_15_with_four_changes() {
        let debian = Policy::parse("debian-6.12").expect("named");
        let spelled =
            Policy::parse("linux-5.15+H-01=fixed+H-20=fixed+HB-34=fixed+late-permission=fixed").expect("named");
        assert_eq!((debian.host, debian.kvm, debian.deltas), (spelled.host, spelled.kvm, spelled.deltas));
    }

    #[test]
    fn ids_and_names_are_unique() {
        let mut ids: Vec<_> = Delta::ALL.iter().map(|delta| delta.id()).chain(NAMED.iter().map(|n| n.name)).collect();
        ids.sort_unstable();
        let all = ids.len();
        ids.dedup();
        assert_eq!(ids.len(), all);
    }
}
