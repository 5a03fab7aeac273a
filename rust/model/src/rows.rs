//! Events as rows of 16 bytes, as the arrays of other languages hold them, and their outcomes likewise.
//!
//! | bytes | event | outcome |
//! |---|---|---|
//! | 0 | which event ([`RowKind`]) | which outcome ([`RowOutcome`]) |
//! | 1 | its detail | 0 |
//! | 2-3 | CPU | accesses of debug registers that write |
//! | 4-7 | task, vCPU or counter | 4-5: those that read; 6: VMCS or VMCB; 7: VM exits |
//! | 8-15 | address or value | how many heard of it, DR6, a value, an errno |
//!
//! Numbers are little-endian. Counts of one event stop at what fits.

use std::fmt;

use debugreg::Cost;
use debugreg::trip::{Access, What};

use crate::event::{Event, ExitReason, Insn, Misuse, Nmi, Outcome};
use crate::machine::Machine;
use crate::policy::HostHalf;
use crate::{CounterId, CpuId, TaskId, VcpuId};

/// How many bytes a row is.
pub const ROW: usize = 16;

macro_rules! names {
    ($(#[$doc:meta])* $name:ident { $($item:ident $text:literal $line:literal;)* }) => {
        $(#[$doc])*
        #[derive(Copy, Clone, PartialEq, Eq, Debug)]
        #[allow(missing_docs, reason = "`line` says what each is")]
        #[repr(u8)]
        pub enum $name { $($item),* }

        impl $name {
            /// All, by number.
            pub const ALL: &[$name] = &[$($name::$item),*];

            /// As users write it.
            pub const fn name(self) -> &'static str {
                match self { $($name::$item => $text),* }
            }

            /// What it is.
            pub const fn line(self) -> &'static str {
                match self { $($name::$item => $line),* }
            }
        }
    };
}

names! {
    /// Which event a row is.
    RowKind {
        SchedSwitch "sched_switch" "CPU `cpu` switches to task `who`, or to none (0)";
        VmEntry "vm_entry" "vCPU `who` is entered";
        VmExit "vm_exit" "its guest exits; `detail`: 0 any exit, 1 one that KVM handles in its run loop, 2 one to the VMM";
        Access "access" "task `who` accesses `value`; `detail`: 0 executes, 1 reads, 2 writes, and 4 x the number of bytes";
        KernelAccess "kernel_access" "the kernel does, on behalf of task `who`";
        GuestAccess "guest_access" "the guest of vCPU `who` does";
        EmulatedAccess "emulated_access" "KVM does, which emulates an instruction of that guest";
        MovToDr "mov_to_dr" "the guest of vCPU `who` writes `value` to DR`detail`";
        MovFromDr "mov_from_dr" "it reads DR`detail`";
        Migrate "migrate" "task `who` moves to CPU `cpu`";
        Exec "exec" "task `who` calls execve";
        Exit "exit" "task `who` exits";
        Enable "enable" "counter `who` is enabled";
        Disable "disable" "counter `who` is disabled";
        Close "close" "counter `who` is closed";
        Refresh "refresh" "somebody refreshes the hardware of CPU `cpu`";
        Nmi "nmi" "an NMI strikes CPU `cpu`";
    }
}

names! {
    /// Which outcome a row is.
    RowOutcome {
        Ok "ok" "done";
        Value "value" "`value` is what was asked for";
        Hits "hits" "so many (`value`) heard of the access";
        Sigtrap "sigtrap" "a tracer did, too; `value` is DR6 as it sees it";
        Exception "exception" "the guest has an exception; `value` is DR6 as it sees it";
        ExitDebug "exit_debug" "the debugger of the guest gets it; `value` is DR6 as it is told";
        FailEntry "fail_entry" "the processor refuses the guest's state";
        Nested "nested" "a nested guest exits to its hypervisor";
        Refused "refused" "the kernel said no; `value` is the errno";
        Endless "endless" "the same fault comes for ever";
    }
}

/// Why a row was not performed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RowError {
    /// There is no such thing: its name, what was found, and how many there are.
    Unknown(&'static str, u64, usize),
    /// The event makes no sense there.
    Misuse(Misuse),
}

impl fmt::Display for RowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RowError::Unknown(what, _, 0) => write!(f, "there is no {what}"),
            RowError::Unknown(what, found, count) => {
                write!(f, "{what} must be 0 to {} (got {found})", count - 1)
            }
            RowError::Misuse(misuse) => misuse.fmt(f),
        }
    }
}

impl From<Misuse> for RowError {
    fn from(misuse: Misuse) -> RowError {
        RowError::Misuse(misuse)
    }
}

struct Row {
    kind: u8,
    detail: u8,
    cpu: u16,
    who: u32,
    value: u64,
}

impl Row {
    #[inline]
    fn of(bytes: [u8; ROW]) -> Row {
        let all = u128::from_le_bytes(bytes);
        Row {
            kind: all as u8,
            detail: (all >> 8) as u8,
            cpu: (all >> 16) as u16,
            who: (all >> 32) as u32,
            value: (all >> 64) as u64,
        }
    }
}

impl Machine {
    /// Performs the events of these rows, and appends what came of each.
    ///
    /// # Errors
    ///
    /// The number of the row that makes no sense, and why; those before it have been performed.
    pub fn run_rows(
        &mut self,
        rows: &[[u8; ROW]],
        outcomes: Option<&mut Vec<[u8; ROW]>>,
    ) -> Result<(), (usize, RowError)> {
        match outcomes {
            None => {
                for (at, &bytes) in rows.iter().enumerate() {
                    let row = Row::of(bytes);
                    if !self.switch_quietly(&row) {
                        self.run_row(&row, |_, _| ()).map_err(|error| (at, error))?;
                    }
                }
            }
            Some(outcomes) => {
                for (at, &bytes) in rows.iter().enumerate() {
                    let before = self.cost();
                    let show = |machine: &Machine, outcome: &Outcome| shown(outcome, machine.cost() - before);
                    outcomes.push(self.run_row(&Row::of(bytes), show).map_err(|error| (at, error))?);
                }
            }
        }
        Ok(())
    }

    /// A task switch between two of whom nothing is to be switched: what [`Machine::apply`] makes of it, at once.
    #[inline]
    fn switch_quietly(&mut self, row: &Row) -> bool {
        let cpu = CpuId(u32::from(row.cpu));
        let next = TaskId(row.who);
        let (Some(turn), Some(task)) = (self.turns.get(cpu.index()), self.tasks.get(next.index())) else {
            return false;
        };
        let turn = turn.unseen();
        let (prev, task) = (self.tasks[turn.running.index()].unseen(), task.unseen());
        let is_quiet = row.kind == RowKind::SchedSwitch as u8
            && self.policy.host == HostHalf::Perf
            && turn.is_online
            && turn.guest.is_none()
            && prev.context.is_none()
            && task.context.is_none()
            && task.is_alive()
            && (task.cpu == cpu || next == TaskId::IDLE)
            && self.debugger.unseen().is_unused()
            && self.mutant.is_none()
            && !self.is_in_run(turn.running);
        if !is_quiet {
            return false;
        }
        self.turns[cpu.index()].aside().running = next;
        self.cost_of(cpu).skips += 1;
        self.tick();
        true
    }

    /// Performs the event of a row. What there is most of is made where it is used, and nothing is moved.
    #[inline]
    fn run_row<R>(&mut self, row: &Row, see: impl FnOnce(&Machine, &Outcome) -> R) -> Result<R, RowError> {
        let has_vcpu = (row.who as usize) < self.vcpus.len();
        let performed = if has_vcpu && row.kind == RowKind::VmEntry as u8 {
            self.apply(&Event::VmEntry(VcpuId(row.who)), &mut ())
        } else if has_vcpu && row.kind == RowKind::VmExit as u8 && row.detail == 0 {
            self.apply(&Event::VmExit(VcpuId(row.who), ExitReason::Other("intr")), &mut ())
        } else {
            let event = self.event_of(row)?;
            self.apply(&event, &mut ())
        };
        match performed {
            Ok(ref outcome) => Ok(see(self, outcome)),
            Err(misuse) => Err(misuse.into()),
        }
    }

    fn event_of(&self, row: &Row) -> Result<Event, RowError> {
        let within = |what, found: u32, count: usize| {
            if (found as usize) < count { Ok(found) } else { Err(RowError::Unknown(what, u64::from(found), count)) }
        };
        let cpu = || within("cpu", u32::from(row.cpu), self.cpu_count()).map(CpuId);
        let task = || within("task", row.who, self.tasks.len()).map(TaskId);
        let vcpu = || within("vcpu", row.who, self.vcpus.len()).map(VcpuId);
        let counter = || within("counter", row.who, self.counters.unseen().len()).map(CounterId);
        let access = || {
            let what = match row.detail & 3 {
                0 => What::Execute,
                1 => What::Load,
                2 => What::Store,
                _ => return Err(RowError::Unknown("what an access does", u64::from(row.detail & 3), 3)),
            };
            let bytes = u64::from(row.detail >> 2);
            if what != What::Execute && bytes == 0 {
                return Err(RowError::Unknown("access of no bytes", 0, 0));
            }
            Ok(Access { what, address: row.value, bytes: bytes.max(1) })
        };
        let dr = || within("dr", u32::from(row.detail), 8).map(|dr| dr as u8);
        let insn = Insn::Plain;
        let Some(&kind) = RowKind::ALL.get(usize::from(row.kind)) else {
            return Err(RowError::Unknown("event", u64::from(row.kind), RowKind::ALL.len()));
        };
        Ok(match kind {
            RowKind::SchedSwitch => Event::SchedSwitch(cpu()?, task()?),
            RowKind::VmEntry => Event::VmEntry(vcpu()?),
            RowKind::VmExit => {
                let reason = match within("detail", u32::from(row.detail), 3)? {
                    0 => ExitReason::Other("intr"),
                    1 => ExitReason::Fastpath,
                    _ => ExitReason::Other("io"),
                };
                Event::VmExit(vcpu()?, reason)
            }
            RowKind::Access | RowKind::KernelAccess => {
                let kernel = kind == RowKind::KernelAccess;
                Event::TaskAccess { task: task()?, access: access()?, insn, kernel }
            }
            RowKind::GuestAccess | RowKind::EmulatedAccess => {
                let emulated = kind == RowKind::EmulatedAccess;
                Event::GuestAccess { vcpu: vcpu()?, access: access()?, insn, emulated }
            }
            RowKind::MovToDr => Event::MovToDr { vcpu: vcpu()?, dr: dr()?, value: row.value, cpl: 0 },
            RowKind::MovFromDr => Event::MovFromDr { vcpu: vcpu()?, dr: dr()?, cpl: 0 },
            RowKind::Migrate => Event::Migrate(task()?, cpu()?),
            RowKind::Exec => Event::Exec(task()?),
            RowKind::Exit => Event::Exit(task()?),
            RowKind::Enable => Event::Enable(counter()?),
            RowKind::Disable => Event::Disable(counter()?),
            RowKind::Close => Event::Close(counter()?),
            RowKind::Refresh => Event::Refresh(cpu()?),
            RowKind::Nmi => Event::Nmi(cpu()?, Nmi::Plain),
        })
    }
}

/// An outcome, and what the event cost.
fn shown(outcome: &Outcome, cost: Cost) -> [u8; ROW] {
    let (which, value) = match *outcome {
        Outcome::Value(value) => (RowOutcome::Value, value),
        Outcome::Hits { ref counters, kgdb, sigtrap: None } => {
            (RowOutcome::Hits, counters.len() as u64 + u64::from(kgdb))
        }
        Outcome::Hits { sigtrap: Some(dr6), .. } => (RowOutcome::Sigtrap, dr6),
        Outcome::Exception { dr6, .. } => (RowOutcome::Exception, dr6),
        Outcome::ExitDebug { dr6, .. } => (RowOutcome::ExitDebug, dr6),
        Outcome::ExitFailEntry => (RowOutcome::FailEntry, 0),
        Outcome::ExitNested { dr6, .. } => (RowOutcome::Nested, dr6),
        Outcome::Refused(ref refusal) => {
            (RowOutcome::Refused, refusal.errno.map_or(1, |errno| u64::from(errno.number().unsigned_abs())))
        }
        Outcome::Endless => (RowOutcome::Endless, 0),
        Outcome::Ok | Outcome::Bound(_) | Outcome::Registers(_) | Outcome::Slots(_) => (RowOutcome::Ok, 0),
    };
    let at_most = |count: u64, most: u64| u128::from(count.min(most));
    let all = which as u128
        | at_most(cost.dr_writes, 0xffff) << 16
        | at_most(cost.dr_reads, 0xffff) << 32
        | at_most(cost.vmcs, 0xff) << 48
        | at_most(cost.vm_exits, 0xff) << 56
        | u128::from(value) << 64;
    all.to_le_bytes()
}
