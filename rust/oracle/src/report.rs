//! What was observed of a scenario, beside what it expects.

use debugreg::Dr;
use debugreg_model::scenario::{self, Expectation, Line, Scenario, Session, show_outcome};
use debugreg_model::{CounterId, Errno, Event, Holder, Outcome, Policy, Processor};

use crate::{Error, Going, Likeness, World, rehearse};

/// What came of a line on the running kernel.
#[derive(Clone, PartialEq, Debug)]
#[cfg_attr(not(all(target_os = "linux", target_arch = "x86_64")), allow(dead_code, reason = "nothing is seen there"))]
pub(crate) enum Seen {
    /// As the model says it.
    Outcome(Outcome),
    /// Who has the slots of a CPU, in their order; where there are holes does not show.
    Order(Vec<CounterId>),
    /// SIGTRAP came because an event had asked for it, and nobody read DR6; whom the access hit.
    Signalled(Vec<CounterId>),
    /// SIGTRAP killed the task, and nobody could read its DR6; whom it hit besides.
    Killed(Vec<CounterId>),
    /// An errno that the model does not know.
    Errno(i32),
    /// As the model says it, but for some registers.
    Without(Outcome, Vec<Dr>),
    /// Something that the model has no word for.
    Strange(String),
    /// Nothing, and why.
    Unobserved(String),
}

/// What came of a scenario.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// Whether no expectation failed and one held.
    pub ok: bool,
    /// Line by line.
    pub steps: Vec<StepReport>,
    /// How many MOV to and from debug registers were compared with the model's.
    pub moves: u64,
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
    /// The outcome, as an expectation would write it; `None` if it cannot be observed.
    pub observed: Option<String>,
    /// Whether the expectation held; `None` without one, and if that cannot be observed.
    pub ok: Option<bool>,
    /// Why it cannot be observed.
    pub unobserved: Option<String>,
    /// Each MOV to or from a debug register that the kernel executed for it, if the machine shows them.
    pub moves: Vec<String>,
}

/// Performs a scenario on the running kernel. `hazardous` ones, which can harm it, only if the caller says so.
///
/// # Errors
///
/// A mistake in the file, and everything that keeps the world from going on.
pub fn run(world: &mut World, parsed: &Scenario, hazardous: bool, going: &mut Going<'_>) -> Result<Report, Error> {
    let likeness = world.likeness;
    if let Some(why) = likeness.stranger(parsed) {
        let policy = parsed.policies.first().and_then(|name| Policy::parse(name).ok());
        let policy = policy.unwrap_or(likeness.policy);
        let model = scenario::run(parsed, policy, None, false)?;
        return Ok(report(parsed, policy, &model, &vec![Seen::Unobserved(why); parsed.lines.len()]));
    }
    // The model finds the mistakes that show only when the file runs.
    let model = likeness.run(parsed)?;
    let mut seen = world.perform(parsed, hazardous, going)?;
    let faulty = likeness.run(&likeness.scenario(parsed))?;
    if likeness.processor == Processor::Tcg {
        copies_are_unobserved(parsed, likeness, &faulty, &mut seen)?;
    }
    for ((wanted, known), seen) in model.steps.iter().zip(&faulty.steps).zip(&mut seen) {
        if wanted.observed != known.observed && !matches!(seen, Seen::Unobserved(_)) {
            let known = &known.observed;
            *seen = Seen::Unobserved(format!("the emulator is known to be wrong about it, and to say {known}"));
        }
    }
    Ok(report(parsed, likeness.policy, &model, &seen))
}

/// Which of several breakpoints an emulator reports of a copy that the kernel makes depends on its copy routine, which
/// may be one repeated instruction (6.1) or many (6.12). Whoever is counted differs from then on.
fn copies_are_unobserved(
    parsed: &Scenario,
    likeness: Likeness,
    faulty: &scenario::Report,
    seen: &mut [Seen],
) -> Result<(), Error> {
    let mut real = parsed.clone();
    real.options.processor = Processor::Real;
    let mut counts_differ = false;
    let steps = likeness.run(&real)?.steps.into_iter().zip(&faulty.steps);
    for (((right, known), line), seen) in steps.zip(&parsed.lines).zip(seen) {
        let copies = matches!(line.event, Event::TaskAccess { kernel: true, .. }) && right.observed != known.observed;
        counts_differ |= copies;
        if copies || counts_differ && matches!(line.event, Event::Count(_)) {
            let why = "which breakpoints a copy of the kernel's reports depends on its routine";
            *seen = Seen::Unobserved(why.to_owned());
        }
    }
    Ok(())
}

fn report(parsed: &Scenario, policy: Policy, model: &scenario::Report, seen: &[Seen]) -> Report {
    let session = rehearse::session(parsed, policy);
    let steps = parsed.lines.iter().zip(&model.steps).zip(seen).map(|((line, told), seen)| {
        let ok = judge(line, seen, &session);
        let (observed, unobserved) = match seen {
            Seen::Unobserved(why) => (None, Some(why.clone())),
            seen => (Some(show(seen, &session)), None),
        };
        let expected = told.expected.clone();
        StepReport {
            line: line.number,
            event: told.event.clone(),
            expected,
            observed,
            ok,
            unobserved,
            moves: Vec::new(),
        }
    });
    let steps: Vec<_> = steps.collect();
    let ok = steps.iter().all(|step| step.ok != Some(false)) && steps.iter().any(|step| step.ok == Some(true));
    Report { ok, steps, moves: 0 }
}

/// Whether a line's expectation holds.
fn judge(line: &Line, seen: &Seen, session: &Session) -> Option<bool> {
    let expectation = line.expectation.as_ref()?;
    let symbol = |id: CounterId| (id.index() < session.names.counters()).then_some(id);
    match (seen, expectation) {
        (Seen::Unobserved(_), _) => None,
        (Seen::Outcome(outcome), _) => Some(expectation.holds(outcome, symbol)),
        (Seen::Without(outcome, unlike), _) => {
            let rest = without(expectation, unlike);
            // Of registers there may be none left.
            (rest != Expectation::Registers(Vec::new())).then(|| rest.holds(outcome, symbol))
        }
        (Seen::Errno(_), _) => Some(*expectation == Expectation::Refused),
        (Seen::Signalled(_), Expectation::Sigtrap(_)) => Some(true),
        (Seen::Signalled(counters), _) => {
            let outcome = Outcome::Hits { counters: counters.clone(), kgdb: false, sigtrap: Some(0) };
            Some(expectation.holds(&outcome, symbol))
        }
        (Seen::Killed(_), _) => Some(matches!(expectation, Expectation::Sigtrap(_))),
        (Seen::Order(order), Expectation::Slots(fields)) => {
            let mut slots = fields.clone();
            slots.sort_by_key(|&(slot, _)| slot);
            let expected: Vec<_> = slots
                .iter()
                .filter_map(|&(_, holder)| match holder {
                    Holder::Counter(id) => Some(id),
                    _ => None,
                })
                .collect();
            // A field that is free may be anybody's.
            if slots.len() == 4 || expected.len() == order.len() {
                Some(expected == *order)
            } else {
                let mut rest = order.iter();
                let possible = expected.iter().all(|id| rest.any(|other| other == id));
                if possible { None } else { Some(false) }
            }
        }
        (Seen::Order(_) | Seen::Strange(_), _) => Some(false),
    }
}

/// What an expectation says of other registers than these.
fn without(expectation: &Expectation, unlike: &[Dr]) -> Expectation {
    match expectation.clone() {
        Expectation::ExitDebug { dr6, dr7 } => Expectation::ExitDebug {
            dr6: dr6.filter(|_| !unlike.contains(&Dr::Status)),
            dr7: dr7.filter(|_| !unlike.contains(&Dr::Control)),
        },
        Expectation::Registers(mut fields) => {
            fields.retain(|&(number, _)| Dr::from_number(number).is_none_or(|dr| !unlike.contains(&dr)));
            Expectation::Registers(fields)
        }
        other => other,
    }
}

fn show(seen: &Seen, session: &Session) -> String {
    let names = &session.names;
    let name =
        |id: &CounterId| if id.index() < names.counters() { names.counter(*id).to_owned() } else { "?".to_owned() };
    let hits = |counters: &[CounterId], then: Option<String>| {
        let hit: Vec<_> = counters.iter().map(name).collect();
        let hit = (!hit.is_empty()).then(|| format!("hit {}", hit.join(" ")));
        let parts: Vec<_> = hit.into_iter().chain(then).collect();
        if parts.is_empty() { "nothing".to_owned() } else { parts.join(" ") }
    };
    match seen {
        Seen::Outcome(outcome) => match outcome {
            Outcome::Ok => "ok".to_owned(),
            Outcome::Value(value) if *value < 10 => value.to_string(),
            Outcome::Value(value) => format!("{value:#x}"),
            Outcome::Bound(id) => name(id),
            Outcome::Refused(refusal) => refusal.errno.map_or_else(|| "refused".to_owned(), Errno::name),
            Outcome::Hits { counters, sigtrap, .. } => {
                hits(counters, sigtrap.map(|dr6| format!("sigtrap dr6={dr6:#010x}")))
            }
            Outcome::Slots(slots) => {
                let slots = (0..).zip(slots).map(|(slot, holder)| match holder {
                    Holder::Counter(id) => format!("s{slot}={}", name(id)),
                    Holder::Kgdb => format!("s{slot}=kgdb"),
                    Holder::Nobody => format!("s{slot}=none"),
                });
                slots.collect::<Vec<_>>().join(" ")
            }
            // These name no counter.
            other => show_outcome(other, session),
        },
        Seen::Without(outcome, unlike) => {
            let fields: Vec<_> = unlike.iter().map(|dr| format!("dr{}=", dr.number())).collect();
            let text = show_outcome(outcome, session);
            let rest = text.split(' ').filter(|word| !fields.iter().any(|field| word.starts_with(field)));
            rest.collect::<Vec<_>>().join(" ")
        }
        Seen::Strange(what) => what.clone(),
        Seen::Order(order) => format!("in this order: {}", order.iter().map(name).collect::<Vec<_>>().join(" ")),
        Seen::Signalled(counters) | Seen::Killed(counters) => hits(counters, Some("sigtrap".to_owned())),
        Seen::Errno(errno) => format!("errno {errno}"),
        Seen::Unobserved(_) => "unobserved".to_owned(),
    }
}
