//! A scenario under a policy.

use debugreg::Cost;

use super::show::{show_event, show_expectation, show_outcome, show_step};
use super::{Expectation, Line, Scenario, ScenarioError, Session};
use crate::laws::{Breach, Judged, Witness};
use crate::{CpuId, Event, Machine, Outcome, Policy, Probe, Step, Vendor};

/// What came of a scenario.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// Whether every expectation held, and there was one.
    pub ok: bool,
    /// Line by line.
    pub steps: Vec<StepReport>,
    /// What it cost.
    pub cost: Cost,
}

/// What came of a line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StepReport {
    /// Its number in the file.
    pub line: u32,
    /// The event, as the language writes it.
    pub event: String,
    /// The expectation, if there is one.
    pub expected: Option<String>,
    /// The outcome, as an expectation would write it.
    pub observed: String,
    /// Whether the expectation held; `None` without one.
    pub ok: Option<bool>,
    /// Why the kernel refused, if it did: the rule and the holders.
    pub refusal: Option<String>,
    /// The steps that the event took, numbered from 1, if they were asked for.
    pub trace: Vec<String>,
}

/// Performs a scenario.
///
/// # Errors
///
/// A mistake in the file that shows only when it runs, with its line.
pub fn run(
    scenario: &Scenario,
    policy: Policy,
    vendor: Option<Vendor>,
    with_steps: bool,
) -> Result<Report, ScenarioError> {
    let mut options = scenario.options;
    options.vendor = vendor.unwrap_or(options.vendor);
    let mut session = Session::new(options, policy);
    session.names = scenario.names.clone();
    session.laws = scenario.laws;
    for task in &scenario.tasks {
        let id = session.machine.add_task(task.cpu, task.capabilities);
        session.machine.tasks[id.index()].is_32bit = task.is_32bit;
    }
    for vcpu in &scenario.vcpus {
        let id = session.machine.add_vcpu(vcpu.task);
        session.machine.set_debug_extensions(id, vcpu.debug_extensions);
    }
    let before = session.machine.cost();
    let mut steps = Vec::new();
    for line in &scenario.lines {
        steps.push(perform(&mut session, line, with_steps)?);
    }
    let ok = steps.iter().all(|step| step.ok != Some(false)) && steps.iter().any(|step| step.ok == Some(true));
    Ok(Report { ok, steps, cost: session.machine.cost() - before })
}

/// What a line came to.
#[derive(Clone, PartialEq, Debug)]
pub struct Performed {
    /// The outcome; `None` if the line names a counter that was never opened.
    pub outcome: Option<Outcome>,
    /// The law that it broke, of those that the session is under.
    pub breach: Option<Breach>,
    /// The steps, numbered from 1, if they were asked for.
    pub steps: Vec<String>,
}

/// Performs a line with its interruption, and binds the name that it expects.
pub(super) fn perform_line(session: &mut Session, line: &Line, with_steps: bool) -> Result<Performed, ScenarioError> {
    let error = |message| ScenarioError { line: line.number, column: line.column, message };
    let Some(event) = session.resolve(&line.event) else {
        return Ok(Performed { outcome: None, breach: None, steps: Vec::new() });
    };
    let mut witness = Witness::new(&session.machine, &event, session.laws);
    if let Some((at, inside)) = &line.interruption {
        let resolved = session.resolve(inside);
        if let Some(Event::Fork { child, .. }) = resolved {
            session.add_child(child);
        }
        let inside = resolved.ok_or_else(|| error("the interruption names a closed counter".into()))?;
        witness = witness.interrupted_by(*at, inside);
    }
    let mut watch = Watch { steps: with_steps.then(Vec::new), witness };
    if let Event::Fork { child, .. } = event {
        session.add_child(child);
    }
    let outcome = session.machine.apply(&event, &mut watch).map_err(|misuse| error(session.explain(&misuse)))?;
    let judged = watch.witness.conclude(&session.machine, &event, outcome);
    let Judged { outcome, breach, steps, interrupted } =
        judged.map_err(|misuse| error(format!("the interruption: {}", session.explain(&misuse))))?;
    if let Some((at, _)) = line.interruption.as_ref().filter(|_| !interrupted) {
        return Err(error(format!("{at} is never reached: the event takes {steps} steps")));
    }
    if let (Some(Expectation::Bind(symbol)), Outcome::Bound(id)) = (&line.expectation, &outcome) {
        session.bind(*symbol, *id);
    }
    Ok(Performed { outcome: Some(outcome), breach, steps: watch.steps.unwrap_or_default() })
}

fn perform(session: &mut Session, line: &Line, with_steps: bool) -> Result<StepReport, ScenarioError> {
    let Performed { outcome, breach, steps: trace } = perform_line(session, line, with_steps)?;
    let event = show_event(&line.event, &session.names);
    let expected = line.expectation.as_ref().map(|expectation| show_expectation(expectation, &session.names));
    let Some(outcome) = outcome else {
        let observed = "the counter was never opened".to_owned();
        let ok = expected.as_ref().map(|_| false);
        return Ok(StepReport { line: line.number, event, expected, observed, ok, refusal: None, trace });
    };
    let ok = line.expectation.as_ref().map(|wanted| wanted.holds(&outcome, |id| session.symbol(id)));
    let refusal = match &outcome {
        Outcome::Refused(refusal) if refusal.holders.is_empty() => Some(refusal.rule.to_owned()),
        Outcome::Refused(refusal) => {
            let holders: Vec<_> = refusal.holders.iter().map(|&id| session.counter_name(id)).collect();
            Some(format!("{}; held by {}", refusal.rule, holders.join(", ")))
        }
        _ => None,
    };
    let mut observed = show_outcome(&outcome, session);
    let mut ok = ok.or_else(|| (!session.laws.is_empty()).then_some(true));
    if let Some(breach) = breach {
        observed = format!("{observed}, {breach}");
        ok = Some(false);
    }
    Ok(StepReport { line: line.number, event, expected, observed, ok, refusal, trace })
}

/// Lists the steps.
#[derive(Debug)]
struct Watch {
    steps: Option<Vec<String>>,
    witness: Witness,
}

impl Probe for Watch {
    fn before(&mut self, machine: &mut Machine, cpu: CpuId) {
        self.witness.before(machine, cpu);
    }

    fn before_entry(&mut self, machine: &mut Machine, cpu: CpuId) {
        self.witness.before_entry(machine, cpu);
    }

    fn step(&mut self, cpu: CpuId, step: Step) {
        self.witness.step(cpu, step);
        if let Some(steps) = &mut self.steps {
            steps.push(format!("{} {}", self.witness.steps(), show_step(step)));
        }
    }
}
