//! Breadth-first search.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use debugreg::Bank;
use rayon::prelude::*;

use super::canon::canon;
use super::moves;
use super::scope::{Kind, Scope};
use super::store::{States, Store};
use super::trail::{Trail, tell};
use super::worker::{Found, Worker};
use crate::event::{Event, Nmi, Outcome};
use crate::laws::{Breach, Judged, Law, judge_transition};
use crate::machine::{Cpu, Machine};
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
    /// Bytes that the states take, and their parts; what threads remember on the way, each for itself, comes on top.
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
    let mut start = scope.machine(policy);
    canon(&mut start, scope);
    let store = Store::new(&start);
    let workers = (0..pool.current_num_threads()).map(|_| Mutex::new(Worker::new(scope, &store, &start)));
    let search = Search { policy, scope, workers: workers.collect(), stop, memory };
    let mut states = States::new(store.shape);
    let mut counts = Counts::default();
    let mut verdict = Verdict {
        states: 0,
        transitions: 0,
        depth: 0,
        reached: BTreeMap::new(),
        state_bytes: store.shape.width() * 4 + 8,
        bytes: 0,
        violation: None,
        stopped: None,
    };
    states.add(&store.row(&start), 0, 0);
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
                counts.add(&chunk.counts);
            }
            if stop.load(Ordering::Relaxed) {
                verdict.stopped = Some(Stop::Asked);
                break 'levels;
            }
            if let Some((from, by)) = chunks.iter().find_map(|chunk| chunk.breach) {
                verdict.violation = Some(search.violation(&states, from, by));
                break 'levels;
            }
            for chunk in chunks {
                for (found, row) in chunk.found.iter().zip(chunk.rows.chunks(store.shape.width())) {
                    states.add(row, found.0, found.1);
                }
            }
            if states.bytes() + store.bytes() + search.bytes() > memory {
                verdict.stopped = Some(Stop::Memory);
                break 'levels;
            }
            let progress = Progress {
                states: states.len() as u64,
                queue: (states.len() - at) as u64,
                transitions: counts.transitions,
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
    verdict.transitions = counts.transitions;
    let nmis = scope.nmis.any().then_some(Kind::Nmi);
    let kinds = scope.kinds.iter().chain(nmis);
    verdict.reached = kinds.map(|kind| (kind.name(), counts.by_kind[kind as usize])).collect();
    verdict.bytes = states.bytes() + store.bytes();
    verdict
}

struct Search<'a> {
    policy: Policy,
    scope: &'a Scope,
    /// One for each thread.
    workers: Vec<Mutex<Worker<'a>>>,
    stop: &'a AtomicBool,
    memory: usize,
}

/// How much has happened.
#[derive(Clone, Debug)]
struct Counts {
    transitions: u64,
    by_kind: [u64; Kind::ALL.len()],
}

impl Default for Counts {
    fn default() -> Counts {
        Counts { transitions: 0, by_kind: [0; Kind::ALL.len()] }
    }
}

impl Counts {
    fn add(&mut self, other: &Counts) {
        self.transitions += other.transitions;
        self.by_kind.iter_mut().zip(other.by_kind).for_each(|(sum, more)| *sum += more);
    }
}

/// What some states lead to.
#[derive(Default)]
struct Chunk {
    /// Where from, and by which move.
    found: Vec<(usize, u32)>,
    /// The state that it leads to.
    rows: Vec<u32>,
    counts: Counts,
    breach: Option<(usize, u32)>,
}

/// An event with its interruption, and what it leads to.
pub(super) struct Successor {
    pub(super) event: Event,
    pub(super) interruption: Option<(usize, Event)>,
    pub(super) machine: Machine,
    /// The counter that it has opened.
    pub(super) bound: Option<CounterId>,
    /// What it breaks on the way.
    pub(super) breach: Option<Breach>,
}

impl Search<'_> {
    fn expand(&self, chunk: &[usize], states: &States) -> Chunk {
        let thread = rayon::current_thread_index().unwrap_or(0);
        let mut worker = self.workers[thread].lock().unwrap_or_else(PoisonError::into_inner);
        let (mut found, mut known, mut row) = (Chunk::default(), Vec::new(), Vec::new());
        for &state in chunk {
            if self.stop.load(Ordering::Relaxed) || found.breach.is_some() {
                break;
            }
            worker.expand(states.row(state));
            // All at once: what one waits for does not wait for the other.
            let width = states.width();
            known.clear();
            known.extend(worker.rows.chunks(width).map(|row| states.knows(row)));
            let mut at = 0;
            for (by, one) in (0..).zip(0..worker.found.len()) {
                let Found { kind, trials, breaks, is_other } = worker.found[one];
                found.counts.transitions += u64::from(1 + trials);
                found.counts.by_kind[kind as usize] += 1;
                found.counts.by_kind[Kind::Nmi as usize] += u64::from(trials);
                row.clear();
                if is_other && !known[at] {
                    row.extend_from_slice(&worker.rows[at * width..(at + 1) * width]);
                }
                at += usize::from(is_other);
                if breaks || !row.is_empty() && worker.breaks(&row) {
                    found.breach = Some((state, by));
                    break;
                }
                if !row.is_empty() {
                    found.found.push((state, by));
                    found.rows.extend_from_slice(&row);
                }
            }
        }
        if worker.bytes() > self.memory / 4 / self.workers.len() {
            worker.forget();
        }
        found
    }

    fn bytes(&self) -> usize {
        let workers = self.workers.iter().map(|worker| worker.lock().unwrap_or_else(PoisonError::into_inner).bytes());
        workers.sum()
    }

    /// The way to a state, and the move that breaks a law there.
    fn violation(&self, states: &States, from: usize, by: u32) -> Violation {
        let mut links = vec![by];
        let mut state = from;
        while state != 0 {
            let (before, by) = states.link(state);
            links.push(by);
            state = before;
        }
        links.reverse();
        let mut trail = Trail::new(self.scope, self.policy);
        let mut broken = None;
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
            let step = step.expect("it was there");
            broken = step.breach.clone().or_else(|| step.machine.breach(self.scope.laws));
            trail.push(step);
        }
        let Breach { law, why } = broken.expect("it was broken");
        Violation { law, why, scenario: tell(trail) }
    }
}

/// Performs everything that can happen in a state, in a fixed order. `each` gets what it leads to and how many NMIs were
/// tried inside without a difference, and ends it with `false`.
fn successors(scope: &Scope, machine: &Machine, each: &mut impl FnMut(Successor, u64) -> bool) {
    for (_, event) in moves::moves(machine, scope) {
        if !perform(scope, machine, &event, None, each) {
            return;
        }
    }
}

/// Performs an event, as it is and with everything inside that makes a difference. What is looked at for it counts as
/// looked at in `machine`.
///
/// With `deferred` nobody looks at the registers before a step at which everything but vCPUs is as it was before the event:
/// it comes to hold the CPUs of which somebody must say that they are [`is_quiet`].
pub(super) fn perform(
    scope: &Scope,
    machine: &Machine,
    event: &Event,
    deferred: Option<&mut u8>,
    each: &mut impl FnMut(Successor, u64) -> bool,
) -> bool {
    let mut next = machine.clone();
    let interruptible = is_interruptible(event);
    let mut trial = Trial {
        witness: laws::Witness::new(machine, event, scope.laws),
        nmi: scope.nmis.plain && interruptible,
        defers: deferred.is_some(),
        deferred: 0,
        at: Vec::new(),
        differs: Vec::new(),
        trials: 0,
    };
    let outcome = next.apply(event, &mut trial);
    let Trial { witness, at, differs, trials, .. } = trial;
    if let Some(deferred) = deferred {
        *deferred = trial.deferred;
    }
    let judged = outcome.and_then(|outcome| witness.conclude_transition(&next, event, outcome));
    machine.notice(next.parts_read());
    let Ok(Judged { outcome, breach, .. }) = judged else { return true };
    let bound = bound_by(&outcome);
    let plain = Successor { event: event.clone(), interruption: None, machine: next, bound, breach };
    if !each(plain, trials) {
        return false;
    }
    if !interruptible {
        return true;
    }
    let interrupted = |step: usize, inside: &Event, each: &mut dyn FnMut(Successor) -> bool| {
        let mut next = machine.clone();
        let judged = judge_transition(&mut next, event, Some((At::Step(step), inside)), scope.laws);
        machine.notice(next.parts_read());
        match judged {
            Ok(Judged { outcome, breach, interrupted: true, .. }) => each(Successor {
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

/// Whether a machine in host context is as it should be before a step, and a plain NMI that strikes there changes nothing.
pub(super) fn is_quiet(scope: &Scope, machine: &Machine, cpu: CpuId, nmi: bool) -> bool {
    let event = Event::Nmi(cpu, Nmi::Plain);
    let mut next = machine.clone();
    let is_quiet = laws::Witness::new(machine, &event, scope.laws).is_quiet(&mut next, cpu, nmi);
    let is_same = next.cpus.iter().zip(&machine.cpus).all(|(after, before)| {
        let cost = before.unseen().bank.cost;
        let bank = Bank { cost, ..after.unseen().bank };
        Cpu { bank, ..after.unseen().clone() } == *before.unseen()
    });
    machine.notice(next.parts_read());
    is_quiet && is_same
}

/// An NMI does not interrupt an NMI, and who is in kgdb is not interrupted by what calls it.
pub(super) fn is_interruptible(event: &Event) -> bool {
    !matches!(event, Event::Nmi(..) | Event::Kgdb(..))
}

pub(super) fn bound_by(outcome: &Outcome) -> Option<CounterId> {
    if let Outcome::Bound(id) = *outcome { Some(id) } else { None }
}

/// Performs an event as it is, and tries before each step whether an NMI that does nothing would change anything there: as
/// a rule it finds everything as it was when it returns, and what comes after it is then the same.
struct Trial {
    witness: laws::Witness,
    nmi: bool,
    defers: bool,
    deferred: u8,
    /// By step: on which CPU.
    at: Vec<CpuId>,
    /// The steps before which it changes something.
    differs: Vec<usize>,
    trials: u64,
}

impl Probe for Trial {
    fn before(&mut self, machine: &mut Machine, cpu: CpuId) {
        self.at.push(cpu);
        if self.defers && machine.guest(cpu).is_none() && machine.host_is_unchanged() {
            self.deferred |= 1 << cpu.index();
            self.trials += u64::from(self.nmi);
            return self.witness.pass();
        }
        self.witness.before(machine, cpu);
        if !self.nmi || machine.guest(cpu).is_some() {
            return;
        }
        let before = machine.cpu(cpu).clone();
        let (clock, mutant) = (machine.clock, machine.mutant);
        let returned = self.witness.try_inside(machine, &Event::Nmi(cpu, Nmi::Plain));
        self.trials += 1;
        let after = &mut *machine.cpus[cpu.index()];
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
