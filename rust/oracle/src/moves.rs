//! Every MOV to and from a debug register that the kernel executed for a line, beside what the model says of it.
//!
//! A machine that logs its instructions (`emulated.rs`) shows what no interface of the kernel does. What was executed
//! for a line is what stands between its mark in the log and the next.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use debugreg_model::scenario::{Expectation, Line, Scenario};
use debugreg_model::{CpuId, Event, Outcome, Probe, Step};
use debugreg_trace::steps::{self, MarkName, What};

use crate::emulated::BLIND;
use crate::report::Report;
use crate::{Error, Likeness, rehearse};

/// The CPU of the machine that is the only one of a scenario (`Tasks::place`).
const ONLY: u16 = 1;

/// MOV to or from a debug register.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
struct Mov {
    dr: u8,
    /// What was written; `None` for a read.
    value: Option<u64>,
}

impl fmt::Display for Mov {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Mov { dr, value: Some(value) } => write!(f, "mov dr{dr}, {value:#x}"),
            Mov { dr, value: None } => write!(f, "read dr{dr}"),
        }
    }
}

/// Adds to a report what a log says, and lets each line fail whose instructions are not the model's.
///
/// Scenarios with two CPUs are not compared: their tasks sleep between the lines, and more is switched than the model
/// knows.
///
/// # Errors
///
/// [`Error::Lost`] if the log cannot be read.
pub fn compare_moves(report: &mut Report, parsed: &Scenario, likeness: Likeness, log: &[u8]) -> Result<(), Error> {
    let executed = executed(log)?;
    let predicted = (parsed.options.cpus == 1).then(|| predicted(&likeness.scenario(parsed), likeness));
    for (at, (line, step)) in parsed.lines.iter().zip(&mut report.steps).enumerate() {
        let Some(executed) = executed.get(&line.number) else { continue };
        step.moves = executed.iter().map(ToString::to_string).collect();
        let Some(predicted) = predicted.as_ref().and_then(|lines| lines.get(at)) else { continue };
        if step.observed.is_none() || !is_comparable(line) {
            continue;
        }
        report.moves += executed.len() as u64;
        if executed != predicted && step.ok != Some(false) {
            step.ok = Some(false);
            step.expected = Some(list(predicted));
            step.observed = Some(list(executed));
        }
    }
    report.ok =
        report.steps.iter().all(|step| step.ok != Some(false)) && report.steps.iter().any(|step| step.ok == Some(true));
    Ok(())
}

/// How often one access of the kernel raises #DB depends on its copy routine.
fn is_comparable(line: &Line) -> bool {
    !matches!(line.event, Event::TaskAccess { kernel: true, .. })
}

fn list(moves: &[Mov]) -> String {
    let moves: Vec<_> = moves.iter().map(ToString::to_string).collect();
    if moves.is_empty() { "no access to a debug register".to_owned() } else { moves.join("; ") }
}

/// By line: what the log has.
fn executed(log: &[u8]) -> Result<HashMap<u32, Vec<Mov>>, Error> {
    let path = Path::new("the log of the emulated machine");
    let mut lines: HashMap<u32, Vec<Mov>> = HashMap::new();
    let mut current = 0;
    for step in steps::parse(path, log).map_err(|error| Error::Lost(error.to_string()))? {
        let mov = match step.what {
            What::Mark { name: MarkName::Line, rdi: BLIND } => {
                lines.remove(&current);
                break;
            }
            What::Mark { name: MarkName::Line, rdi } => {
                current = rdi as u32;
                lines.entry(current).or_default();
                continue;
            }
            What::Write { dr, value } => Mov { dr, value: Some(value) },
            What::Read { dr } => Mov { dr, value: None },
            _ => continue,
        };
        if step.is_kernel() && step.cpu == ONLY {
            lines.entry(current).or_default().push(mov);
        }
    }
    Ok(lines)
}

/// Line by line: what the model executes, as far as it gets.
fn predicted(parsed: &Scenario, likeness: Likeness) -> Vec<Vec<Mov>> {
    let mut session = rehearse::session(parsed, likeness.policy);
    let mut lines = Vec::new();
    for line in &parsed.lines {
        let mut watch = Watch::default();
        let Ok(Some(outcome)) = session.perform(&line.event, &mut watch) else { break };
        if let (Some(Expectation::Bind(symbol)), Outcome::Bound(id)) = (&line.expectation, &outcome) {
            session.bind(*symbol, *id);
        }
        lines.push(watch.moves);
    }
    lines
}

#[derive(Debug, Default)]
struct Watch {
    moves: Vec<Mov>,
}

impl Probe for Watch {
    fn step(&mut self, _: CpuId, step: Step) {
        self.moves.extend(match step {
            Step::WriteDr(dr, value) => Some(Mov { dr: dr.number(), value: Some(value) }),
            Step::ReadDr(dr, _) => Some(Mov { dr: dr.number(), value: None }),
            _ => None,
        });
    }
}
