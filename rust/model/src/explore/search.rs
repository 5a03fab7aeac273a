//! Breadth-first search.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use rayon::prelude::*;

use super::canon::canon;
use super::moves::{self, Move};
use super::scope::{Kind, Scope};
use super::store::{States, Store};
use super::trail::{Trail, tell};
use crate::event::{Event, Nmi, Outcome};
use crate::laws::{Breach, Judged, Law, judge};
use crate::machine::Machine;
use crate::policy::Policy;
use crate::scenario::{At, Scenario};
use crate::step::{Mark, Probe, Step};
use crate::{CounterId, CpuId, laws};

/// What came of an exploration.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// How many states were reached.
    pub states: u64,
    /// How many events were performed, each with its interruption.
    pub transitions: u64,
    /// How many events the farthest state is from the start.
    pub depth: u32,
    /// By kind of events: how many.
    pub reached: BTreeMap<&'static str, u64>,
    /// Bytes that a state takes, with its link to the one before.
    pub state_bytes: usize,
    /// Bytes in all.
    pub bytes: usize,
    /// What breaks a law, with the fewest events.
    pub violation: Option<Violation>,
    /// Why it ended before everything was seen.
    pub stopped: Option<Stop>,
}

impl Verdict {
    /// Safe within the scope; `None` if that is not known.
    ///
    /// A kind of events that never happened makes it not safe: of a policy that does nothing, nothing can be said.
    pub fn is_safe(&self) -> Option<bool> {
        match (&self.violation, self.stopped) {
            (Some(_), _) => Some(false),
            (None, Some(_)) => None,
            (None, None) => Some(self.reached.values().all(|&count| count > 0)),
        }
    }
}

/// A law is broken.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Which one.
    pub law: Law,
    /// What is there, and what should be.
    pub why: String,
    /// How it comes to that.
    pub scenario: Scenario,
}

/// Why an exploration ended early.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Stop {
    /// Somebody asked for it.
    Asked,
    /// It walked at random, as often as it was to: not everything was seen.
    Walked,
    /// Its memory would have exceeded the limit.
    Memory,
}

/// How far it is.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Progress {
    /// States so far.
    pub states: u64,
    /// States that wait.
    pub queue: u64,
    /// Events so far.
    pub transitions: u64,
    /// Events from the start.
    pub depth: u32,
}

/// How many states are explored before what they lead to is put in order.
const BLOCK: usize = 16 * 1024;
/// How many of them one thread takes at a time.
const CHUNK: usize = 64;

/// Explores a policy within a scope, on so many threads; 0 is one for each core.
///
/// `going` is called between blocks of states, and ends it with `false`; `stop` ends it at once. It ends as well before it
/// takes more than `memory` bytes.
///
/// # Panics
///
/// If the threads cannot be started.
pub fn check(
    policy: Policy,
    scope: &Scope,
    threads: usize,
    memory: usize,
    stop: &AtomicBool,
    going: &mut dyn FnMut(Progress) -> bool,
) -> Verdict {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads can be started");
    let search = Search { policy, scope, store: Store::new(scope), stop, transitions: AtomicU64::new(0) };
    let mut start = scope.machine(policy);
    let mut states = States::new(search.store.width());
    let mut verdict = Verdict {
        states: 0,
        transitions: 0,
        depth: 0,
        reached: scope.kinds.iter().map(|kind| (kind.name(), 0)).collect(),
        state_bytes: search.store.width() * 4 + 8,
        bytes: 0,
        violation: None,
        stopped: None,
    };
    if scope.nmis.any() {
        verdict.reached.insert(Kind::Nmi.name(), 0);
    }
    canon(&mut start, scope);
    let mut row = Vec::new();
    search.store.pack(&start, &mut row);
    states.add(&row, 0, 0);
    let (mut level, mut depth) = (0..1, 0);
    let mut told = Instant::now();
    'levels: while !level.is_empty() {
        verdict.depth = depth;
        let mut at = level.start;
        while at < level.end {
            let block: Vec<usize> = (at..level.end.min(at + BLOCK)).collect();
            at += block.len();
            let chunks: Vec<Chunk> =
                pool.install(|| block.par_chunks(CHUNK).map(|chunk| search.expand(chunk, &states)).collect());
            for chunk in &chunks {
                for (kind, count) in &chunk.reached {
                    *verdict.reached.entry(kind.name()).or_default() += count;
                }
            }
            if stop.load(Ordering::Relaxed) {
                verdict.stopped = Some(Stop::Asked);
                break 'levels;
            }
            if let Some((from, by, breach)) = chunks.iter().find_map(|chunk| chunk.breach.clone()) {
                verdict.violation = Some(search.violation(&states, from, by, breach));
                break 'levels;
            }
            for chunk in chunks {
                for (found, row) in chunk.found.iter().zip(chunk.rows.chunks(search.store.width())) {
                    states.add(row, found.0, found.1);
                }
            }
            verdict.bytes = states.bytes() + search.store.bytes();
            if verdict.bytes > memory {
                verdict.stopped = Some(Stop::Memory);
                break 'levels;
            }
            let progress = Progress {
                states: states.len() as u64,
                queue: (states.len() - at) as u64,
                transitions: search.transitions.load(Ordering::Relaxed),
                depth,
            };
            if told.elapsed().as_millis() >= 50 {
                told = Instant::now();
                if !going(progress) {
                    verdict.stopped = Some(Stop::Asked);
                    break 'levels;
                }
            }
        }
        level = level.end..states.len();
        depth += 1;
    }
    verdict.states = states.len() as u64;
    verdict.transitions = search.transitions.load(Ordering::Relaxed);
    verdict.bytes = states.bytes() + search.store.bytes();
    verdict
}

pub(super) struct Search<'a> {
    pub(super) policy: Policy,
    pub(super) scope: &'a Scope,
    store: Store,
    stop: &'a AtomicBool,
    transitions: AtomicU64,
}

/// What some states lead to.
#[derive(Default)]
struct Chunk {
    /// Where from, and by which move.
    found: Vec<(usize, u32)>,
    /// The state that it leads to.
    rows: Vec<u32>,
    reached: BTreeMap<Kind, u64>,
    breach: Option<(usize, u32, Breach)>,
}

/// An event with its interruption, and what it leads to.
pub(super) struct Successor {
    pub(super) kind: Kind,
    pub(super) event: Event,
    pub(super) interruption: Option<(usize, Event)>,
    pub(super) machine: Machine,
    /// The counter that it has opened.
    pub(super) bound: Option<CounterId>,
    pub(super) breach: Option<Breach>,
}

impl Search<'_> {
    fn expand(&self, chunk: &[usize], states: &States) -> Chunk {
        let mut found = Chunk::default();
        let width = self.store.width();
        for &state in chunk {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            let machine = self.store.unpack(states.row(state), self.scope, self.policy);
            let mut by = 0;
            let mut count = 0;
            successors(self.scope, &machine, &mut |successor, trials| {
                count += 1 + trials;
                *found.reached.entry(successor.kind).or_default() += 1;
                if trials > 0 {
                    *found.reached.entry(Kind::Nmi).or_default() += trials;
                }
                if let Some(breach) = successor.breach {
                    found.breach = Some((state, by, breach));
                    return false;
                }
                let mut next = successor.machine;
                canon(&mut next, self.scope);
                let start = found.rows.len();
                self.store.pack(&next, &mut found.rows);
                if states.knows(&found.rows[start..]) {
                    found.rows.truncate(start);
                } else {
                    debug_assert_eq!(found.rows.len(), start + width);
                    found.found.push((state, by));
                }
                by += 1;
                true
            });
            self.transitions.fetch_add(count, Ordering::Relaxed);
            if found.breach.is_some() {
                break;
            }
        }
        found
    }

    /// The way to a state, and the move that breaks a law there.
    fn violation(&self, states: &States, from: usize, by: u32, breach: Breach) -> Violation {
        let mut links = vec![by];
        let mut state = from;
        while state != 0 {
            let (before, by) = states.link(state);
            links.push(by);
            state = before;
        }
        links.reverse();
        let mut trail = Trail::new(self.scope, self.policy);
        for by in links {
            let mut nth = 0;
            let mut step = None;
            successors(self.scope, trail.machine(), &mut |successor, _| {
                if nth == by {
                    step = Some(successor);
                }
                nth += 1;
                step.is_none()
            });
            trail.push(step.expect("it was there"));
        }
        Violation { law: breach.law, why: breach.why, scenario: tell(trail) }
    }
}

/// Performs everything that can happen in a state, in a fixed order. `each` gets what it leads to and how many NMIs were
/// tried inside without a difference, and ends it with `false`.
pub(super) fn successors(scope: &Scope, machine: &Machine, each: &mut impl FnMut(Successor, u64) -> bool) {
    for (kind, event) in moves::moves(machine, scope) {
        if !perform(scope, machine, &(kind, event), each) {
            return;
        }
    }
}

fn perform(
    scope: &Scope,
    machine: &Machine,
    (kind, event): &Move,
    each: &mut impl FnMut(Successor, u64) -> bool,
) -> bool {
    let mut next = machine.clone();
    // An NMI does not interrupt an NMI, and who is in kgdb is not interrupted by what calls it.
    let interruptible = !matches!(event, Event::Nmi(..) | Event::Kgdb(..));
    let mut trial = Trial {
        witness: laws::Witness::new(machine, event, scope.laws),
        nmi: scope.nmis.plain && interruptible,
        at: Vec::new(),
        differs: Vec::new(),
        trials: 0,
    };
    let Ok(outcome) = next.apply(event, &mut trial) else { return true };
    let Trial { witness, at, differs, trials, .. } = trial;
    let Ok(Judged { outcome, breach, .. }) = witness.conclude(&next, event, outcome) else { return true };
    let bound = bound_by(&outcome);
    let plain = Successor { kind: *kind, event: event.clone(), interruption: None, machine: next, bound, breach };
    if !each(plain, trials) {
        return false;
    }
    if !interruptible {
        return true;
    }
    let interrupted = |step: usize, inside: &Event, each: &mut dyn FnMut(Successor) -> bool| {
        let mut next = machine.clone();
        match judge(&mut next, event, Some((At::Step(step), inside)), scope.laws) {
            Ok(Judged { outcome, breach, interrupted: true, .. }) => each(Successor {
                kind: *kind,
                event: event.clone(),
                interruption: Some((step, inside.clone())),
                machine: next,
                bound: bound_by(&outcome),
                breach,
            }),
            _ => true,
        }
    };
    for (step, &cpu) in (1..).zip(&at) {
        if differs.contains(&step) && !interrupted(step, &Event::Nmi(cpu, Nmi::Plain), &mut |next| each(next, 0)) {
            return false;
        }
        if scope.nmis.kgdb || scope.nmis.announce {
            for nmi in moves::nmis(machine, scope, cpu) {
                if !interrupted(step, &Event::Nmi(cpu, nmi), &mut |next| each(next, 0)) {
                    return false;
                }
            }
        }
        if scope.races {
            for event in moves::races(machine, scope, cpu) {
                if !interrupted(step, &event, &mut |next| each(next, 0)) {
                    return false;
                }
            }
        }
    }
    true
}

pub(super) fn bound_by(outcome: &Outcome) -> Option<CounterId> {
    if let Outcome::Bound(id) = *outcome { Some(id) } else { None }
}

/// Performs an event as it is, and tries before each step whether an NMI that does nothing would change anything there: as
/// a rule it finds everything as it was when it returns, and what comes after it is then the same.
struct Trial {
    witness: laws::Witness,
    nmi: bool,
    /// By step: on which CPU.
    at: Vec<CpuId>,
    /// The steps before which it changes something.
    differs: Vec<usize>,
    trials: u64,
}

impl Probe for Trial {
    fn before(&mut self, machine: &mut Machine, cpu: CpuId) {
        self.witness.before(machine, cpu);
        self.at.push(cpu);
        if !self.nmi || machine.cpu(cpu).guest.is_some() {
            return;
        }
        let before = machine.cpu(cpu).clone();
        let (clock, mutant) = (machine.clock, machine.mutant);
        let returned = self.witness.try_inside(machine, &Event::Nmi(cpu, Nmi::Plain));
        self.trials += 1;
        let after = &mut machine.cpus[cpu.index()];
        after.bank.cost = before.bank.cost;
        if !returned || *after != before {
            self.differs.push(self.at.len());
        }
        *after = before;
        (machine.clock, machine.mutant) = (clock, mutant);
    }

    fn before_entry(&mut self, machine: &mut Machine, cpu: CpuId) {
        self.witness.before_entry(machine, cpu);
    }

    fn step(&mut self, cpu: CpuId, step: Step) {
        self.witness.step(cpu, step);
    }

    fn mark(&mut self, machine: &Machine, cpu: CpuId, mark: Mark) {
        self.witness.mark(machine, cpu, mark);
    }
}
