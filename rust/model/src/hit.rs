//! A task's access to memory, and what the host's #DB handler makes of what it trips.
//!
//! Numbered as in the reference (linux-host 9): 9.1 entry, K1-K8 `exc_debug_kernel`, Q1-Q9 `exc_debug_user`
//! (arch/x86/kernel/traps.c), then `hw_breakpoint_handler` (arch/x86/kernel/hw_breakpoint.c), `perf_bp_event`
//! (kernel/events/core.c), `ptrace_triggered` (arch/x86/kernel/ptrace.c), 6.17.

use debugreg::trip::{Access, Tripped, What, trip};
use debugreg::{Dr, Dr6, Dr7, Kind, Owner, Registers, Slot, Steps, Word};

use crate::counter::{Origin, State};
use crate::event::{Insn, Misuse, Outcome};
use crate::machine::{Machine, Options};
use crate::policy::{Delta, HostHalf};
use crate::step::{On, Probe, counter_of};
use crate::{CounterId, CpuId, TaskId};

/// One #DB that an instruction raises.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Exception {
    /// DR6 in positive polarity: the armed slots that it tripped, those that only match where the hardware shows them,
    /// and BS. None at all is INT1's.
    pub(crate) events: u64,
    /// Before the instruction instead of after it.
    pub(crate) is_fault: bool,
}

/// The parts of an instruction after each of which traps are reported: so many, and what each accesses. The fault of an
/// execute breakpoint comes before all of them.
pub(crate) fn parts(access: Access, insn: Insn) -> impl Iterator<Item = Option<Access>> {
    let count = match insn {
        Insn::Rep(count) => count,
        _ => 1,
    };
    (0..count).map(move |at| {
        let address = access.address.wrapping_add(at.wrapping_mul(access.bytes));
        (access.what != What::Execute).then_some(Access { address, ..access })
    })
}

/// The fault of an execute breakpoint on an instruction.
pub(crate) fn fault(registers: &Registers, access: Access, insn: Insn, options: &Options) -> Option<Exception> {
    let faults = access.what == What::Execute && insn != Insn::IretRf;
    let tripped = if faults { trip(registers, access) } else { Tripped::default() };
    (tripped.armed != 0).then(|| Exception { events: shown(tripped, options), is_fault: true })
}

/// The traps of one part, merged into one #DB (Intel SDM vol. 3, "Debug Exceptions": all conditions of one boundary are
/// reported at once).
pub(crate) fn trap(registers: &Registers, part: Option<Access>, insn: Insn, options: &Options) -> Option<Exception> {
    let tripped = part.map_or(Tripped::default(), |access| match insn {
        // Both read and write, and one trap for both.
        Insn::Xchg | Insn::Cmpxchg => {
            let [read, written] = [What::Load, What::Store].map(|what| trip(registers, Access { what, ..access }));
            Tripped { armed: read.armed | written.armed, disabled: read.disabled | written.disabled }
        }
        _ => trip(registers, access),
    });
    let stepped = if insn == Insn::PopfTf { Dr6::BS } else { 0 };
    let happens = tripped.armed != 0 || stepped != 0 || insn == Insn::Icebp;
    happens.then(|| Exception { events: shown(tripped, options) | stepped, is_fault: false })
}

fn shown(tripped: Tripped, options: &Options) -> u64 {
    u64::from(tripped.armed | if options.disabled_match { tripped.disabled } else { 0 })
}

/// Who has heard of an access.
#[derive(Debug, Default)]
struct Heard {
    counters: Vec<CounterId>,
    kgdb: bool,
    /// DR6 as a tracer reads it, if SIGTRAP was sent.
    sigtrap: Option<u64>,
    /// SIGTRAP came from #DB itself, not from an event that asked for it: a task without a tracer dies of it.
    is_deadly: bool,
}

impl Machine {
    pub(crate) fn task_access<P: Probe>(
        &mut self,
        task: TaskId,
        access: Access,
        insn: Insn,
        kernel: bool,
        probe: &mut P,
    ) -> Result<Outcome, Misuse> {
        let cpu = self.running_on(task)?;
        if insn == Insn::Frame {
            return Err(Misuse::NotExpressible("the host's #DB handlers have their stack where nobody may watch"));
        }
        let mut heard = Heard::default();
        if let Some(exception) = self.fault(cpu, access, insn) {
            // The handler sets RF, and the instruction runs; or it does not, and the fault comes again.
            if !self.handle_db(task, cpu, exception, kernel, &mut heard, probe) && self.faults_again(cpu, access, insn)
            {
                return Ok(Outcome::Endless);
            }
        }
        for part in parts(access, insn) {
            if let Some(exception) = self.trap(cpu, part, insn) {
                self.handle_db(task, cpu, exception, kernel, &mut heard, probe);
                if self.is_tcg() {
                    break;
                }
            }
        }
        if heard.is_deadly && self.task(task).tracer.is_none() {
            // Nobody catches the SIGTRAP (M6).
            self.kill(task, probe);
        }
        let Heard { counters, kgdb, sigtrap, .. } = heard;
        Ok(Outcome::Hits { counters, kgdb, sigtrap })
    }

    fn faults_again(&mut self, cpu: CpuId, access: Access, insn: Insn) -> bool {
        self.fault(cpu, access, insn).is_some()
    }

    /// The #DB handler; whether the interrupted instruction runs when it returns although it is still watched (RF).
    fn handle_db<P: Probe>(
        &mut self,
        task: TaskId,
        cpu: CpuId,
        exception: Exception,
        kernel: bool,
        heard: &mut Heard,
        probe: &mut P,
    ) -> bool {
        let dr6 = self.read_dr6(cpu, exception.events, probe);
        if kernel {
            return self.exc_debug_kernel(task, cpu, dr6, heard, probe);
        }
        // Q2: all trap bits are dropped, also those that a tracer poked
        self.tasks[task.index()].virtual_dr6 = dr6 & Dr6::BS;
        // Q4
        let icebp = dr6 == 0;
        // Q5
        let notified = self.notify_die(task, cpu, dr6, false, heard, probe);
        // Q7
        if !notified.stops {
            let dr6 = notified.dr6 | self.task(task).virtual_dr6;
            if dr6 & (Dr6::BS | Dr6::TRAPS) != 0 || icebp {
                heard.is_deadly = true;
            }
        }
        if heard.is_deadly {
            self.signal(task, heard);
        }
        notified.sets_rf
    }

    /// 9.1: the events come through DR6, with what is sticky there. FRED hands them over.
    fn read_dr6<P: Probe>(&mut self, cpu: CpuId, events: u64, probe: &mut P) -> u64 {
        if self.options.fred {
            return events;
        }
        let hardware = &mut self.cpus[cpu.index()].bank.hardware;
        hardware.dr6 = Dr6(hardware.dr6).after_db(events).0;
        let mut on = On { machine: self, cpu, probe };
        let dr6 = Dr6(on.read_dr(Dr::Status)).events();
        on.write_dr(Dr::Status, Dr6::IDLE.0);
        dr6
    }

    /// From kernel mode, with everything disarmed.
    fn exc_debug_kernel<P: Probe>(
        &mut self,
        task: TaskId,
        cpu: CpuId,
        dr6: u64,
        heard: &mut Heard,
        probe: &mut P,
    ) -> bool {
        // K1
        let saved = self.db_save(cpu, probe);
        let mut sets_rf = false;
        // K5
        if dr6 != 0 {
            // K6; K7 clears TF, which the instruction was stepped with
            sets_rf = self.notify_die(task, cpu, dr6, true, heard, probe).sets_rf;
        }
        // K8
        self.db_restore(cpu, saved, probe);
        sets_rf
    }

    /// The notifiers of #DB: `hw_breakpoint_handler` first, then kgdb.
    fn notify_die<P: Probe>(
        &mut self,
        task: TaskId,
        cpu: CpuId,
        dr6: u64,
        kernel: bool,
        heard: &mut Heard,
        probe: &mut P,
    ) -> Notified {
        let mut notified = self.hw_breakpoint_handler(task, cpu, dr6, kernel, heard, probe);
        // `__kgdb_notify`: a #DB in the kernel that nobody has claimed for himself is the debugger's.
        if !notified.stops && kernel && (self.debugger.is_connected || notified.announced) {
            heard.kgdb = true;
            notified.stops = true;
            self.kgdb_stop(cpu, probe);
            self.kgdb_go(probe);
        }
        notified
    }

    fn hw_breakpoint_handler<P: Probe>(
        &mut self,
        task: TaskId,
        cpu: CpuId,
        dr6: u64,
        kernel: bool,
        heard: &mut Heard,
        probe: &mut P,
    ) -> Notified {
        let mut notified = Notified { dr6, stops: false, sets_rf: false, announced: false };
        // 1
        if dr6 & Dr6::TRAPS == 0 {
            return notified;
        }
        // 2
        for slot in Slot::ALL.into_iter().filter(|slot| dr6 & u64::from(slot.bit()) != 0) {
            let (owner, kind) = self.owner_of(cpu, slot, probe);
            // a: a slot that matches but is disabled, or has just been given back; its bit stays
            let Some(owner) = owner else {
                if self.policy.has(Delta::HB31) {
                    break;
                }
                continue;
            };
            let executes = kind == Kind::Execute;
            // b: the fault will come again on its own
            if executes && dr6 & Dr6::BS != 0 {
                continue;
            }
            // c
            notified.dr6 &= !u64::from(slot.bit());
            // d
            match owner {
                Keeper::Kgdb => notified.announced = true,
                Keeper::Counter(id) => self.perf_bp_event(id, task, kernel, heard),
            }
            // e
            notified.sets_rf |= executes;
        }
        // 3
        let traced = self.task(task).virtual_dr6 & Dr6::TRAPS != 0;
        notified.stops = !traced && dr6 & !Dr6::TRAPS == 0 && !notified.announced;
        notified
    }

    /// Who has a slot, and what he watches.
    fn owner_of<P: Probe>(&mut self, cpu: CpuId, slot: Slot, probe: &mut P) -> (Option<Keeper>, Kind) {
        if self.policy.host == HostHalf::Thread {
            let owner = self.task(self.running(cpu)).thread.owner[slot.index()];
            return (owner.map(Keeper::Counter), owner.map_or(Kind::Write, |id| self.counter(id).info.kind));
        }
        let word = On { machine: self, cpu, probe }.load(Word::Owner(slot));
        match Owner(word as u32) {
            Owner::KGDB => (Some(Keeper::Kgdb), Dr7(self.cpu(cpu).bank.control).kind(slot)),
            owner => {
                let id = counter_of(owner);
                (id.map(Keeper::Counter), id.map_or(Kind::Write, |id| self.counter(id).info.kind))
            }
        }
    }

    /// `perf_bp_event`, and what the counter's owner wants to happen. A copy's hits are read through the descriptor of
    /// its original.
    fn perf_bp_event(&mut self, id: CounterId, task: TaskId, kernel: bool, heard: &mut Heard) {
        let counter = *self.counter(id);
        let excluded = if kernel { counter.attr.exclude_kernel } else { counter.attr.exclude_user };
        if counter.state != State::Active || excluded {
            return;
        }
        let original = self.original(id);
        self.counters[original.index()].count += 1;
        match counter.origin {
            // `ptrace_triggered`
            Origin::Ptrace(dr) => self.tasks[task.index()].virtual_dr6 |= 1 << dr,
            // Whoever the task is: its virtual DR6 keeps them until its next #DB in user mode (D-K7).
            Origin::Kgdb(_) => self.tasks[task.index()].virtual_dr6 |= self.kgdb_marks(),
            _ => {
                if !heard.counters.contains(&original) {
                    heard.counters.push(original);
                }
                if counter.attr.sigtrap {
                    self.signal(task, heard);
                }
            }
        }
    }

    /// SIGTRAP. A tracer is told at once, and reads DR6 as it is then.
    fn signal(&self, task: TaskId, heard: &mut Heard) {
        heard.sigtrap = heard.sigtrap.or(Some(Dr6::from_events(self.task(task).virtual_dr6).0));
    }
}

/// Who has a slot.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Keeper {
    Counter(CounterId),
    /// kgdb, which has announced it.
    Kgdb,
}

/// What the notifiers leave.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
struct Notified {
    /// The events that nobody has taken.
    dr6: u64,
    /// NOTIFY_STOP.
    stops: bool,
    sets_rf: bool,
    /// An announced slot was hit.
    announced: bool,
}
