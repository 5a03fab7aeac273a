//! What holds before every step, and what an event comes to as a whole.

use debugreg::{Breakpoint, Dr7};

use super::outcome::Expected;
use super::state::list;
use super::{Breach, Judged, Law, Laws};
use crate::event::{Event, ExitReason, Misuse, Nmi, Outcome};
use crate::machine::Machine;
use crate::part::Footprint;
use crate::policy::HostHalf;
use crate::scenario::At;
use crate::step::{Mark, Probe, Step};
use crate::{CpuId, VcpuId};

/// Watches an event: sees the machine before it, before every step, and after it.
#[derive(Debug)]
pub struct Witness {
    laws: Laws,
    expected: Expected,
    /// By CPU: what its host side was owed before, and what says so.
    owed: Vec<(Vec<Breakpoint>, Footprint)>,
    /// What software had armed of the guests' before, where it does.
    guests: Vec<Breakpoint>,
    /// What was armed in between that was not owed before.
    seen: Vec<(CpuId, Breakpoint)>,
    /// MOV DRs so far, and whether nothing is set, so that there should be none.
    free: (bool, Footprint),
    moves: usize,
    breach: Option<Breach>,
    steps: usize,
    interruption: Option<(At, Event)>,
    interrupted: bool,
    /// In how many events inside this one it is.
    inside: u32,
    /// Something happened inside that may change the outcome.
    disturbed: bool,
    failed: Option<Misuse>,
}

impl Witness {
    /// Before an event.
    pub fn new(machine: &Machine, event: &Event, laws: Laws) -> Witness {
        let judges = !laws.is_empty();
        let cpus = (0..machine.cpu_count()).map(CpuId::from).filter(|_| judges);
        Witness {
            laws,
            expected: if judges { Expected::of(machine, event) } else { Expected::Anything },
            owed: cpus.map(|cpu| machine.apart(|machine| machine.host_owed(cpu))).collect(),
            guests: if judges && machine.arms_early() { guests_of(machine) } else { Vec::new() },
            seen: Vec::new(),
            free: machine.apart(|machine| judges && is_hook(event) && machine.has_nothing_set()),
            moves: 0,
            breach: None,
            steps: 0,
            interruption: None,
            interrupted: false,
            inside: 0,
            disturbed: false,
            failed: None,
        }
    }

    /// With something that happens before one of the steps.
    #[must_use]
    pub fn interrupted_by(mut self, at: At, event: Event) -> Witness {
        self.interruption = Some((at, event));
        self
    }

    /// Before a step at which everything is as it was, and of which somebody else says that it is right.
    pub(crate) fn pass(&mut self) {
        self.steps += 1;
    }

    /// Whether nothing is wrong in host context, neither as it is nor with a plain NMI on top.
    pub(crate) fn is_quiet(&mut self, machine: &mut Machine, cpu: CpuId, nmi: bool) -> bool {
        self.look(machine, cpu);
        let looks_right = self.breach.is_none() && self.seen.is_empty();
        looks_right && (!nmi || self.try_inside(machine, &Event::Nmi(cpu, Nmi::Plain)))
    }

    /// How many steps there have been.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// After the event.
    ///
    /// # Errors
    ///
    /// [`Misuse`] of the interruption.
    pub fn conclude(self, machine: &Machine, event: &Event, outcome: Outcome) -> Result<Judged, Misuse> {
        let laws = self.laws;
        let mut judged = self.conclude_transition(machine, event, outcome)?;
        judged.breach = judged.breach.or_else(|| machine.breach(laws));
        Ok(judged)
    }

    /// After the event, whatever the state that it came to.
    pub(crate) fn conclude_transition(
        mut self,
        machine: &Machine,
        event: &Event,
        outcome: Outcome,
    ) -> Result<Judged, Misuse> {
        if let Some(misuse) = self.failed.take() {
            return Err(misuse);
        }
        if self.laws.is_empty() {
            return Ok(Judged { outcome, breach: None, steps: self.steps, interrupted: self.interrupted });
        }
        if let Some(breach) = self.strange(machine) {
            self.tell(breach);
        }
        if self.moves > 0 {
            machine.notice(self.free.1);
        }
        if self.moves > 0 && self.free.0 && machine.has_nothing_set() {
            self.tell(Breach {
                law: Law::SkipFree,
                why: format!("nothing is set anywhere, and {} MOV DR were executed", self.moves),
            });
        }
        if !self.disturbed
            && let Some(breach) = self.expected.breach(machine, event, &outcome)
        {
            self.tell(breach);
        }
        Ok(Judged { outcome, breach: self.breach, steps: self.steps, interrupted: self.interrupted })
    }

    fn tell(&mut self, breach: Breach) {
        if self.breach.is_none() && self.laws.has(breach.law) {
            self.breach = Some(breach);
        }
    }

    /// Something was armed in host context that nobody there was owed, neither before nor after.
    fn strange(&self, machine: &Machine) -> Option<Breach> {
        let (cpu, bp) = self.seen.iter().find(|&&(cpu, bp)| {
            let is_guests = || self.guests.contains(&bp) || machine.arms_early() && guests_of(machine).contains(&bp);
            !is_guests() && !machine.host_owed(cpu).contains(&bp)
        })?;
        Some(Breach {
            law: Law::HostArmed,
            why: format!("cpu{} had armed {} on the way, which nobody asked for", cpu.0, list(&[*bp])),
        })
    }

    fn look(&mut self, machine: &Machine, cpu: CpuId) {
        let of = machine.cpu(cpu);
        let dr7 = of.bank.hardware.dr7;
        if self.laws.is_empty() || machine.guest(cpu).is_some() || machine.policy.host == HostHalf::Thread {
            return;
        }
        if dr7 & Dr7::GD != 0 {
            self.tell(Breach { law: Law::ShadowTrue, why: format!("cpu{} has dr7={dr7:#x} in the host", cpu.0) });
        }
        if !Dr7(dr7).any_armed() {
            return;
        }
        // Who has been interrupted by an NMI already is not interrupted by the next one.
        let waits = !self.interrupted && self.inside == 0;
        if waits && !Dr7(of.bank.control).any_armed() && !machine.arms_early() {
            self.tell(Breach {
                law: Law::ShadowTrue,
                why: format!("cpu{} has dr7={dr7:#x} while its shadow is inactive: an NMI would run with it", cpu.0),
            });
        }
        let (owed, looked) = &self.owed[cpu.index()];
        machine.notice(*looked);
        for (_, bp) in of.bank.hardware.armed() {
            if !owed.contains(&bp) && !self.seen.contains(&(cpu, bp)) {
                self.seen.push((cpu, bp));
            }
        }
    }

    /// Whether something can happen here, and breaks no law by itself. What is seen on the way is forgotten.
    pub(crate) fn try_inside(&mut self, machine: &mut Machine, event: &Event) -> bool {
        let (seen, breach) = (self.seen.len(), self.breach.take());
        self.inside += 1;
        let done = machine.apply(event, &mut Inside(self)).is_ok();
        self.inside -= 1;
        let clean = done && self.breach.is_none() && self.seen.len() == seen;
        self.seen.truncate(seen);
        self.breach = breach;
        clean
    }

    fn interrupt(&mut self, machine: &mut Machine, now: At) {
        let Some((_, event)) = self.interruption.take_if(|(at, _)| *at == now) else { return };
        self.interrupted = true;
        self.disturbed |= !matches!(event, Event::Nmi(_, Nmi::Plain));
        // The steps inside are watched, too.
        let mut inside = Inside(self);
        if let Err(misuse) = machine.apply(&event, &mut inside) {
            self.failed = Some(misuse);
        }
    }
}

/// The hooks that should cost nothing if nothing is set.
fn is_hook(event: &Event) -> bool {
    matches!(
        event,
        Event::SchedSwitch(..)
            | Event::VmEntry(_)
            | Event::VmExit(_, ExitReason::Fastpath | ExitReason::Other(_))
            | Event::Migrate(..)
    )
}

impl Probe for Witness {
    fn before(&mut self, machine: &mut Machine, cpu: CpuId) {
        self.steps += 1;
        self.look(machine, cpu);
        self.interrupt(machine, At::Step(self.steps));
    }

    fn before_entry(&mut self, machine: &mut Machine, cpu: CpuId) {
        self.interrupt(machine, At::Entry);
        at_entry(self, machine, cpu);
    }

    fn mark(&mut self, machine: &Machine, cpu: CpuId, mark: Mark) {
        at_mark(self, machine, cpu, mark);
    }

    fn step(&mut self, _: CpuId, step: Step) {
        self.moves += usize::from(matches!(step, Step::WriteDr(..) | Step::ReadDr(..)));
    }
}

/// Nothing of the host's is armed in the entry itself.
fn at_entry(witness: &mut Witness, machine: &Machine, cpu: CpuId) {
    let armed = machine.armed(cpu);
    if armed.is_empty() {
        return;
    }
    if !machine.arms_early() || !armed.iter().all(|bp| guests_of(machine).contains(bp)) {
        let why = format!("cpu{} enters a guest with {} armed", cpu.0, list(&armed));
        witness.tell(Breach { law: Law::EntryQuiet, why });
    }
}

/// Nothing is armed while an NMI is handled.
fn at_mark(witness: &mut Witness, machine: &Machine, cpu: CpuId, mark: Mark) {
    let armed = if mark == Mark::Nmi { machine.armed(cpu) } else { Vec::new() };
    if !armed.is_empty() {
        let why = format!("cpu{} handles an NMI with {} armed", cpu.0, list(&armed));
        witness.tell(Breach { law: Law::ShadowTrue, why });
    }
}

/// What the guests have set, or their debuggers instead.
fn guests_of(machine: &Machine) -> Vec<Breakpoint> {
    let all = (0..machine.vcpus.len()).map(VcpuId::from);
    all.flat_map(|id| machine.effective(id).armed()).map(|(_, bp)| bp).collect()
}

/// Watches an interruption: its steps are not those of the event.
struct Inside<'a>(&'a mut Witness);

impl Probe for Inside<'_> {
    fn before(&mut self, machine: &mut Machine, cpu: CpuId) {
        self.0.look(machine, cpu);
    }

    fn before_entry(&mut self, machine: &mut Machine, cpu: CpuId) {
        at_entry(self.0, machine, cpu);
    }

    fn mark(&mut self, machine: &Machine, cpu: CpuId, mark: Mark) {
        at_mark(self.0, machine, cpu, mark);
    }
}
