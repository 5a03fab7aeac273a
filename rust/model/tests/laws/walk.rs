//! A machine beside its ledger, and what must hold between the two.

use debugreg::{Dr7, Registers};
use debugreg_model::policy::HostHalf;
use debugreg_model::{
    Capabilities, CounterId, CpuId, Delta, Event, GuestDebug, Holder, Insn, Machine, Options, Outcome, Policy, State,
    TaskId, VcpuId,
};
use proptest::prelude::*;

use crate::ledger::{Guest, Ledger};
use crate::ops::{CPUS, Op, TASKS};

/// A machine with three tasks and two vCPUs, and what has happened to it.
pub(crate) struct Walk {
    pub(crate) machine: Machine,
    pub(crate) ledger: Ledger,
    pub(crate) tasks: Vec<TaskId>,
    pub(crate) unborn: Option<TaskId>,
    pub(crate) counters: Vec<CounterId>,
    /// A child has inherited a counter, and a task has exited: what M1 is made of.
    pub(crate) inherited: bool,
    pub(crate) exited: bool,
}

impl Walk {
    pub(crate) fn new(options: Options, policy: Policy) -> Walk {
        let mut machine = Machine::new(options, policy);
        let task = |machine: &mut Machine, cpu| machine.add_task(CpuId(cpu), Capabilities::Root);
        let tasks = vec![task(&mut machine, 0), task(&mut machine, 1), task(&mut machine, 0)];
        machine.add_vcpu(tasks[0]);
        machine.add_vcpu(tasks[1]);
        let (ledger, counters) = (Ledger::default(), Vec::new());
        Walk { machine, ledger, tasks, unborn: None, counters, inherited: false, exited: false }
    }

    pub(crate) fn task(&self, at: usize) -> TaskId {
        self.tasks[at % self.tasks.len()]
    }

    pub(crate) fn counter(&self, at: usize) -> Option<CounterId> {
        (!self.counters.is_empty()).then(|| self.counters[at % self.counters.len()])
    }

    /// The event that an op comes to, if it comes to one.
    pub(crate) fn event(&mut self, op: &Op) -> Option<Event> {
        Some(match *op {
            Op::Open { by, target, cpu, of_task, attr } => {
                let task = (of_task || cpu.is_none()).then(|| self.task(target));
                Event::PerfEventOpen { by: self.task(by), attr, task, cpu: cpu.map(CpuId), group: None }
            }
            Op::Close(at) => Event::Close(self.counter(at)?),
            Op::Enable(at) => Event::Enable(self.counter(at)?),
            Op::Disable(at) => Event::Disable(self.counter(at)?),
            Op::Modify(at, changes) => Event::Modify(self.counter(at)?, changes),
            Op::Switch { cpu, next } => {
                // A task of this CPU, or idle.
                let here: Vec<_> =
                    self.tasks.iter().copied().filter(|&task| self.machine.task(task).cpu == CpuId(cpu)).collect();
                let next = if next == TASKS || here.is_empty() { TaskId::IDLE } else { here[next % here.len()] };
                Event::SchedSwitch(CpuId(cpu), next)
            }
            Op::Migrate(task, cpu) => Event::Migrate(self.task(task), CpuId(cpu)),
            Op::Fork(task) => {
                if self.tasks.len() == TASKS {
                    return None;
                }
                let parent = self.task(task);
                // The place of a child that was refused is the next one's.
                let machine = &mut self.machine;
                let child = *self.unborn.get_or_insert_with(|| machine.add_sleeping_task(CpuId(0), Capabilities::Root));
                Event::Fork { parent, child, thread: false }
            }
            Op::Exec(task) => Event::Exec(self.task(task)),
            Op::Exit(task) => Event::Exit(self.task(task)),
            Op::Attach(tracer, tracee) => Event::Attach { tracer: self.task(tracer), tracee: self.task(tracee) },
            Op::Detach(tracer, tracee) => Event::Detach { tracer: self.task(tracer), tracee: self.task(tracee) },
            Op::Poke { tracer, tracee, dr, value } => {
                // Mostly by the one who may.
                let tracee = self.task(tracee);
                let tracer = self.machine.task(tracee).tracer.unwrap_or_else(|| self.task(tracer));
                Event::PtracePoke { tracer, tracee, dr, value }
            }
            Op::Touch { task, access, kernel } => {
                Event::TaskAccess { task: self.task(task), access, insn: Insn::Plain, kernel }
            }
            Op::Nmi(cpu, nmi) => Event::Nmi(CpuId(cpu), nmi),
            Op::Refresh(cpu) => Event::Refresh(CpuId(cpu)),
            Op::Entry(vcpu) => Event::VmEntry(VcpuId(vcpu)),
            Op::Leave(vcpu, reason) => Event::VmExit(VcpuId(vcpu), reason),
            Op::Guest { vcpu, access, emulated } => {
                Event::GuestAccess { vcpu: VcpuId(vcpu), access, insn: Insn::Plain, emulated }
            }
            Op::Write { vcpu, dr, value } => Event::MovToDr { vcpu: VcpuId(vcpu), dr, value, cpl: 0 },
            Op::Read { vcpu, dr } => Event::MovFromDr { vcpu: VcpuId(vcpu), dr, cpl: 0 },
            Op::Debug(vcpu, debug) => Event::SetGuestDebug(VcpuId(vcpu), debug),
            Op::Set { vcpu, dr, dr7 } => Event::SetDebugregs { vcpu: VcpuId(vcpu), dr, dr6: None, dr7 },
            Op::Init(vcpu) => Event::Init(VcpuId(vcpu)),
        })
    }

    /// Whether the reference documents that an event breaks a law here.
    pub(crate) fn documented(&self, event: &Event) -> Option<&'static str> {
        let has = |delta| self.machine.policy.has(delta);
        match *event {
            Event::SetGuestDebug(vcpu, _) if self.machine.vcpu(vcpu).wont_exit && has(Delta::Z1) => Some(
                "Z-1: a debugger attaches while the window is open; the next exit stores its registers as the guest's",
            ),
            Event::Init(_) if has(Delta::H11) || has(Delta::H13) => {
                Some("H-11, H-13: INIT left the old addresses to be loaded, and took the debugger's DR7 away")
            }
            Event::SetDebugregs { .. } if has(Delta::H11) => Some("H-11: the old addresses are loaded"),
            Event::SetGuestDebug(_, debug) if debug.control & GuestDebug::USE_HW_BP != 0 && has(Delta::H33) => {
                Some("H-33: the guest reads the debugger's DR7")
            }
            Event::MovToDr { dr: 7, value, .. } if value & Dr7::GD != 0 && has(Delta::H15) => {
                Some("H-15: GD survives the #DB that KVM injects again")
            }
            Event::Modify(id, _)
                if self.machine.policy.host == HostHalf::Perf && self.leaves_copies_apart(id, event) =>
            {
                Some("M7 and 7.3: a refused change stops or starts the original, no copy; a swap exchanges the two")
            }
            _ => None,
        }
    }

    /// Whether a change is refused of a counter that has copies, and whose own state is not what attr.disabled says.
    pub(crate) fn leaves_copies_apart(&self, id: CounterId, event: &Event) -> bool {
        let refused = matches!(self.machine.clone().apply(event, &mut ()), Ok(Outcome::Refused(_)));
        let asked = self.ledger.counters.get(&id.0);
        refused && asked.is_some_and(|asked| asked.attr.inherit && asked.enabled == asked.attr.disabled)
    }

    /// Performs an op. `None` if it came to nothing.
    pub(crate) fn perform(&mut self, op: &Op) -> Result<Option<Outcome>, TestCaseError> {
        let Some(event) = self.event(op) else { return Ok(None) };
        if self.documented(&event).is_some() {
            return Ok(None);
        }
        let opens = matches!(event, Event::PerfEventOpen { .. });
        let before = self.machine.clone();
        match self.machine.apply(&event, &mut ()) {
            Err(misuse) => {
                let (before, after) = (format!("{before:?}"), format!("{:?}", self.machine));
                prop_assert_eq!(before, after, "{} of {:?} changed something", misuse, event);
                Ok(None)
            }
            Ok(outcome) => {
                self.ledger.record(&event, &outcome);
                self.ledger.record_guest(&event, &outcome);
                match (&event, &outcome) {
                    (_, Outcome::Bound(counter)) => self.counters.push(*counter),
                    (_, Outcome::Refused(_)) if opens => {
                        let (before, after) = (format!("{before:?}"), format!("{:?}", self.machine));
                        prop_assert_eq!(without_clock(&before), without_clock(&after), "refused: {:?}", event);
                    }
                    (Event::Fork { child, .. }, Outcome::Ok) => {
                        self.tasks.push(*child);
                        self.unborn = None;
                        self.inherited = true;
                    }
                    (Event::Exit(_), Outcome::Ok) => self.exited = true,
                    // Nobody catches the SIGTRAP: the task has exited (M6).
                    (Event::TaskAccess { task, .. }, Outcome::Hits { sigtrap: Some(_), .. })
                        if before.task(*task).tracer.is_none() =>
                    {
                        self.exited = true;
                        self.ledger.exit(*task);
                    }
                    _ => {}
                }
                Ok(Some(outcome))
            }
        }
    }

    /// M1: a context that changed hands has brought more counters to a CPU than it has registers. What is armed is part
    /// of what is owed, and for the rest of the walk nothing can be said: a flexible counter that found no register
    /// waits for the next scheduling point.
    pub(crate) fn is_over_committed(&self) -> Result<bool, TestCaseError> {
        for cpu in (0..CPUS).map(CpuId) {
            let announced = self.machine.slots(cpu).iter().filter(|&&holder| holder == Holder::Kgdb).count();
            let mut owed = self.machine.owed(cpu);
            if self.machine.guest(cpu).is_none() && owed.len() + announced > 4 {
                prop_assert!(self.inherited && self.exited, "over-committed without M1");
                for armed in self.machine.armed(cpu) {
                    let at = owed.iter().position(|bp| *bp == armed);
                    prop_assert!(at.is_some(), "{:?} is armed and not owed", armed);
                    owed.swap_remove(at.expect("just found"));
                }
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub(crate) fn check(&self, op: &Op) -> Result<(), TestCaseError> {
        let machine = &self.machine;
        let mut placed = Vec::new();
        for cpu in (0..CPUS).map(CpuId) {
            prop_assert_eq!(machine.armed(cpu), machine.owed(cpu), "cpu{} after {:?}", cpu.0, op);
            for holder in machine.slots(cpu) {
                if let Holder::Counter(id) = holder {
                    prop_assert_eq!(
                        machine.counter(id).state,
                        State::Active,
                        "in a slot of cpu{} after {:?}",
                        cpu.0,
                        op
                    );
                    prop_assert!(machine.counter(id).fits(cpu));
                    prop_assert!(!placed.contains(&id), "{:?} twice", id);
                    placed.push(id);
                }
            }
            if let Some(guest) = machine.guest(cpu) {
                self.check_reads(guest, op)?;
            } else {
                let asked = self.ledger.owed(cpu, machine.running(cpu));
                prop_assert_eq!(machine.armed(cpu), asked, "what was asked for of cpu{} after {:?}", cpu.0, op);
                // The shadow says what the hardware does (INV1 to INV3).
                let registers = shadow(machine, cpu);
                let hardware = machine.cpu(cpu).bank.hardware;
                prop_assert_eq!(Dr7(registers.dr7).any_armed(), Dr7(hardware.dr7).any_armed());
                prop_assert!(registers.armed().eq(hardware.armed()), "the shadow of cpu{} after {:?}", cpu.0, op);
            }
        }
        for &id in &self.counters {
            let active = machine.counter(id).state == State::Active;
            prop_assert_eq!(active, placed.contains(&id), "{:?} is {:?}", id, machine.counter(id).state);
        }
        Ok(())
    }

    /// A guest reads its own registers, whoever owns the hardware. Asked of a copy: asking may open the window.
    pub(crate) fn check_reads(&self, guest: VcpuId, op: &Op) -> Result<(), TestCaseError> {
        let vcpu = self.machine.vcpu(guest);
        let Guest { dr, dr7, .. } = self.ledger.guests[guest.index()];
        prop_assert_eq!((vcpu.own.dr, vcpu.own.dr7), (dr, dr7), "{:?} after {:?}", guest, op);
        // Each read would be a #DB: of the debugger's GD, or, where the access is emulated, of the guest's own.
        if (vcpu.effective().dr7 | dr7) & Dr7::GD != 0 {
            return Ok(());
        }
        for (number, own) in (0..).zip(dr).chain([(7, dr7)]) {
            let read = Event::MovFromDr { vcpu: guest, dr: number, cpl: 0 };
            let told = self.machine.clone().apply(&read, &mut ());
            prop_assert_eq!(told, Ok(Outcome::Value(own)), "DR{} of {:?} after {:?}", number, guest, op);
        }
        Ok(())
    }

    /// Performs everything, and checks what holds after each event that was possible; up to an over-commit.
    pub(crate) fn perform_checked(&mut self, ops: &[Op]) -> Result<(), TestCaseError> {
        for op in ops {
            if self.perform(op)?.is_some() {
                if self.is_over_committed()? {
                    break;
                }
                self.check(op)?;
            }
        }
        Ok(())
    }
}

fn shadow(machine: &Machine, cpu: CpuId) -> Registers {
    let told = machine.clone().apply(&Event::Registers(cpu), &mut ());
    let Ok(Outcome::Registers(registers)) = told else { unreachable!("registers come to registers") };
    registers
}

/// The machine's text without how many events there have been, which is its last field.
fn without_clock(text: &str) -> &str {
    text.rsplit_once(", clock: ").expect("the clock").0
}
