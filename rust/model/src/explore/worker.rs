//! Finds out what a state leads to, asking the model only what it has not been asked before.

use super::canon::{self, Order};
use super::memo::{Answer, Lists, Question, Seen, Span, Table, UNKNOWN, Views};
use super::moves::{self, Group, Move};
use super::scope::{Kind, Scope};
use super::search::{is_interruptible, is_quiet, perform};
use super::store::Store;
use crate::CpuId;
use crate::machine::Machine;
use crate::part::Footprint;

/// What an event with its interruption does.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
struct Effect {
    /// The parts that it changes: some of [`Memo::changes`].
    changes: Span,
    /// How many NMIs were tried inside without a difference.
    trials: u16,
    /// It breaks a law on the way.
    breaks: bool,
    /// It changes more than vCPUs.
    reaches_host: bool,
}

/// A state, as far as it is not vCPUs.
#[derive(Copy, Clone, Debug)]
struct Settled {
    host: u32,
    cpus: [u32; Scope::MAX_CPUS],
    /// The vCPUs whose guests run, a bit for each.
    running: u8,
    order: Order,
}

/// What a vCPU is if its guest does not run, and which addresses it mentions.
#[derive(Copy, Clone, Debug)]
struct VcpuFacts {
    stopped: u32,
    order: Order,
}

/// What a state leads to, by one event with its interruption.
#[derive(Copy, Clone, Debug)]
pub(super) struct Found {
    pub(super) kind: Kind,
    pub(super) trials: u16,
    pub(super) breaks: bool,
    /// It leads to another state: the next of [`Worker::rows`].
    pub(super) is_other: bool,
}

/// One thread's.
pub(super) struct Worker<'a> {
    scope: &'a Scope,
    groups: Vec<Group>,
    has_symmetry: bool,
    memo: Memo,
    model: Model<'a>,
    /// The state that is explored, and one that it leads to.
    seen: Seen,
    next: Seen,
    parts: Vec<u32>,
    /// What it leads to, in a fixed order, and those states.
    pub(super) found: Vec<Found>,
    pub(super) rows: Vec<u32>,
}

/// Who is asked what has not been asked before.
struct Model<'a> {
    store: &'a Store,
    machine: Machine,
    /// The numbers of its parts.
    loaded: Vec<u32>,
}

/// What has been found out so far.
struct Memo {
    views: Views,
    /// By group: what can happen.
    moves: Vec<Question>,
    lists: Lists<u32>,
    /// The events that have happened, what comes of each, and what comes of it where a CPU is not quiet.
    events: Vec<Move>,
    come: Vec<Question>,
    loud: Vec<Question>,
    effects: Lists<Effect>,
    changes: Lists<(u8, u32)>,
    /// By CPU: whether it is quiet, without and with an NMI.
    quiet: Vec<[Question; 2]>,
    /// By CPU, and of the rule of slots: whether a state breaks a law there.
    breaches: Vec<Question>,
    /// By everything but vCPUs.
    settled: Table<Settled>,
    /// By host, CPUs and how addresses are renamed.
    renamed: Table<Settled>,
    /// By number of a vCPU.
    vcpus: Vec<Option<VcpuFacts>>,
    /// By number of a vCPU, and how addresses are renamed.
    renamed_vcpus: Table<u32>,
    /// By number of a host: its parts.
    hosts: Vec<u32>,
}

impl Memo {
    fn new(store: &Store, groups: usize) -> Memo {
        let shape = store.shape;
        Memo {
            views: Views::default(),
            moves: (0..groups).map(|_| Question::default()).collect(),
            lists: Lists::new(),
            events: Vec::new(),
            come: Vec::new(),
            loud: Vec::new(),
            effects: Lists::new(),
            changes: Lists::new(),
            quiet: (0..shape.cpus).map(|_| Default::default()).collect(),
            breaches: (0..=shape.cpus).map(|_| Question::default()).collect(),
            settled: Table::new(shape.without_vcpus()),
            renamed: Table::new(1 + shape.cpus + 2),
            vcpus: Vec::new(),
            renamed_vcpus: Table::new(3),
            hosts: Vec::new(),
        }
    }

    fn bytes(&self) -> usize {
        let tables = self.views.bytes() + self.settled.bytes() + self.renamed.bytes() + self.renamed_vcpus.bytes();
        let lists = self.lists.bytes() + self.effects.bytes() + self.changes.bytes();
        let plain = self.vcpus.capacity() * size_of::<Option<VcpuFacts>>() + self.hosts.capacity() * 4;
        tables + lists + plain
    }
}

impl<'a> Worker<'a> {
    pub(super) fn new(scope: &'a Scope, store: &'a Store, start: &Machine) -> Worker<'a> {
        let groups = moves::groups(scope);
        Worker {
            has_symmetry: canon::has_symmetry(start.policy, scope),
            memo: Memo::new(store, groups.len()),
            model: Model { store, machine: start.clone(), loaded: vec![UNKNOWN; store.shape.all()] },
            scope,
            groups,
            seen: Seen::default(),
            next: Seen::default(),
            parts: Vec::new(),
            found: Vec::new(),
            rows: Vec::new(),
        }
    }

    /// Bytes that it takes.
    pub(super) fn bytes(&self) -> usize {
        self.memo.bytes()
    }

    /// Forgets what has been found out: the model is asked again.
    pub(super) fn forget(&mut self) {
        self.memo = Memo::new(self.model.store, self.groups.len());
        (self.seen, self.next) = (Seen::default(), Seen::default());
    }

    /// Finds everything that a state leads to.
    pub(super) fn expand(&mut self, state: &[u32]) {
        if !self.scope.reuse {
            self.forget();
        }
        self.found.clear();
        self.rows.clear();
        let mut seen = std::mem::take(&mut self.seen);
        self.parts_of(state, &mut seen);
        let here = self.settle(&seen.parts);
        for group in 0..self.groups.len() {
            for at in self.moves(group, &mut seen).range() {
                let event = self.memo.lists.at(at) as usize;
                for effect in self.effects(event, &mut seen).range() {
                    let effect = self.memo.effects.at(effect);
                    let is_other = !effect.changes.is_empty();
                    if is_other {
                        self.lead(&seen.parts, effect, here);
                    }
                    let Effect { trials, breaks, .. } = effect;
                    self.found.push(Found { kind: self.memo.events[event].0, trials, breaks, is_other });
                }
            }
        }
        self.seen = seen;
    }

    /// Whether a state breaks a law as it stands.
    pub(super) fn breaks(&mut self, state: &[u32]) -> bool {
        let mut seen = std::mem::take(&mut self.next);
        self.parts_of(state, &mut seen);
        let cpus = self.model.store.shape.cpus;
        let breaks = (0..=cpus).any(|of| {
            let Memo { breaches, views, .. } = &mut self.memo;
            let answer = breaches[of].answer(&mut seen, views).unwrap_or_else(|| {
                let machine = self.model.load(&seen.parts);
                let cpu = (of < cpus).then(|| CpuId::from(of));
                let answer = Answer::yes(machine.breach_of(cpu, self.scope.laws).is_some());
                breaches[of].note(machine.parts_read(), &mut seen, views, answer);
                answer
            });
            answer.is_yes()
        });
        self.next = seen;
        breaks
    }

    /// The numbers of all parts of a state.
    fn parts_of(&mut self, state: &[u32], seen: &mut Seen) {
        seen.clear();
        let width = self.model.store.shape.host();
        let (host, hosts) = (state[0] as usize * width, &mut self.memo.hosts);
        if hosts.len() < host + width {
            hosts.resize(host + width, UNKNOWN);
        }
        let host = &mut hosts[host..host + width];
        if host[0] == UNKNOWN {
            self.model.store.parts_of_host(state[0], &mut seen.parts);
            host.copy_from_slice(&seen.parts);
        } else {
            seen.parts.extend_from_slice(host);
        }
        seen.parts.extend_from_slice(&state[1..]);
    }

    /// What can happen to a group: events, by number.
    fn moves(&mut self, group: usize, seen: &mut Seen) -> Span {
        let Memo { moves, views, lists, events, come, loud, .. } = &mut self.memo;
        if let Some(answer) = moves[group].answer(seen, views) {
            return answer.span;
        }
        let machine = self.model.load(&seen.parts);
        let list: Vec<u32> = moves::of_group(machine, self.scope, self.groups[group])
            .into_iter()
            .map(|event| {
                let number = events.iter().position(|other| *other == event).unwrap_or_else(|| {
                    events.push(event);
                    come.push(Question::default());
                    loud.push(Question::default());
                    events.len() - 1
                });
                number as u32
            })
            .collect();
        let span = lists.span(&list);
        moves[group].note(machine.parts_read(), seen, views, Answer::list(span, 0));
        span
    }

    /// What comes of an event.
    fn effects(&mut self, event: usize, seen: &mut Seen) -> Span {
        let answer = self.memo.come[event].answer(seen, &mut self.memo.views).unwrap_or_else(|| {
            let mut deferred = 0;
            let span = self.perform(event, seen, Some(&mut deferred));
            let answer = Answer::list(span, deferred);
            self.memo.come[event].note(self.model.machine.parts_read(), seen, &mut self.memo.views, answer);
            answer
        });
        if answer.deferred == 0 || self.are_quiet(answer.deferred, event, seen) {
            return answer.span;
        }
        let answer = self.memo.loud[event].answer(seen, &mut self.memo.views).unwrap_or_else(|| {
            let answer = Answer::list(self.perform(event, seen, None), 0);
            self.memo.loud[event].note(self.model.machine.parts_read(), seen, &mut self.memo.views, answer);
            answer
        });
        answer.span
    }

    /// Performs an event, and keeps what comes of it.
    fn perform(&mut self, event: usize, seen: &Seen, deferred: Option<&mut u8>) -> Span {
        let store = self.model.store;
        let machine = self.model.load(&seen.parts);
        let Memo { events, effects, changes, .. } = &mut self.memo;
        let mut list = Vec::new();
        perform(self.scope, machine, &events[event].1, deferred, &mut |successor, trials| {
            let mut next = successor.machine;
            let written = next.parts_written();
            canon::forget(&mut next);
            let numbers = written.iter().map(|part| (part as u8, store.number(&next, part)));
            let changed: Vec<_> = numbers.filter(|&(part, number)| number != seen.parts[usize::from(part)]).collect();
            list.push(Effect {
                trials: trials as u16,
                breaks: successor.breach.is_some(),
                reaches_host: changed.iter().any(|&(part, _)| usize::from(part) < store.shape.without_vcpus()),
                changes: changes.span(&changed),
            });
            true
        });
        effects.span(&list)
    }

    /// Whether these CPUs are as they should be before a step of an event that has changed no more than vCPUs.
    fn are_quiet(&mut self, cpus: u8, event: usize, seen: &mut Seen) -> bool {
        let nmi = self.scope.nmis.plain && is_interruptible(&self.memo.events[event].1);
        Footprint(u64::from(cpus)).iter().all(|cpu| {
            let Memo { quiet, views, .. } = &mut self.memo;
            let quiet = &mut quiet[cpu][usize::from(nmi)];
            let answer = quiet.answer(seen, views).unwrap_or_else(|| {
                let machine = self.model.load(&seen.parts);
                let is_quiet = is_quiet(self.scope, machine, CpuId::from(cpu), nmi);
                let looked = machine.parts_read();
                // The event may have changed a vCPU meanwhile.
                let answer = Answer::yes(is_quiet && looked.0 >> self.model.store.shape.without_vcpus() == 0);
                quiet.note(looked, seen, views, answer);
                answer
            });
            answer.is_yes()
        })
    }

    /// Appends the state that an effect leads to.
    fn lead(&mut self, parts: &[u32], effect: Effect, here: Settled) {
        let mut next = std::mem::take(&mut self.parts);
        next.clear();
        next.extend_from_slice(parts);
        for &(part, number) in self.memo.changes.of(effect.changes) {
            next[usize::from(part)] = number;
        }
        let settled = if effect.reaches_host { self.settle(&next) } else { here };
        let shape = self.model.store.shape;
        let mut order = settled.order;
        let start = self.rows.len();
        self.rows.push(settled.host);
        self.rows.extend_from_slice(&settled.cpus[..shape.cpus]);
        for vcpu in 0..shape.vcpus {
            let number = next[shape.without_vcpus() + vcpu];
            let facts = self.vcpu(number);
            self.rows.push(if settled.running >> vcpu & 1 != 0 { number } else { facts.stopped });
            order = order.then(facts.order);
        }
        self.parts = next;
        if !order.is_natural() {
            self.rename(start, order);
        }
    }

    /// Everything but vCPUs, in the one way that it is written.
    fn settle(&mut self, parts: &[u32]) -> Settled {
        let key = parts[..self.model.store.shape.without_vcpus()].iter().copied();
        let (number, is_new) = self.memo.settled.number(key);
        if !is_new {
            return self.memo.settled.result(number);
        }
        let machine = self.model.load(parts);
        canon::settle(machine);
        let order = if self.has_symmetry { Order::without_vcpus(machine, self.scope) } else { Order::default() };
        let guests = machine.turns.iter().filter_map(|turn| turn.guest);
        let running = guests.fold(0, |running, vcpu| running | 1 << vcpu.index());
        let settled = Settled { running, order, ..self.model.number() };
        self.memo.settled.push(settled);
        settled
    }

    fn vcpu(&mut self, number: u32) -> VcpuFacts {
        let at = number as usize;
        if self.memo.vcpus.len() <= at {
            self.memo.vcpus.resize(at + 1, None);
        }
        if let Some(facts) = self.memo.vcpus[at] {
            return facts;
        }
        let mut order = Order::default();
        let stopped = self.model.changed_vcpu(number, |vcpu| {
            if self.has_symmetry {
                order = Order::of_vcpu(vcpu, self.scope);
            }
            canon::stop(vcpu);
        });
        *self.memo.vcpus[at].insert(VcpuFacts { stopped, order })
    }

    /// Renames the addresses of the state that was found last.
    fn rename(&mut self, start: usize, order: Order) {
        let shape = self.model.store.shape;
        let digits = [order.0 as u32, (order.0 >> 32) as u32];
        let (number, is_new) =
            self.memo.renamed.number(self.rows[start..=start + shape.cpus].iter().copied().chain(digits));
        if is_new {
            let mut parts = Vec::new();
            self.model.store.parts_of_host(self.rows[start], &mut parts);
            parts.extend_from_slice(&self.rows[start + 1..]);
            canon::rename_addresses(self.model.load(&parts), self.scope, order);
            self.memo.renamed.push(self.model.number());
        }
        let renamed = self.memo.renamed.result(number);
        let row = &mut self.rows[start..];
        row[0] = renamed.host;
        row[1..=shape.cpus].copy_from_slice(&renamed.cpus[..shape.cpus]);
        for vcpu in &mut row[1 + shape.cpus..] {
            let key = [*vcpu, digits[0], digits[1]];
            let (number, is_new) = self.memo.renamed_vcpus.number(key.into_iter());
            if is_new {
                let rename = |vcpu: &mut _| canon::rename_addresses_of_vcpu(vcpu, self.scope, order);
                self.memo.renamed_vcpus.push(self.model.changed_vcpu(*vcpu, rename));
            }
            *vcpu = self.memo.renamed_vcpus.result(number);
        }
    }
}

impl Model<'_> {
    /// The machine of these parts, which nobody has looked at.
    fn load(&mut self, parts: &[u32]) -> &mut Machine {
        for (part, (&number, loaded)) in parts.iter().zip(&mut self.loaded).enumerate() {
            if number != *loaded {
                self.store.load(&mut self.machine, part, number);
                *loaded = number;
            }
        }
        self.machine.unnotice();
        &mut self.machine
    }

    /// The numbers of what is not a vCPU, of a machine that was changed after it was loaded.
    fn number(&mut self) -> Settled {
        let shape = self.store.shape;
        for part in 0..shape.without_vcpus() {
            self.loaded[part] = self.store.number(&self.machine, part);
        }
        self.loaded[shape.without_vcpus()..].fill(UNKNOWN);
        let (host, rest) = self.loaded.split_at(shape.host());
        let mut cpus = [0; Scope::MAX_CPUS];
        cpus[..shape.cpus].copy_from_slice(&rest[..shape.cpus]);
        Settled { host: self.store.host(host), cpus, running: 0, order: Order::default() }
    }

    /// The number of what a vCPU becomes.
    fn changed_vcpu(&mut self, number: u32, change: impl FnOnce(&mut crate::Vcpu)) -> u32 {
        let part = self.store.shape.without_vcpus();
        self.store.load(&mut self.machine, part, number);
        self.loaded[part] = UNKNOWN;
        change(&mut self.machine.vcpus[0]);
        self.store.number(&self.machine, part)
    }
}
