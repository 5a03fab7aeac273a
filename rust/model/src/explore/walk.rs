//! Random walks, for scopes that are too large to see all of: what they find is made as short as it gets.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};

use super::moves::{moves, nmis, races};
use super::scope::{Kind, Scope};
use super::search::{Progress, Stop, Verdict, Violation, bound_by};
use crate::CounterId;
use crate::event::{Event, Nmi};
use crate::laws::{Breach, Judged, judge};
use crate::machine::Machine;
use crate::policy::Policy;
use crate::scenario::{At, Scenario, Told};

/// How many events a walk has.
const LENGTH: usize = 60;

/// An event with its interruption.
type Pace = (Event, Option<(At, Event)>);

/// Walks so many times, determined by a seed.
///
/// Never says that a policy is safe: [`Verdict::stopped`] is set unless something was found.
pub fn walk(
    policy: Policy,
    scope: &Scope,
    walks: u64,
    seed: u64,
    stop: &AtomicBool,
    going: &mut dyn FnMut(Progress) -> bool,
) -> Verdict {
    let mut verdict = Verdict {
        states: 0,
        transitions: 0,
        depth: 0,
        reached: scope.kinds.iter().map(|kind| (kind.name(), 0)).collect(),
        state_bytes: 0,
        bytes: 0,
        violation: None,
        stopped: Some(Stop::Walked),
    };
    for number in 0..walks {
        if stop.load(Ordering::Relaxed) {
            verdict.stopped = Some(Stop::Asked);
            break;
        }
        let mut random = fastrand::Rng::with_seed(seed.wrapping_add(number));
        let mut machine = scope.machine(policy);
        let mut way: Vec<Pace> = Vec::new();
        while way.len() < LENGTH {
            let Some((kind, pace, breach)) = pace(scope, &mut machine, &mut random) else { break };
            verdict.transitions += 1;
            *verdict.reached.entry(kind.name()).or_default() += 1;
            way.push(pace);
            verdict.depth = verdict.depth.max(way.len() as u32);
            if let Some(breach) = breach {
                let (way, breach) = shrink(policy, scope, way, breach);
                let scenario = tell(policy, scope, way);
                verdict.violation = Some(Violation { law: breach.law, why: breach.why, scenario });
                verdict.stopped = None;
                return verdict;
            }
        }
        if number % 64 == 0 {
            let transitions = verdict.transitions;
            if !going(Progress { states: number, queue: walks - number, transitions, depth: verdict.depth }) {
                verdict.stopped = Some(Stop::Asked);
                break;
            }
        }
    }
    verdict
}

/// Goes on by a random event, interrupted now and then.
fn pace(scope: &Scope, machine: &mut Machine, random: &mut fastrand::Rng) -> Option<(Kind, Pace, Option<Breach>)> {
    for _ in 0..32 {
        let all = moves(machine, scope);
        let (kind, event) = all.get(random.usize(0..all.len().max(1)))?.clone();
        let interruptible = !matches!(event, Event::Nmi(..) | Event::Kgdb(..));
        let inside = if interruptible { inside(scope, machine, random) } else { None };
        let mut next = machine.clone();
        let judged = judge(&mut next, &event, inside.as_ref().map(|(at, event)| (*at, event)), scope.laws);
        let Ok(Judged { breach, interrupted, .. }) = judged else { continue };
        if inside.is_some() && !interrupted {
            continue;
        }
        *machine = next;
        return Some((kind, (event, inside), breach));
    }
    None
}

fn inside(scope: &Scope, machine: &Machine, random: &mut fastrand::Rng) -> Option<(At, Event)> {
    if !scope.nmis.any() && !scope.races || random.bool() {
        return None;
    }
    let cpu = crate::CpuId::from(random.usize(0..scope.options.cpus));
    let mut all: Vec<Event> = nmis(machine, scope, cpu).into_iter().map(|nmi| Event::Nmi(cpu, nmi)).collect();
    if scope.nmis.plain {
        all.push(Event::Nmi(cpu, Nmi::Plain));
    }
    if scope.races {
        all.extend(races(machine, scope, cpu));
    }
    let event = all.get(random.usize(0..all.len().max(1)))?.clone();
    Some((At::Step(random.usize(1..16)), event))
}

/// The law that a way breaks, and how many of its events it takes; events that make no sense any more are left out.
fn retrace(policy: Policy, scope: &Scope, way: &[Pace]) -> (Vec<Pace>, Option<Breach>) {
    let mut machine = scope.machine(policy);
    let mut gone = Vec::new();
    for (event, inside) in way {
        let events = [Some(event), inside.as_ref().map(|(_, inside)| inside)];
        if !events.into_iter().flatten().all(|event| names_known(&machine, event)) {
            continue;
        }
        let mut next = machine.clone();
        let judged = judge(&mut next, event, inside.as_ref().map(|(at, event)| (*at, event)), scope.laws);
        let Ok(Judged { breach, interrupted, .. }) = judged else { continue };
        if inside.is_some() && !interrupted {
            continue;
        }
        machine = next;
        gone.push((event.clone(), inside.clone()));
        if breach.is_some() {
            return (gone, breach);
        }
    }
    (gone, None)
}

/// Whether there has been every counter that an event names: its open may have been left out.
fn names_known(machine: &Machine, event: &Event) -> bool {
    let (count, known) = (machine.counters().count(), Cell::new(true));
    let look = |id: CounterId| {
        known.set(known.get() && id.index() < count);
        id
    };
    let _ = event.renamed(&look, &|address| address);
    known.get()
}

/// Leaves out what can be left out, the longest pieces first, as long as the same law is broken.
fn shrink(policy: Policy, scope: &Scope, mut way: Vec<Pace>, mut breach: Breach) -> (Vec<Pace>, Breach) {
    let mut size = way.len() / 2;
    while size > 0 {
        let mut at = 0;
        while at + size <= way.len() {
            let mut shorter = way.clone();
            shorter.drain(at..at + size);
            match retrace(policy, scope, &shorter) {
                (gone, Some(still)) if still.law == breach.law && gone.len() < way.len() => {
                    (way, breach) = (gone, still);
                }
                _ => at += 1,
            }
        }
        size /= 2;
    }
    for at in 0..way.len() {
        let mut quieter = way.clone();
        if quieter[at].1.take().is_some()
            && let (gone, Some(still)) = retrace(policy, scope, &quieter)
            && still.law == breach.law
            && gone.len() <= way.len()
        {
            (way, breach) = (gone, still);
            if at + 1 >= way.len() {
                break;
            }
        }
    }
    (way, breach)
}

fn tell(policy: Policy, scope: &Scope, way: Vec<Pace>) -> Scenario {
    let mut machine = scope.machine(policy);
    let mut symbols: Vec<(CounterId, CounterId)> = Vec::new();
    let mut lines = Vec::new();
    for (event, inside) in way {
        let judged = judge(&mut machine, &event, inside.as_ref().map(|(at, event)| (*at, event)), scope.laws);
        let symbol = |id: CounterId| symbols.iter().find(|&&(of, _)| of == id).map_or(id, |&(_, symbol)| symbol);
        let event = event.renamed(&symbol, &|address| address);
        let interruption = inside.map(|(at, inside)| (at, inside.renamed(&symbol, &|address| address)));
        let bound = judged.ok().and_then(|judged| bound_by(&judged.outcome));
        let binds = bound.map(|id| {
            let symbol = CounterId(symbols.len() as u32);
            symbols.push((id, symbol));
            symbol
        });
        lines.push(Told { event, interruption, binds });
    }
    let tasks: Vec<_> = scope.all_tasks().map(|task| scope.home(task)).collect();
    Scenario::told(scope.options, policy, scope.laws, &tasks, scope.vcpus, lines)
}
