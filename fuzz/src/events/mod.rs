//! Random events of every kind on one machine, and what must hold after each, whatever it was.

mod generate;
mod kind;

use std::collections::BTreeSet;

use debugreg::Owner;
use debugreg_model::policy::HostHalf;
use debugreg_model::scenario::{At, Expectation, Line, Scenario, Session, show_outcome};
use debugreg_model::{CounterId, CpuId, Delta, Event, Holder, Machine, Misuse, Outcome, Policy, Probe, State, TaskId};

pub use generate::Walk;
pub use kind::{KINDS, kind};

/// Performs a walk. Returns the kinds of events that came to an outcome, and how many interruptions took place.
///
/// # Panics
///
/// If anything is wrong.
pub fn survive(Walk(scenario): &Walk) -> (BTreeSet<&'static str>, usize) {
    let mut world = World::new(scenario);
    for line in &scenario.lines {
        world.line(line);
    }
    (world.kinds, world.interruptions)
}

struct World {
    session: Session,
    kinds: BTreeSet<&'static str>,
    interruptions: usize,
}

impl World {
    fn new(scenario: &Scenario) -> World {
        let policy = Policy::parse(&scenario.policies[0]).expect("a policy that was printed");
        let mut session = Session::new(scenario.options, policy);
        session.names = scenario.names.clone();
        let machine = &mut session.machine;
        for task in &scenario.tasks {
            let id = machine.add_task(task.cpu, task.capabilities);
            machine.set_32bit(id, task.is_32bit);
        }
        for vcpu in &scenario.vcpus {
            let id = machine.add_vcpu(vcpu.task);
            machine.set_debug_extensions(id, vcpu.debug_extensions);
        }
        for line in &scenario.lines {
            for event in std::iter::once(&line.event).chain(line.interruption.as_ref().map(|(_, event)| event)) {
                if let Event::Fork { child, .. } = event {
                    while machine.add_unborn_task() != *child {}
                }
            }
        }
        World { session, kinds: BTreeSet::new(), interruptions: 0 }
    }

    /// Performs a line; one that names a counter that was never opened is no event.
    fn line(&mut self, line: &Line) {
        let Some(event) = self.session.resolve(&line.event) else { return };
        let due = line.interruption.as_ref().and_then(|(at, inner)| Some((*at, self.session.resolve(inner)?)));
        let mut interruption = Interruption { steps: 0, due, happened: false };
        let before = self.session.machine.clone();
        let result = self.session.machine.apply(&event, &mut interruption);
        let Interruption { steps, happened, .. } = interruption;
        self.interruptions += usize::from(happened);
        match &result {
            Err(misuse) => {
                assert_eq!(steps, 0, "{misuse} of {event:?}, and yet something was done");
                nothing_changed(&before, &self.session.machine, misuse, &event);
                self.session.explain(misuse);
            }
            Ok(outcome) => {
                self.kinds.insert(kind(&event));
                if let (Outcome::Refused(_), false) = (outcome, happened) {
                    refused(&before, &self.session.machine, &event);
                }
                if let (Outcome::Bound(id), Some(Expectation::Bind(symbol))) = (outcome, &line.expectation) {
                    self.session.bind(*symbol, *id);
                }
                show_outcome(outcome, &self.session);
            }
        }
        holds_together(&self.session.machine, self.interruptions > 0, &event);
        numbers_are_true(&self.session.machine, &event);
    }
}

/// Another event before one of the steps.
struct Interruption {
    steps: usize,
    due: Option<(At, Event)>,
    happened: bool,
}

impl Interruption {
    fn interrupt(&mut self, machine: &mut Machine, now: At) {
        if let Some((_, event)) = self.due.take_if(|(at, _)| *at == now) {
            let before = machine.clone();
            match machine.apply(&event, &mut ()) {
                Err(misuse) => nothing_changed(&before, machine, &misuse, &event),
                Ok(_) => self.happened = true,
            }
            holds_together(machine, true, &event);
        }
    }
}

impl Probe for Interruption {
    fn before(&mut self, machine: &mut Machine, _: CpuId) {
        self.steps += 1;
        self.interrupt(machine, At::Step(self.steps));
    }

    fn before_entry(&mut self, machine: &mut Machine, _: CpuId) {
        self.interrupt(machine, At::Entry);
    }
}

/// A mistake in an event changes nothing, not even the clock.
fn nothing_changed(before: &Machine, after: &Machine, misuse: &Misuse, event: &Event) {
    assert!(before == after, "{misuse} of {event:?} changed\n{before:#?}\nto\n{after:#?}");
}

/// Who holds which slot, and how many counters each target has on which CPU.
type Held = (Vec<[Holder; 4]>, Vec<(Option<TaskId>, Option<CpuId>)>);

fn held(machine: &Machine) -> Held {
    let slots = (0..machine.cpu_count()).map(|cpu| machine.slots(CpuId::from(cpu))).collect();
    let live = machine.counters().filter(|(_, counter)| counter.is_live());
    (slots, live.map(|(_, counter)| (counter.target, counter.cpu)).collect())
}

/// What the kernel refuses leaves the slots to whom they belonged, with the exceptions that the reference documents.
fn refused(before: &Machine, after: &Machine, event: &Event) {
    // HB-02: the slot is kept for ever. M5: what the first pass over DR7 has registered stays.
    if before.policy.has(Delta::HB02) || matches!(event, Event::PtracePoke { .. }) {
        return;
    }
    let ((slots, live), (slots_after, live_after)) = (held(before), held(after));
    assert_eq!(live, live_after, "{event:?} was refused, and counters came or went");
    // M7: a change that is refused stops or starts the counter. A breakpoint on every CPU that one of them refuses was
    // put on those before it, and kgdb takes its own out and puts them in again.
    let moves = matches!(event, Event::Modify(..) | Event::RegisterHwBreakpoint { .. } | Event::Nmi(..));
    assert!(moves || slots == slots_after, "{event:?} was refused, and {slots:?} became {slots_after:?}");
}

/// What holds at any time. `interrupted`: something has happened inside of something else before.
fn holds_together(machine: &Machine, interrupted: bool, event: &Event) {
    let counters = machine.counters().count() as u32;
    let mut placed = Vec::new();
    for cpu in (0..machine.cpu_count()).map(CpuId::from) {
        for owner in machine.cpu(cpu).bank.owner {
            if !matches!(owner, Owner::NONE | Owner::KGDB) {
                assert!(owner.0 <= counters, "{owner:?} of {cpu:?} is nobody, after {event:?}");
                placed.push(CounterId(owner.0 - 1));
            }
        }
        machine.slots(cpu);
        machine.owed(cpu);
        machine.owed_registers(cpu);
        machine.armed(cpu);
    }
    if machine.policy.host == HostHalf::Perf && !interrupted {
        for (id, counter) in machine.counters() {
            let slots = placed.iter().filter(|&&placed| placed == id).count();
            assert_eq!(
                usize::from(counter.state == State::Active),
                slots,
                "{id:?} is {:?}, after {event:?}",
                counter.state
            );
        }
    }
}

/// The slot rule's numbers are what a count gives, outside of transitions.
fn numbers_are_true(machine: &Machine, event: &Event) {
    let bugs = [Delta::HB01, Delta::HB03, Delta::HB14, Delta::HB22, Delta::HB23];
    if machine.policy.has(Delta::Histogram) && !bugs.iter().any(|&bug| machine.policy.has(bug)) {
        assert!(machine.histogram_is_true(), "the numbers are wrong, after {event:?}");
    }
}
