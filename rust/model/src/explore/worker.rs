//! Finds out what a state leads to, asking the model only what it has not been asked before.

use super::canon::{self, Order};
use super::memo::{Known, Seen, Table, UNKNOWN, Views};
use super::moves::{self, Group, Move};
use super::scope::{Kind, Scope};
use super::search::{is_interruptible, is_quiet, perform};
use super::store::Store;
use crate::CpuId;
use crate::machine::Machine;
use crate::part::Footprint;

/// Some consecutive entries of a list.
#[derive(Copy, Clone, Debug)]
struct Span {
    first: u32,
    count: u16,
}

impl Span {
    fn of<T>(list: &[T], first: usize) -> Span {
        Span { first: first as u32, count: u16::try_from(list.len() - first).expect("a state has not so many moves") }
    }

    fn range(self) -> std::ops::Range<usize> {
        self.first as usize..self.first as usize + usize::from(self.count)
    }
}

/// What comes of an event: some of [`Memo::effects`].
#[derive(Copy, Clone, Debug)]
struct Effects {
    span: Span,
    /// The CPUs that must be quiet for it, a bit for each.
    deferred: u8,
}

/// What an event with its interruption does.
#[derive(Copy, Clone, Debug)]
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

/// What a state leads to, one event after the other.
pub(super) struct Found<'a> {
    pub(super) kind: Kind,
    pub(super) trials: u16,
    pub(super) breaks: bool,
    /// The state that it leads to; `None` if it is the same one.
    pub(super) row: Option<&'a [u32]>,
}

/// One thread's.
pub(super) struct Worker<'a> {
    scope: &'a Scope,
    groups: Vec<Group>,
    has_symmetry: bool,
    memo: Memo,
    model: Model<'a>,
    /// The state that is explored, and one that it leads to: its parts, and as it is kept.
    seen: Seen,
    next: Seen,
    row: Vec<u32>,
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
    /// By group: what can happen, in `list`.
    moves: Vec<Known<Span>>,
    list: Vec<u32>,
    /// The events that have happened, and what came of each.
    events: Vec<Move>,
    known: Vec<Known<Effects>>,
    /// What came of it where a CPU was not quiet.
    loud: Vec<Known<Effects>>,
    effects: Vec<Effect>,
    changes: Vec<(u8, u32)>,
    /// By CPU: whether it is quiet, without and with an NMI.
    quiet: Vec<[Known<bool>; 2]>,
    /// By CPU, and of the rule of slots: whether a state breaks a law there.
    breaches: Vec<Known<bool>>,
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
            moves: (0..groups).map(|_| Known::default()).collect(),
            list: Vec::new(),
            events: Vec::new(),
            known: Vec::new(),
            loud: Vec::new(),
            effects: Vec::new(),
            changes: Vec::new(),
            quiet: (0..shape.cpus).map(|_| Default::default()).collect(),
            breaches: (0..=shape.cpus).map(|_| Known::default()).collect(),
            settled: Table::new(shape.without_vcpus()),
            renamed: Table::new(1 + shape.cpus + 2),
            vcpus: Vec::new(),
            renamed_vcpus: Table::new(3),
            hosts: Vec::new(),
        }
    }

    fn bytes(&self) -> usize {
        let known = self.moves.iter().map(Known::bytes).sum::<usize>()
            + self.known.iter().chain(&self.loud).map(Known::bytes).sum::<usize>()
            + self.breaches.iter().chain(self.quiet.iter().flatten()).map(Known::bytes).sum::<usize>();
        let tables = self.views.bytes() + self.settled.bytes() + self.renamed.bytes() + self.renamed_vcpus.bytes();
        let lists = self.effects.capacity() * size_of::<Effect>()
            + self.changes.capacity() * size_of::<(u8, u32)>()
            + self.vcpus.capacity() * size_of::<Option<VcpuFacts>>()
            + (self.list.capacity() + self.hosts.capacity()) * 4;
        known + tables + lists
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
            row: Vec::new(),
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

    /// Calls `each` with everything that a state leads to, in a fixed order, until it says `false`.
    pub(super) fn expand(&mut self, state: &[u32], mut each: impl FnMut(&mut Worker<'_>, Found<'_>) -> bool) {
        if !self.scope.reuse {
            self.forget();
        }
        let mut seen = std::mem::take(&mut self.seen);
        self.parts_of(state, &mut seen);
        let here = self.settle(&seen.parts);
        'all: for group in 0..self.groups.len() {
            for at in self.moves(group, &mut seen).range() {
                let event = self.memo.list[at] as usize;
                for effect in self.effects(event, &mut seen).range() {
                    let effect = self.memo.effects[effect];
                    let is_other = effect.changes.count > 0;
                    if is_other {
                        self.lead(&seen.parts, effect, here);
                    }
                    let row = std::mem::take(&mut self.row);
                    let found = Found {
                        kind: self.memo.events[event].0,
                        trials: effect.trials,
                        breaks: effect.breaks,
                        row: is_other.then_some(&row),
                    };
                    let goes_on = each(self, found);
                    self.row = row;
                    if !goes_on {
                        break 'all;
                    }
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
            let (known, views) = (&mut self.memo.breaches[of], &mut self.memo.views);
            known.get(&mut seen, views).unwrap_or_else(|| {
                let machine = self.model.load(&seen.parts);
                let cpu = (of < cpus).then(|| CpuId::from(of));
                let breaks = machine.breach_of(cpu, self.scope.laws).is_some();
                known.insert(machine.parts_read(), &mut seen, views, breaks);
                breaks
            })
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
        if hosts[host] == UNKNOWN {
            self.model.store.parts_of_host(state[0], &mut seen.parts);
            hosts[host..host + width].copy_from_slice(&seen.parts);
        } else {
            seen.parts.extend_from_slice(&hosts[host..host + width]);
        }
        seen.parts.extend_from_slice(&state[1..]);
    }

    /// What can happen to a group: events, by number.
    fn moves(&mut self, group: usize, seen: &mut Seen) -> Span {
        let Memo { moves: known, views, list, events, known: results, loud, .. } = &mut self.memo;
        if let Some(span) = known[group].get(seen, views) {
            return span;
        }
        let machine = self.model.load(&seen.parts);
        let first = list.len();
        for event in moves::of_group(machine, self.scope, self.groups[group]) {
            let number = events.iter().position(|other| *other == event).unwrap_or_else(|| {
                events.push(event);
                results.push(Known::default());
                loud.push(Known::default());
                events.len() - 1
            });
            list.push(number as u32);
        }
        let span = Span::of(list, first);
        known[group].insert(machine.parts_read(), seen, views, span);
        span
    }

    /// What comes of an event.
    fn effects(&mut self, event: usize, seen: &mut Seen) -> Span {
        let known = self.memo.known[event].get(seen, &mut self.memo.views);
        let Effects { span, deferred } = known.unwrap_or_else(|| {
            let mut deferred = 0;
            let span = self.perform(event, seen, Some(&mut deferred));
            let effects = Effects { span, deferred };
            let looked = self.model.machine.parts_read();
            self.memo.known[event].insert(looked, seen, &mut self.memo.views, effects);
            effects
        });
        if deferred == 0 || self.are_quiet(deferred, event, seen) {
            return span;
        }
        let known = self.memo.loud[event].get(seen, &mut self.memo.views);
        known.map_or_else(
            || {
                let span = self.perform(event, seen, None);
                let looked = self.model.machine.parts_read();
                let effects = Effects { span, deferred: 0 };
                self.memo.loud[event].insert(looked, seen, &mut self.memo.views, effects);
                span
            },
            |effects| effects.span,
        )
    }

    /// Performs an event, and keeps what comes of it.
    fn perform(&mut self, event: usize, seen: &Seen, deferred: Option<&mut u8>) -> Span {
        let store = self.model.store;
        let machine = self.model.load(&seen.parts);
        let Memo { events, effects, changes, .. } = &mut self.memo;
        let first = effects.len();
        perform(self.scope, machine, &events[event].1, deferred, &mut |successor, trials| {
            let mut next = successor.machine;
            let written = next.parts_written();
            canon::forget(&mut next);
            let first = changes.len();
            for part in written.iter() {
                let number = store.number(&next, part);
                if number != seen.parts[part] {
                    changes.push((part as u8, number));
                }
            }
            let reaches_host =
                changes[first..].iter().any(|&(part, _)| usize::from(part) < store.shape.without_vcpus());
            effects.push(Effect {
                trials: trials as u16,
                breaks: successor.breach.is_some(),
                changes: Span::of(changes, first),
                reaches_host,
            });
            true
        });
        Span::of(effects, first)
    }

    /// Whether these CPUs are as they should be before a step of an event that has changed no more than vCPUs.
    fn are_quiet(&mut self, cpus: u8, event: usize, seen: &mut Seen) -> bool {
        let nmi = self.scope.nmis.plain && is_interruptible(&self.memo.events[event].1);
        Footprint(u64::from(cpus)).iter().all(|cpu| {
            let (known, views) = (&mut self.memo.quiet[cpu][usize::from(nmi)], &mut self.memo.views);
            known.get(seen, views).unwrap_or_else(|| {
                let machine = self.model.load(&seen.parts);
                let quiet = is_quiet(self.scope, machine, CpuId::from(cpu), nmi);
                let looked = machine.parts_read();
                // The event may have changed a vCPU meanwhile.
                let quiet = quiet && looked.0 >> self.model.store.shape.without_vcpus() == 0;
                known.insert(looked, seen, views, quiet);
                quiet
            })
        })
    }

    /// The state that an effect leads to, into `self.row`.
    fn lead(&mut self, parts: &[u32], effect: Effect, here: Settled) {
        let mut next = std::mem::take(&mut self.next);
        next.parts.clear();
        next.parts.extend_from_slice(parts);
        for &(part, number) in &self.memo.changes[effect.changes.range()] {
            next.parts[usize::from(part)] = number;
        }
        let settled = if effect.reaches_host { self.settle(&next.parts) } else { here };
        let shape = self.model.store.shape;
        let mut order = settled.order;
        self.row.clear();
        self.row.push(settled.host);
        self.row.extend_from_slice(&settled.cpus[..shape.cpus]);
        for vcpu in 0..shape.vcpus {
            let number = next.parts[shape.without_vcpus() + vcpu];
            let facts = self.vcpu(number);
            self.row.push(if settled.running >> vcpu & 1 != 0 { number } else { facts.stopped });
            order = order.then(facts.order);
        }
        self.next = next;
        if !order.is_natural() {
            self.rename(order);
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

    /// Renames the addresses of the state in `self.row`.
    fn rename(&mut self, order: Order) {
        let shape = self.model.store.shape;
        let digits = [order.0 as u32, (order.0 >> 32) as u32];
        let (number, is_new) = self.memo.renamed.number(self.row[..=shape.cpus].iter().copied().chain(digits));
        if is_new {
            let mut parts = Vec::new();
            self.model.store.parts_of_host(self.row[0], &mut parts);
            parts.extend_from_slice(&self.row[1..]);
            canon::rename_addresses(self.model.load(&parts), self.scope, order);
            self.memo.renamed.push(self.model.number());
        }
        let renamed = self.memo.renamed.result(number);
        self.row[0] = renamed.host;
        self.row[1..=shape.cpus].copy_from_slice(&renamed.cpus[..shape.cpus]);
        for vcpu in &mut self.row[1 + shape.cpus..] {
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
