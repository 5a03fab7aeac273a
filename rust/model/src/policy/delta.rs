//! Known differences between kernels, by their ids in the reference. Each is one row: what users saw, which halves it
//! makes a difference to, and the releases that have it. A policy's name switches it: `linux-3.15+H-02=fixed`.
//!
//! A release has by nature what was introduced before it and fixed after it, so nobody lists a kernel's bugs twice.
//! `H-` are bugs and `Z-` hazards of KVM, `HB-` of the breakpoint layer.

use super::{HostHalf, KvmHalf};

/// A release of Linux, as a number that orders them.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Release(u32);

/// `v(5, 14)` is 5.14.
pub(super) const fn v(major: u32, minor: u32) -> Release {
    Release(major * 1_000_000 + minor * 1000)
}

/// `v26(33)` is 2.6.33.
pub(super) const fn v26(patch: u32) -> Release {
    Release(2_006_000 + patch)
}

/// The newest release that the model knows.
pub(super) const NEWEST: Release = v(7, 2);
/// After every release: not fixed.
const EVER: Release = Release(u32::MAX);
/// Of no release: switched on by name only.
const NEVER: Release = Release(0);

/// Halves, as a set.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
struct Halves {
    host: u32,
    kvm: u32,
}

impl Halves {
    const fn kvm(list: &[KvmHalf]) -> Halves {
        let (mut kvm, mut i) = (0, 0);
        while i < list.len() {
            kvm |= 1 << list[i] as u32;
            i += 1;
        }
        Halves { host: 0, kvm }
    }

    const fn host(half: HostHalf) -> Halves {
        Halves { host: 1 << half as u32, kvm: 0 }
    }

    const fn and(self, other: Halves) -> Halves {
        Halves { host: self.host | other.host, kvm: self.kvm | other.kvm }
    }
}

/// The breakpoint layer on perf.
const PERF: Halves = Halves::host(HostHalf::Perf);
/// KVM up to 2.6.33: each access of a guest to its registers is emulated.
const OLD: Halves = Halves::kvm(&[KvmHalf::Linux2_6_30, KvmHalf::Linux2_6_32, KvmHalf::Linux2_6_33]);
/// Linux that opens a window for a guest's own accesses.
const LAZY: Halves = Halves::kvm(&[KvmHalf::Linux3_15, KvmHalf::Linux5_15]);
/// Everybody who opens that window.
const OPENS: Halves = LAZY.and(Halves::kvm(&[KvmHalf::Lean]));
/// KVM since 3.15, and the policies here that replace its switching only.
const KVM: Halves = OPENS.and(Halves::kvm(&[KvmHalf::PerfSched, KvmHalf::Skip, KvmHalf::Pvm, KvmHalf::User]));
/// Everybody whose entry can disarm the host without loading anything.
const QUIET: Halves = OPENS.and(Halves::kvm(&[
    KvmHalf::Linux2_6_33,
    KvmHalf::Skip,
    KvmHalf::Pvm,
    KvmHalf::Tdx,
    KvmHalf::SevEs,
    KvmHalf::DebugSwap,
]));

macro_rules! deltas {
    ($($name:ident $id:literal $halves:expr, $since:expr => $fixed:expr, $line:literal;)*) => {
        /// A known difference between two kernels, by its id in the reference.
        #[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
        #[allow(missing_docs, reason = "`line` says what each is")]
        #[repr(u8)]
        pub enum Delta { $($name),* }

        impl Delta {
            /// All.
            pub const ALL: &[Delta] = &[$(Delta::$name),*];

            /// The id as users write it.
            pub const fn id(self) -> &'static str {
                match self { $(Delta::$name => $id),* }
            }

            /// What it is.
            pub const fn line(self) -> &'static str {
                match self { $(Delta::$name => $line),* }
            }

            const fn halves(self) -> Halves {
                match self { $(Delta::$name => $halves),* }
            }

            /// The first release that has it, and the first that has not.
            const fn releases(self) -> (Release, Release) {
                match self { $(Delta::$name => ($since, $fixed)),* }
            }
        }
    };
}

deltas! {
    Announce "announce" PERF, NEVER => NEVER, "kgdb announces its slots, and nobody else's update of the registers touches them (the mail)";
    Histogram "histogram" PERF, NEVER => NEVER, "slots are kept as numbers of the kind that Linux keeps, not counted when somebody asks (6.1)";
    WprobeOr "wprobe-or" PERF, v26(33) => EVER, "pointing an installed breakpoint elsewhere or-s the new R/W and LEN to the old (wprobe as posted)";
    LatePermission "late-permission" PERF, v(5, 11) => v(6, 2), "a task's permission is asked for last, when it has been seen that it lives and that the group may be joined (5.11 to 6.1)";
    LeaderGone "leader-gone" PERF, v26(33) => v(6, 15), "a group may be joined whose leader's task has exited or called execve: ENODEV came later (to 6.14)";
    HB01 "HB-01" PERF, NEVER => NEVER, "one counter for the whole machine decides whether a slot is free (before 2.6.33's release)";
    HB02 "HB-02" PERF, NEVER => NEVER, "a breakpoint that is refused after its slot was reserved keeps the slot for ever (to 2.6.33-rc)";
    HB03 "HB-03" PERF, NEVER => NEVER, "a task's breakpoints are counted against the task that has most (to 2.6.33-rc)";
    HB14 "HB-14" PERF, NEVER => NEVER, "a task's breakpoints are counted in its context, also when they have left it (to 2.6.35)";
    HB22 "HB-22" PERF, NEVER => NEVER, "slots are reserved on the CPUs that are online, and given back on those that are then (to 3.10)";
    HB23 "HB-23" PERF, NEVER => NEVER, "a task's breakpoints of any CPU are left out when those of one are counted (to 3.10)";
    HB31 "HB-31" PERF, v26(33) => v(5, 11), "the #DB handler stops at the first slot without an owner, and loses the hits above it (to 5.11-rc6)";
    H01 "H-01" LAZY, v(5, 7) => v(6, 14), "a re-entry inside KVM's run loop loads a stale DR6 over the guest's (5.7 to 6.13)";
    H02 "H-02" OPENS, v(3, 15) => v(4, 5), "what a guest enables in the open window is not loaded at the next entry (3.15 to 4.4)";
    H03 "H-03" OPENS, v(3, 15) => v(4, 15), "a guest's DR6 stays in the register and is taken for the host's on VMX (3.15 to 4.14)";
    H04 "H-04" LAZY, v(4, 15) => v(5, 15), "each vcpu_put writes DR6, whether a guest uses it or not (4.15 to 5.14)";
    H05 "H-05" QUIET, v26(33) => v(5, 14), "host breakpoints stay armed on the way into a guest that uses none (to 5.13)";
    H06 "H-06" LAZY, v26(30) => v(5, 7), "a debugger's breakpoint leaves its bits in the guest's DR6 on SVM (to 5.6)";
    H07 "H-07" OLD.and(LAZY), v26(30) => v(5, 7), "a GD exit to the debugger carries the guest's DR6 on VMX (to 5.6)";
    H08 "H-08" OLD, v26(30) => v26(32), "unprivileged guest code can access debug registers on VMX (to 2.6.31, CVE-2009-3722)";
    H09 "H-09" OLD.and(LAZY), v26(30) => v(3, 14), "a #DB destroys the sticky bits of the guest's DR6 on VMX (to 3.13)";
    H10 "H-10" LAZY, v26(34) => v(3, 14), "KVM_SET_DEBUGREGS does not reach the DR7 that an entry loads (2.6.34 to 3.13)";
    H11 "H-11" OLD.and(LAZY), v26(30) => v(4, 1), "INIT and KVM_SET_DEBUGREGS change the guest's addresses, not those that an entry loads (to 4.0)";
    H12 "H-12" LAZY, v26(34) => v(4, 7), "KVM_SET_DEBUGREGS takes bits 63:32 of DR6 and DR7, which the host then cannot load (to 4.6)";
    H13 "H-13" OLD.and(LAZY), v26(30) => v(3, 7), "INIT drops the debugger's DR7 (to 3.6)";
    H14 "H-14" OLD.and(KVM), v26(30) => v(3, 19), "a task switch clears the wrong enables, or the debugger's, on VMX, and none on SVM (to 3.18)";
    H15 "H-15" OLD.and(LAZY), v26(30) => v(3, 17), "DR7.GD survives the #DB that KVM injects (to 3.16)";
    H16 "H-16" OLD, v26(30) => v26(35), "DR4 and DR5 read as 0 and swallow what is written to them on VMX (to 2.6.34)";
    H18 "H-18" OLD.and(LAZY), v26(30) => v(4, 4), "a guest's #DB is not intercepted on SVM: one inside its own delivery never ends (to 4.3, CVE-2015-8104)";
    H20 "H-20" KVM, v(3, 11) => v(6, 1), "an execute breakpoint or GD that the emulator finds is delivered as a trap, also behind a MOV SS (to 6.0)";
    H21 "H-21" KVM, v26(38) => v(7, 2), "an emulated instruction heeds the guest's breakpoints and GD, though a debugger has the registers (to 7.1)";
    H26 "H-26" KVM, v26(30) => v(5, 7), "a #DB of a nested guest goes to its own hypervisor, not to the debugger, on SVM (to 5.6)";
    H27 "H-27" KVM, v(5, 8) => v(5, 11), "a nested #VMEXIT leaves DR7 of before in what L1 reads and KVM loads, on SVM (5.8 to 5.10)";
    H32 "H-32" OLD.and(LAZY), v26(30) => v(5, 7), "KVM_EXIT_DEBUG of a #DB says neither DR6 nor DR7 on SVM (to 5.6)";
    H33 "H-33" OLD, v26(30) => v26(34), "a guest reads the debugger's DR7 on SVM, where that read does not exit (to 2.6.33)";
    Z1 "Z-1" OPENS, v(3, 15) => EVER, "a debugger attaches while the window is open: the guest gets, and may overwrite, its registers";
    Z2 "Z-2" KVM, v26(30) => EVER, "a nested VMRUN on SVM does not load the addresses that its DR7 enables";
    Z3 "Z-3" KVM, v26(30) => EVER, "a nested VMRUN on SVM takes DR7 from the debugger, and a nested #VMEXIT shows the debugger's to L1";
    Z5 "Z-5" OLD.and(KVM), v26(30) => EVER, "bits 63:32 of a debugger's DR7 are accepted, and the next entry fails";
    Z6 "Z-6" KVM, v(3, 11) => EVER, "KVM_EXIT_DEBUG of an emulated instruction carries the DR7 of the exit before";
    Z7 "Z-7" KVM, v26(34) => EVER, "KVM_SET_DEBUGREGS stores bits that no register holds, and the guest may read them";
    Z8 "Z-8" OLD.and(KVM), v26(30) => EVER, "while a debugger single-steps, the guest's own breakpoints are told to it and lost to the guest";
    Z9 "Z-9" OPENS, v(3, 15) => EVER, "a guest's DR6 stays in the register after #VMEXIT and is taken for the host's on SVM";
    Z10 "Z-10" KVM.and(OLD), v26(30) => EVER, "a guest sees the B bit of a host address in a register that was not loaded for it";
    Z11 "Z-11" OLD.and(KVM), v26(30) => EVER, "a GD exit to the debugger carries DR7 sign-extended, if slot 3 has LEN 2 or 3, on VMX";
    HB34 "HB-34" OLD.and(LAZY), v26(30) => v(6, 16), "DR7 is disarmed with 0 instead of its reset value 0x400 (to 6.15)";
}

impl Delta {
    /// Its bit in a set of them.
    pub(super) const fn bit(self) -> u64 {
        1 << self as u8
    }

    /// Whether a policy with these halves behaves differently with it.
    pub(super) const fn concerns(self, host: HostHalf, kvm: KvmHalf) -> bool {
        let halves = self.halves();
        (halves.host >> host as u32 | halves.kvm >> kvm as u32) & 1 != 0
    }
}

/// The deltas that a release has by nature, of those that concern the halves.
pub(super) const fn of_release(release: Release, host: HostHalf, kvm: KvmHalf) -> u64 {
    let (mut bits, mut i) = (0, 0);
    while i < Delta::ALL.len() {
        let delta = Delta::ALL[i];
        let (since, fixed) = delta.releases();
        if since.0 <= release.0 && release.0 < fixed.0 && delta.concerns(host, kvm) {
            bits |= delta.bit();
        }
        i += 1;
    }
    bits
}

/// A set of deltas.
pub(super) const fn set(list: &[Delta]) -> u64 {
    let (mut bits, mut i) = (0, 0);
    while i < list.len() {
        bits |= list[i].bit();
        i += 1;
    }
    bits
}

const _: () = assert!(Delta::ALL.len() <= 64, "a set of deltas is 64 bits");
