//! A scenario in the model first: what it comes to there, and whether it could harm a kernel.

use debugreg::Dr;
use debugreg::trip::What;
use debugreg_model::scenario::{Expectation, Line, Scenario, Session, show_event, show_outcome};
use debugreg_model::{CpuId, Event, Insn, Machine, Mark, Options, Outcome, Policy, Probe, Processor, Step};

use crate::Likeness;

/// A session in which a scenario's tasks are, and nothing has happened.
pub(crate) fn session(scenario: &Scenario, policy: Policy) -> Session {
    let options = Options { ..scenario.options };
    let mut session = Session::new(options, policy);
    session.names = scenario.names.clone();
    for task in &scenario.tasks {
        let id = session.machine.add_task(task.cpu, task.capabilities);
        session.machine.set_32bit(id, task.is_32bit);
    }
    for vcpu in &scenario.vcpus {
        let id = session.machine.add_vcpu(vcpu.task);
        session.machine.set_debug_extensions(id, vcpu.debug_extensions);
    }
    session
}

/// The model, a line after the other beside another world.
#[derive(Debug)]
pub(crate) struct Rehearsal(Session);

impl Rehearsal {
    pub(crate) fn new(scenario: &Scenario, likeness: Likeness) -> Rehearsal {
        Rehearsal(session(&likeness.scenario(scenario), likeness.policy))
    }

    pub(crate) fn machine(&self) -> &Machine {
        &self.0.machine
    }

    /// What a line comes to; `None` if it names a counter that was never opened.
    pub(crate) fn line(&mut self, line: &Line) -> Option<Outcome> {
        perform(&mut self.0, line, &mut ())
    }
}

/// Performs a line, and binds the name that it gives.
fn perform<P: Probe>(session: &mut Session, line: &Line, probe: &mut P) -> Option<Outcome> {
    let outcome = session.perform(&line.event, probe).ok()??;
    if let (Some(Expectation::Bind(symbol)), Outcome::Bound(id)) = (&line.expectation, &outcome) {
        session.bind(*symbol, *id);
    }
    Some(outcome)
}

/// Sees whether a counter is to be put into a register, and there is none: the kernel warns then, and some panic.
#[derive(Debug, Default)]
pub(crate) struct Overcommit {
    pending: bool,
    pub(crate) seen: bool,
}

impl Overcommit {
    /// An event is over.
    pub(crate) fn end(&mut self) -> bool {
        self.seen |= std::mem::take(&mut self.pending);
        self.seen
    }
}

impl Probe for Overcommit {
    fn step(&mut self, _: CpuId, step: Step) {
        if let Step::WriteDr(Dr::Address(_), _) = step {
            self.pending = false;
        }
    }

    fn mark(&mut self, _: &Machine, _: CpuId, mark: Mark) {
        self.seen |= std::mem::replace(&mut self.pending, matches!(mark, Mark::Install(_)));
    }
}

/// Sees whether #DB is raised.
#[derive(Debug, Default)]
struct Raised(bool);

impl Probe for Raised {
    fn step(&mut self, _: CpuId, step: Step) {
        self.0 |= matches!(step, Step::ReadDr(Dr::Status, _));
    }
}

/// Whether QEMU's emulation hangs: when an instruction is single-stepped that also trips a data breakpoint.
fn hangs(session: &Session, event: &Event) -> bool {
    let Event::TaskAccess { task, access, insn: Insn::PopfTf, kernel } = *event else { return false };
    let mut raised = Raised::default();
    let plain = Event::TaskAccess { task, access, insn: Insn::Plain, kernel };
    access.what != What::Execute && session.clone().perform(&plain, &mut raised).is_ok() && raised.0
}

/// The first line that would harm the machine, and why.
pub(crate) fn first_hazard(scenario: &Scenario, likeness: Likeness) -> Option<(usize, &'static str)> {
    let mut session = session(scenario, likeness.policy);
    let mut probe = Overcommit::default();
    for (at, line) in scenario.lines.iter().enumerate() {
        if likeness.processor == Processor::Tcg && hangs(&session, &line.event) {
            return Some((at, "a stepped instruction that trips a data breakpoint: the emulator would hang"));
        }
        perform(&mut session, line, &mut probe)?;
        if probe.end() {
            return Some((at, "more breakpoints than registers: hazardous, the kernel would warn"));
        }
    }
    None
}

/// A scenario whose every line expects what it comes to in the model, or `None` if that cannot be written.
pub(crate) fn annotated(scenario: &Scenario, policy: Policy) -> Option<String> {
    let mut session = session(scenario, policy);
    let mut head = scenario.clone();
    head.lines.clear();
    let mut text = head.to_string();
    for line in &scenario.lines {
        if line.interruption.is_some() {
            return None;
        }
        let event = show_event(&line.event, &session.names);
        let outcome = perform(&mut session, line, &mut ())?;
        let is_named = matches!(line.expectation, Some(Expectation::Bind(_)));
        if let (false, Outcome::Bound(id)) = (is_named, &outcome) {
            session.name_counter(&format!("unnamed{}", id.0), *id).ok()?;
        }
        text += &event;
        if let Some(expectation) = expectation(&line.event, &outcome, &session) {
            text += " => ";
            text += &expectation;
        }
        text.push('\n');
    }
    Some(text)
}

/// The outcome as an expectation, if the language has one.
pub(crate) fn expectation(event: &Event, outcome: &Outcome, session: &Session) -> Option<String> {
    match outcome {
        Outcome::Hits { sigtrap: Some(dr6), .. } => Some(format!("sigtrap dr6={dr6:#010x}")),
        // A counter and its copy can be hit by one access.
        Outcome::Hits { counters, .. } if !counters.is_empty() => {
            let mut names: Vec<_> = counters.iter().map(|&id| session.counter_name(id)).collect();
            names.sort_unstable();
            names.dedup();
            Some(format!("hit {}", names.join(" ")))
        }
        Outcome::Slots(_) => {
            let text = show_outcome(outcome, session);
            // A tracer's counter has no name in the language.
            (!text.contains('-')).then_some(text)
        }
        _ if matches!(event, Event::Registers(_) | Event::Hardware(_) | Event::Owed(_)) => None,
        _ => Some(show_outcome(outcome, session)),
    }
}
