//! How large a machine is explored, and what happens on it.

use std::fmt;

use crate::laws::Laws;
use crate::machine::{Machine, Options};
use crate::mutant::Mutant;
use crate::policy::Policy;
use crate::task::Capabilities;
use crate::{CpuId, TaskId};

macro_rules! kinds {
    ($($kind:ident $name:literal $default:literal $line:literal;)*) => {
        /// A kind of events.
        #[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[allow(missing_docs, reason = "`line` says what each is")]
        #[repr(u8)]
        pub enum Kind { $($kind),* }

        impl Kind {
            /// All.
            pub const ALL: &[Kind] = &[$(Kind::$kind),*];

            /// As users write it.
            pub const fn name(self) -> &'static str {
                match self { $(Kind::$kind => $name),* }
            }

            /// What happens.
            pub const fn line(self) -> &'static str {
                match self { $(Kind::$kind => $line),* }
            }

            /// Whether it happens unless something else is asked for.
            pub const fn is_default(self) -> bool {
                match self { $(Kind::$kind => $default),* }
            }
        }
    };
}

kinds! {
    Switch "switch" true "the scheduler switches to another task, or to none";
    Open "open" true "a task opens a breakpoint on itself";
    Close "close" true "a breakpoint is closed";
    Access "access" true "a task writes to an address, in user mode";
    Entry "entry" true "a guest is entered, and exits";
    GuestDr "guest-dr" true "a guest writes and reads DR0-DR3 and DR7";
    GuestAccess "guest-access" true "a guest writes to an address";
    Debug "debug" true "a VMM has the registers for its debugger (KVM_GUESTDBG_USE_HW_BP), and gives them back";
    OpenCpu "open-cpu" false "a breakpoint is opened on a CPU";
    OpenOnCpu "open-on-cpu" false "a task opens a breakpoint on itself, for one CPU";
    OpenOther "open-other" false "the second task opens a breakpoint on the first";
    OpenInvalid "open-invalid" false "a task tries to open a misaligned breakpoint";
    Pinned "pinned" false "what is opened may be pinned";
    Inherit "inherit" false "what is opened may be inherited";
    Execute "execute" false "what is opened, and what a guest sets, may be an execute breakpoint; tasks and guests execute";
    Toggle "toggle" false "a breakpoint is disabled, and enabled";
    Modify "modify" false "a breakpoint is pointed elsewhere, or is asked for something invalid";
    Ptrace "ptrace" false "the second task traces the first, and writes its DR0, DR1 and DR7";
    Fork "fork" false "the first task forks a process";
    Thread "thread" false "the first task makes a thread";
    Exit "exit" false "a task exits";
    Exec "exec" false "a task calls execve";
    Migrate "migrate" false "a task moves to another CPU";
    KernelAccess "kernel-access" false "the kernel writes to an address, on behalf of a task";
    Refresh "refresh" false "somebody refreshes the hardware";
    Hotplug "hotplug" false "a CPU goes, and comes back";
    Register "register" false "the kernel registers a breakpoint on every CPU";
    WideLocal "wide-local" false "a CPU's part of such a breakpoint is pointed elsewhere, to watch something else";
    Kgdb "kgdb" false "kgdb stops the machine, sets and clears a breakpoint, lets it go";
    Fastpath "fastpath" false "an exit that KVM handles inside its run loop";
    ExitIo "exit-io" false "an exit to the VMM";
    ExitDr "exit-dr" false "a guest's MOV DR exits, and its thread is held up before the guest goes on";
    GuestDr6 "guest-dr6" false "a guest writes and reads DR6";
    GuestDr5 "guest-dr5" false "a guest writes and reads DR5, the other name of DR7";
    GuestCpl3 "guest-cpl3" false "unprivileged code of a guest reads DR0";
    GuestGd "guest-gd" false "a guest sets DR7.GD";
    GuestStep "guest-step" false "a guest single-steps over a write to an address";
    Frame "frame" false "a guest has a breakpoint where the processor pushes the frame of a #DB";
    Emulate "emulate" false "KVM emulates an instruction of a guest";
    Step "step" false "a VMM single-steps its guest (KVM_GUESTDBG_SINGLESTEP)";
    DebugGd "debug-gd" false "a VMM's debugger sets DR7.GD";
    DebugUpper "debug-upper" false "a VMM hands over a debugger's DR7 with bit 32";
    Ioctl "ioctl" false "a VMM calls KVM_GET_DEBUGREGS and KVM_SET_DEBUGREGS";
    IoctlUpper "ioctl-upper" false "KVM_SET_DEBUGREGS with bit 40 of DR6";
    IoctlReserved "ioctl-reserved" false "KVM_SET_DEBUGREGS with bits that DR7 does not hold";
    Init "init" false "INIT";
    Smi "smi" false "a system management interrupt, and RSM";
    TaskSwitch "task-switch" false "a guest switches tasks by hardware";
    Nmi "nmi" false "an NMI strikes, between two events or before a step of one";
    Nested "nested" false "a guest enters a guest of its own, which exits to it; it may intercept #DB";
}

/// Some kinds of events.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub struct Kinds(u64);

impl Kinds {
    /// None.
    pub const NONE: Kinds = Kinds(0);

    /// What happens unless something else is asked for.
    pub fn default_kinds() -> Kinds {
        Kind::ALL.iter().filter(|kind| kind.is_default()).fold(Kinds::NONE, |kinds, &kind| kinds.with(kind))
    }

    /// Whether a kind is among them.
    pub const fn has(self, kind: Kind) -> bool {
        self.0 >> kind as u8 & 1 != 0
    }

    /// With one more.
    #[must_use]
    pub const fn with(self, kind: Kind) -> Kinds {
        Kinds(self.0 | 1 << kind as u8)
    }

    /// Each of them.
    pub fn iter(self) -> impl Iterator<Item = Kind> {
        Kind::ALL.iter().copied().filter(move |&kind| self.has(kind))
    }

    /// Names with commas between them; with `+` in front, besides the usual ones.
    ///
    /// # Errors
    ///
    /// What was found and what is allowed.
    pub fn parse(text: &str) -> Result<Kinds, String> {
        let (kinds, names) = match text.strip_prefix('+') {
            Some(names) => (Kinds::default_kinds(), names),
            None => (Kinds::NONE, text),
        };
        names.split(',').try_fold(kinds, |kinds, name| {
            let kind = Kind::ALL.iter().find(|kind| kind.name() == name);
            kind.map(|&kind| kinds.with(kind)).ok_or_else(|| {
                let all: Vec<_> = Kind::ALL.iter().map(|kind| kind.name()).collect();
                format!("unknown kind of events '{name}': allowed are {}", all.join(", "))
            })
        })
    }
}

impl fmt::Display for Kinds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.iter().map(Kind::name).collect();
        f.write_str(&names.join(","))
    }
}

/// What an NMI does that strikes before a step.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Nmis {
    /// Nothing (perf, a watchdog).
    pub plain: bool,
    /// kgdb sets and clears a breakpoint.
    pub kgdb: bool,
    /// kgdb announces a slot and gives it back.
    pub announce: bool,
}

impl Nmis {
    /// Whether there are any.
    pub const fn any(self) -> bool {
        self.plain || self.kgdb || self.announce
    }
}

/// How large a machine is explored, and what happens on it.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "what a user switches")]
pub struct Scope {
    /// What kind of machine, with the numbers of its CPUs and slots.
    pub options: Options,
    /// How many tasks, the idle one apart; a vCPU's thread is one of them.
    pub tasks: usize,
    /// How many vCPUs, at most as many as tasks.
    pub vcpus: usize,
    /// How many addresses are watched and accessed.
    pub addresses: usize,
    /// How many breakpoints the host has at once.
    pub counters: usize,
    /// What happens.
    pub kinds: Kinds,
    /// What strikes before any step.
    pub nmis: Nmis,
    /// Whether events of other CPUs come before any step.
    pub races: bool,
    /// The laws that everything is held to.
    pub laws: Laws,
    /// Whether states that differ in names of addresses only are one.
    pub symmetry: bool,
    /// Whether what has been found out about one state is used for others that are alike in what was looked at.
    pub reuse: bool,
    /// What is wrong with the machine, on purpose.
    pub mutant: Option<Mutant>,
}

impl Default for Scope {
    /// One of everything, the usual events, no NMI, every law.
    fn default() -> Scope {
        Scope {
            options: Options { slots: 1, ..Options::default() },
            tasks: 2,
            vcpus: 1,
            addresses: 1,
            counters: 1,
            kinds: Kinds::default_kinds(),
            nmis: Nmis::default(),
            races: false,
            laws: Laws::ALL,
            symmetry: true,
            reuse: true,
            mutant: None,
        }
    }
}

impl Scope {
    /// How many CPUs it may have.
    pub(super) const MAX_CPUS: usize = 8;

    /// The address of a number.
    pub const fn address(number: usize) -> u64 {
        0x1000 * (number as u64 + 1)
    }

    /// The number of an address.
    pub fn number(&self, address: u64) -> Option<usize> {
        (0..self.addresses).find(|&number| Scope::address(number) == address)
    }

    /// All addresses.
    pub fn all_addresses(&self) -> impl Iterator<Item = u64> + use<> {
        (0..self.addresses).map(Scope::address)
    }

    /// The tasks, the idle one apart.
    pub fn all_tasks(&self) -> impl Iterator<Item = TaskId> + use<> {
        (1..=self.tasks).map(TaskId::from)
    }

    /// The CPU of a task at the start.
    pub fn home(&self, task: TaskId) -> CpuId {
        CpuId::from((task.index() - 1) % self.options.cpus)
    }

    /// The task that a fork makes, if forks happen.
    pub fn child(&self) -> Option<TaskId> {
        (self.kinds.has(Kind::Fork) || self.kinds.has(Kind::Thread)).then(|| TaskId::from(self.tasks + 1))
    }

    /// The machine at the start: each CPU runs its first task.
    pub fn machine(&self, policy: Policy) -> Machine {
        let mut machine = Machine::new(self.options, policy);
        machine.mutant = self.mutant;
        for task in self.all_tasks() {
            machine.add_task(self.home(task), Capabilities::Root);
        }
        for vcpu in 0..self.vcpus {
            machine.add_vcpu(TaskId::from(vcpu + 1));
        }
        if self.child().is_some() {
            machine.add_unborn_task();
        }
        machine
    }

    /// Whether the numbers make a machine.
    ///
    /// # Errors
    ///
    /// Which does not, and what is allowed.
    pub fn validate(&self) -> Result<(), String> {
        let within = |name: &str, value: usize, low: usize, high: usize| {
            if (low..=high).contains(&value) {
                Ok(())
            } else {
                Err(format!("{name}: found {value}, allowed is {low} to {high}"))
            }
        };
        within("cpus", self.options.cpus, 1, Scope::MAX_CPUS)?;
        within("slots", self.options.slots, 1, 4)?;
        within("tasks", self.tasks, 1, 8)?;
        within("vcpus", self.vcpus, 0, self.tasks)?;
        within("addresses", self.addresses, 1, 8)?;
        within("counters", self.counters, 0, 8)?;
        if self.kinds == Kinds::NONE {
            return Err("events: found none, and nothing would happen".to_owned());
        }
        Ok(())
    }
}
