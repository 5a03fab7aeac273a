//! The parts of machines, each kept once and known by a number: however many states have it, it is compared whole only
//! when it is numbered.

use std::hash::{BuildHasher, Hash};
use std::sync::{PoisonError, RwLock};

use hashbrown::HashTable;
use rustc_hash::FxBuildHasher;

use crate::context::Context;
use crate::counter::Counter;
use crate::histogram::Histogram;
use crate::kgdb::Debugger;
use crate::machine::{Cpu, Machine, Turn};
use crate::task::Task;
use crate::vcpu::Vcpu;

/// Each part once, by number.
#[derive(Debug)]
struct Parts<T>(RwLock<Numbered<T>>);

#[derive(Debug)]
struct Numbered<T> {
    all: Vec<T>,
    index: HashTable<u32>,
}

impl<T: Hash + Eq + Clone> Parts<T> {
    fn new() -> Parts<T> {
        Parts(RwLock::new(Numbered { all: Vec::new(), index: HashTable::new() }))
    }

    /// The number of a part; a new one if it is new.
    fn number(&self, part: &T) -> u32 {
        let hash_of = hash(part);
        {
            let Numbered { all, index } = &*self.0.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(&number) = index.find(hash_of, |&number| all[number as usize] == *part) {
                return number;
            }
        }
        let Numbered { all, index } = &mut *self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(&number) = index.find(hash_of, |&number| all[number as usize] == *part) {
            return number;
        }
        let number = all.len() as u32;
        all.push(part.clone());
        index.insert_unique(hash_of, number, |&number| hash(&all[number as usize]));
        number
    }

    fn with<R>(&self, number: u32, f: impl FnOnce(&T) -> R) -> R {
        let numbered = self.0.read().unwrap_or_else(PoisonError::into_inner);
        f(&numbered.all[number as usize])
    }

    fn len(&self) -> usize {
        self.0.read().unwrap_or_else(PoisonError::into_inner).all.len()
    }
}

fn hash<T: Hash + ?Sized>(value: &T) -> u64 {
    FxBuildHasher.hash_one(value)
}

/// Which parts the machines of a scope have, in the order of a [`Footprint`](crate::part::Footprint).
#[derive(Copy, Clone, Debug)]
pub(super) struct Shape {
    tasks: usize,
    pub(super) cpus: usize,
    pub(super) vcpus: usize,
}

enum Place {
    Task(usize),
    Contexts,
    Counters,
    Debugger,
    Histogram,
    Turn(usize),
    InRun(usize),
    Cpu(usize),
    Vcpu(usize),
}

impl Shape {
    fn of(machine: &Machine) -> Shape {
        Shape { tasks: machine.tasks.len(), cpus: machine.cpus.len(), vcpus: machine.vcpus.len() }
    }

    /// How many parts are neither a CPU nor a vCPU: what the host knows.
    pub(super) const fn host(self) -> usize {
        self.tasks + 4 + self.cpus + self.vcpus
    }

    /// How many parts are not a vCPU.
    pub(super) const fn without_vcpus(self) -> usize {
        self.host() + self.cpus
    }

    pub(super) const fn all(self) -> usize {
        self.without_vcpus() + self.vcpus
    }

    /// How many numbers a state is: one for what the host knows, one for each CPU and each vCPU.
    pub(super) const fn width(self) -> usize {
        1 + self.cpus + self.vcpus
    }

    const fn place(self, part: usize) -> Place {
        if part < self.tasks {
            return Place::Task(part);
        }
        match part - self.tasks {
            0 => Place::Contexts,
            1 => Place::Counters,
            2 => Place::Debugger,
            3 => Place::Histogram,
            rest => match (rest - 4, self.cpus, self.vcpus) {
                (at, cpus, _) if at < cpus => Place::Turn(at),
                (at, cpus, vcpus) if at < cpus + vcpus => Place::InRun(at - cpus),
                (at, cpus, vcpus) if at < 2 * cpus + vcpus => Place::Cpu(at - cpus - vcpus),
                (at, cpus, vcpus) => Place::Vcpu(at - 2 * cpus - vcpus),
            },
        }
    }
}

/// The parts of all states.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) shape: Shape,
    tasks: Parts<Task>,
    contexts: Parts<Vec<Context>>,
    counters: Parts<Vec<Counter>>,
    debuggers: Parts<Debugger>,
    histograms: Parts<Histogram>,
    turns: Parts<Turn>,
    cpus: Parts<Cpu>,
    vcpus: Parts<Vcpu>,
    /// The numbers of what the host knows.
    hosts: Parts<Box<[u32]>>,
}

impl Store {
    pub(super) fn new(machine: &Machine) -> Store {
        Store {
            shape: Shape::of(machine),
            tasks: Parts::new(),
            contexts: Parts::new(),
            counters: Parts::new(),
            debuggers: Parts::new(),
            histograms: Parts::new(),
            turns: Parts::new(),
            cpus: Parts::new(),
            vcpus: Parts::new(),
            hosts: Parts::new(),
        }
    }

    /// The number of a part of a machine.
    pub(super) fn number(&self, machine: &Machine, part: usize) -> u32 {
        match self.shape.place(part) {
            Place::Task(at) => self.tasks.number(machine.tasks[at].unseen()),
            Place::Contexts => self.contexts.number(machine.contexts.unseen()),
            Place::Counters => self.counters.number(machine.counters.unseen()),
            Place::Debugger => self.debuggers.number(machine.debugger.unseen()),
            Place::Histogram => self.histograms.number(machine.histogram.unseen()),
            Place::Turn(at) => self.turns.number(machine.turns[at].unseen()),
            Place::InRun(at) => u32::from(*machine.in_run[at].unseen()),
            Place::Cpu(at) => self.cpus.number(machine.cpus[at].unseen()),
            Place::Vcpu(at) => self.vcpus.number(machine.vcpus[at].unseen()),
        }
    }

    /// Makes a part of a machine that of the number.
    pub(super) fn load(&self, machine: &mut Machine, part: usize, number: u32) {
        match self.shape.place(part) {
            Place::Task(at) => self.tasks.with(number, |value| machine.tasks[at].set_unseen(value)),
            Place::Contexts => self.contexts.with(number, |value| machine.contexts.set_unseen(value)),
            Place::Counters => self.counters.with(number, |value| machine.counters.set_unseen(value)),
            Place::Debugger => self.debuggers.with(number, |value| machine.debugger.set_unseen(value)),
            Place::Histogram => self.histograms.with(number, |value| machine.histogram.set_unseen(value)),
            Place::Turn(at) => self.turns.with(number, |value| machine.turns[at].set_unseen(value)),
            Place::InRun(at) => machine.in_run[at].set_unseen(&(number != 0)),
            Place::Cpu(at) => self.cpus.with(number, |value| machine.cpus[at].set_unseen(value)),
            Place::Vcpu(at) => self.vcpus.with(number, |value| machine.vcpus[at].set_unseen(value)),
        }
    }

    /// A machine as a state.
    pub(super) fn row(&self, machine: &Machine) -> Vec<u32> {
        let parts: Vec<u32> = (0..self.shape.all()).map(|part| self.number(machine, part)).collect();
        let (host, rest) = parts.split_at(self.shape.host());
        std::iter::once(self.host(host)).chain(rest.iter().copied()).collect()
    }

    /// The number of what the host knows, from the numbers of its parts.
    pub(super) fn host(&self, parts: &[u32]) -> u32 {
        self.hosts.number(&Box::from(parts))
    }

    /// The other way round: appends them.
    pub(super) fn parts_of_host(&self, number: u32, parts: &mut Vec<u32>) {
        self.hosts.with(number, |host| parts.extend_from_slice(host));
    }

    /// About how many bytes the parts take.
    pub(super) fn bytes(&self) -> usize {
        // What a part has on the heap, as a rule: a few lists of a few numbers.
        let heap = 128;
        self.tasks.len() * (size_of::<Task>() + heap)
            + self.contexts.len() * 4 * (size_of::<Context>() + heap)
            + self.counters.len() * 4 * size_of::<Counter>()
            + self.debuggers.len() * (size_of::<Debugger>() + heap)
            + self.histograms.len() * (size_of::<Histogram>() + heap)
            + self.cpus.len() * (size_of::<Cpu>() + 8)
            + self.vcpus.len() * (size_of::<Vcpu>() + 8)
            + self.hosts.len() * (self.shape.host() * 4 + 32)
    }
}

fn row_hash(row: &[u32]) -> u64 {
    super::memo::hash(row.iter().copied())
}

/// The states, by number, each with the one that it was first reached from.
#[derive(Debug)]
pub(super) struct States {
    width: usize,
    rows: Vec<u32>,
    /// By state: where from, and by which of that one's moves.
    links: Vec<(u32, u32)>,
    index: HashTable<u32>,
}

impl States {
    pub(super) fn new(shape: Shape) -> States {
        States { width: shape.width(), rows: Vec::new(), links: Vec::new(), index: HashTable::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.links.len()
    }

    /// How many numbers a state is.
    pub(super) const fn width(&self) -> usize {
        self.width
    }

    pub(super) fn row(&self, state: usize) -> &[u32] {
        &self.rows[state * self.width..(state + 1) * self.width]
    }

    /// Where a state was first reached from, and by which move.
    pub(super) fn link(&self, state: usize) -> (usize, u32) {
        let (from, by) = self.links[state];
        (from as usize, by)
    }

    pub(super) fn knows(&self, row: &[u32]) -> bool {
        self.index.find(row_hash(row), |&state| self.row(state as usize) == row).is_some()
    }

    /// Adds a state unless it is there already.
    pub(super) fn add(&mut self, row: &[u32], from: usize, by: u32) {
        let States { width, rows, links, index } = self;
        let at = |state: u32| state as usize * *width;
        let is = |&state: &u32| rows[at(state)..at(state) + *width] == *row;
        let hash_of = row_hash(row);
        if index.find(hash_of, is).is_some() {
            return;
        }
        let state = links.len() as u32;
        rows.extend_from_slice(row);
        links.push((from as u32, by));
        index.insert_unique(hash_of, state, |&state| row_hash(&rows[at(state)..at(state) + *width]));
    }

    /// How many bytes all of them take.
    pub(super) fn bytes(&self) -> usize {
        self.rows.capacity() * 4 + self.links.capacity() * 8 + self.index.allocation_size()
    }
}
