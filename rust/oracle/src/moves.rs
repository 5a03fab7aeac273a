//! Every MOV to and from a debug register that the kernel executed for a line, beside what the model says of it.
//!
//! A machine that logs its instructions (`emulated.rs`) shows what no interface of the kernel does. What was executed
//! for a line is what stands between its mark in the log and the next.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use debugreg_model::scenario::{Expectation, Line, Scenario, Session};
use debugreg_model::{CpuId, Event, Outcome, Probe, Step, TaskId};
use debugreg_trace::steps::{self, MarkName, What};

use crate::emulated::{BLIND, SHARED};
use crate::report::{Report, StepReport};
use crate::{Error, Likeness, rehearse};

/// The CPU of the machine that is the only one of a scenario (`Tasks::place`).
const ONLY: u16 = 1;
const FIRST: CpuId = CpuId(0);

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

/// What the log has of a line.
#[derive(Debug, Default)]
struct Logged {
    moves: Vec<Mov>,
    /// Whether the CPU went from one task to another.
    switched: bool,
    /// Whether others were there than the scenario knows.
    shared: bool,
}

/// Adds to a report what a log says, and lets each line fail whose instructions are not the model's.
///
/// Instructions of scenarios with two CPUs are not compared here: their tasks sleep between the lines, and more is
/// switched than the model knows; it is told as much of that as an emulator forgets by it. Nor are those of scenarios with
/// guests, which leave more often than the scenario says. Of both the trace tells (`traced.rs`).
///
/// # Errors
///
/// [`Error::Lost`] if the log cannot be read.
pub fn compare_moves(report: &mut Report, parsed: &Scenario, likeness: Likeness, log: &[u8]) -> Result<(), Error> {
    let logged = logged(log)?;
    let single = parsed.options.cpus == 1;
    let session = rehearse::session(&likeness.scenario(parsed), likeness.policy);
    let mut session = Some(session).filter(|_| parsed.vcpus.is_empty());
    for (line, step) in parsed.lines.iter().zip(&mut report.steps) {
        let Some(logged) = logged.get(&line.number) else { break };
        step.moves = logged.moves.iter().map(ToString::to_string).collect();
        let Some(before) = session.take() else { continue };
        if !single {
            let Some(told) = perform(&rested(&before), line, 0, false, 0) else { continue };
            told.excuse(line, step);
            session = Some(told.after);
            continue;
        }
        let comparable = step.observed.is_some() && is_comparable(line, logged);
        let Some(told) = predict(&before, line, logged, comparable) else { continue };
        if comparable {
            report.moves += logged.moves.len() as u64;
            told.judge(line, logged, step);
        }
        session = Some(told.after);
    }
    let steps = &report.steps;
    report.ok = steps.iter().all(|step| step.ok != Some(false)) && steps.iter().any(|step| step.ok == Some(true));
    Ok(())
}

/// How often one access of the kernel raises #DB depends on its copy routine.
fn is_comparable(line: &Line, logged: &Logged) -> bool {
    !logged.shared && !matches!(line.event, Event::TaskAccess { kernel: true, .. })
}

fn list(moves: &[Mov]) -> String {
    let moves: Vec<_> = moves.iter().map(ToString::to_string).collect();
    if moves.is_empty() { "no access to a debug register".to_owned() } else { moves.join("; ") }
}

/// By line: what the log has.
fn logged(log: &[u8]) -> Result<HashMap<u32, Logged>, Error> {
    let path = Path::new("the log of the emulated machine");
    let mut lines: HashMap<u32, Logged> = HashMap::new();
    let mut current = 0;
    for step in steps::parse(path, log).map_err(|error| Error::Lost(error.to_string()))? {
        let here = step.cpu == ONLY && step.is_kernel();
        let mov = match step.what {
            What::Mark { name: MarkName::Line, rdi: BLIND } => {
                lines.remove(&current);
                break;
            }
            What::Mark { name: MarkName::Line, rdi: SHARED } => {
                lines.entry(current).or_default().shared = true;
                continue;
            }
            What::Mark { name: MarkName::Line, rdi } => {
                current = rdi as u32;
                lines.entry(current).or_default();
                continue;
            }
            What::Mark { name: MarkName::TaskSchedOut, .. } if here => {
                lines.entry(current).or_default().switched = true;
                continue;
            }
            What::Write { dr, value } if here => Mov { dr, value: Some(value) },
            What::Read { dr } if here => Mov { dr, value: None },
            _ => continue,
        };
        lines.entry(current).or_default().moves.push(mov);
    }
    Ok(lines)
}

/// How often a task may be switched out and in again for one line: it sleeps in a call (opening a CPU-wide breakpoint
/// waits for a grace period, `bp_constraints_lock`), stands still for its tracer, or somebody preempts it.
const AWAY: usize = 2;

/// What the model says of a line.
#[derive(Debug)]
struct Told {
    outcome: Outcome,
    moves: Vec<Mov>,
    after: Session,
}

impl Told {
    /// Lets a line fail whose instructions are others.
    fn judge(&self, line: &Line, logged: &Logged, step: &mut StepReport) {
        if logged.moves != self.moves {
            if step.ok != Some(false) {
                step.ok = Some(false);
                step.expected = Some(list(&self.moves));
                step.observed = Some(list(&logged.moves));
            }
            return;
        }
        self.excuse(line, step);
    }

    /// A line that failed by itself does not if the model says so now: it knows of the switches, which make an emulator
    /// forget.
    fn excuse(&self, line: &Line, step: &mut StepReport) {
        if step.ok == Some(false)
            && let Some(expected) = rehearse::expectation(&line.event, &self.outcome, &self.after)
            && let Some(observed) = &step.observed
            && agree(observed, &expected)
        {
            step.ok = Some(true);
            step.expected = Some(expected);
        }
    }
}

/// Whether an outcome, as a report shows it, is another: names in any order, and of a SIGTRAP only that.
fn agree(observed: &str, expected: &str) -> bool {
    if expected.starts_with("sigtrap") {
        return observed.find("sigtrap").is_some_and(|at| observed[at..] == *expected);
    }
    let sorted = |text: &str| {
        let mut words: Vec<_> = text.split(' ').map(str::to_owned).collect();
        words.sort_unstable();
        words
    };
    sorted(observed) == sorted(expected)
}

/// What the model says of a line. If the log has switches, the model is told of them: the task that runs was away before
/// the event, during it, or after it, whatever fits the log. If it made room for others, it was away during it.
fn predict(before: &Session, line: &Line, logged: &Logged, comparable: bool) -> Option<Told> {
    let told = perform(before, line, 0, logged.shared, 0)?;
    if !logged.switched || !comparable || told.moves == logged.moves {
        return Some(told);
    }
    let times =
        (0..=AWAY).flat_map(|late| (0..=AWAY).flat_map(move |early| [(early, false, late), (early, true, late)]));
    let mut others = times.filter_map(|(early, during, late)| perform(before, line, early, during, late));
    if let Some(other) = others.find(|other| other.moves == logged.moves) {
        return Some(other);
    }
    // One instruction raises #DB twice, and a tracer looks in between.
    let away = away(before)?;
    let stood_still = matches!(line.event, Event::TaskAccess { .. }) && fits(&logged.moves, &told.moves, &away);
    Some(if stood_still { Told { moves: logged.moves.clone(), ..told } } else { told })
}

/// Whether moves are those of an event, with those of somebody who is away in between.
fn fits(logged: &[Mov], event: &[Mov], away: &[Mov]) -> bool {
    match (logged, event) {
        ([], _) => event.is_empty(),
        ([first, rest @ ..], [next, others @ ..]) if first == next && fits(rest, others, away) => true,
        _ => !away.is_empty() && logged.strip_prefix(away).is_some_and(|rest| fits(rest, event, away)),
    }
}

/// The moves of whoever runs, away once.
fn away(before: &Session) -> Option<Vec<Mov>> {
    let mut session = before.clone();
    let mut watch = Watch::default();
    let running = session.machine.running(FIRST);
    for to in [TaskId::IDLE, running] {
        session.perform(&Event::SchedSwitch(FIRST, to), &mut watch).ok()?;
    }
    Some(watch.moves)
}

/// A session after everybody who runs has slept.
fn rested(before: &Session) -> Session {
    let mut session = before.clone();
    for cpu in (0..session.machine.options.cpus).map(CpuId::from) {
        let running = session.machine.running(cpu);
        for to in [TaskId::IDLE, running] {
            // A switch is never refused.
            let _ = session.perform(&Event::SchedSwitch(cpu, to), &mut ());
        }
    }
    session
}

/// Performs a line in a copy of a session, with the running task away so often before, during and after it.
fn perform(before: &Session, line: &Line, early: usize, during: bool, late: usize) -> Option<Told> {
    let mut session = before.clone();
    let mut watch = Watch::default();
    let switch = |session: &mut Session, watch: &mut Watch, to| {
        session.perform(&Event::SchedSwitch(FIRST, to), watch).ok().map(drop)
    };
    let running = session.machine.running(FIRST);
    // Whoever a switch brings in stays.
    let during = during && !matches!(line.event, Event::SchedSwitch(..));
    for _ in 0..early {
        switch(&mut session, &mut watch, TaskId::IDLE)?;
        switch(&mut session, &mut watch, running)?;
    }
    if during {
        switch(&mut session, &mut watch, TaskId::IDLE)?;
    }
    let outcome = session.perform(&line.event, &mut watch).ok()??;
    if during {
        switch(&mut session, &mut watch, running)?;
    }
    let running = session.machine.running(FIRST);
    for _ in 0..late {
        switch(&mut session, &mut watch, TaskId::IDLE)?;
        switch(&mut session, &mut watch, running)?;
    }
    if let (Some(Expectation::Bind(symbol)), Outcome::Bound(id)) = (&line.expectation, &outcome) {
        session.bind(*symbol, *id);
    }
    Some(Told { outcome, moves: watch.moves, after: session })
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
