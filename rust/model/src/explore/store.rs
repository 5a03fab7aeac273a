//! States, kept small: a state is a row of numbers, one for what the host knows, one for each CPU and one for each vCPU.
//! Each number stands for a part that is kept once, however many states have it, and is compared whole.

use std::hash::{BuildHasher, Hash};
use std::sync::{PoisonError, RwLock};

use hashbrown::HashTable;
use rustc_hash::FxBuildHasher;

use super::scope::Scope;
use crate::context::Context;
use crate::counter::Counter;
use crate::histogram::Histogram;
use crate::kgdb::Debugger;
use crate::machine::{Cpu, Machine};
use crate::policy::Policy;
use crate::task::Task;
use crate::vcpu::Vcpu;

/// What is left of a machine without its CPUs and vCPUs.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Host {
    tasks: Vec<Task>,
    contexts: Vec<Context>,
    counters: Vec<Counter>,
    debugger: Debugger,
    histogram: Histogram,
}

/// Each part once, by number.
#[derive(Debug)]
struct Parts<T>(RwLock<Numbered<T>>);

#[derive(Debug)]
struct Numbered<T> {
    all: Vec<T>,
    index: HashTable<u32>,
}

impl<T> Parts<T> {
    fn new() -> Parts<T> {
        Parts(RwLock::new(Numbered { all: Vec::new(), index: HashTable::new() }))
    }

    /// The number of a part that hashes so and is equal to one for which `same` says so; `make` makes it if it is new.
    fn number(
        &self,
        hash: u64,
        same: impl Fn(&T) -> bool,
        make: impl FnOnce() -> T,
        rehash: impl Fn(&T) -> u64,
    ) -> u32 {
        {
            let numbered = self.0.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(&number) = numbered.index.find(hash, |&number| same(&numbered.all[number as usize])) {
                return number;
            }
        }
        let mut numbered = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let Numbered { all, index } = &mut *numbered;
        if let Some(&number) = index.find(hash, |&number| same(&all[number as usize])) {
            return number;
        }
        let number = all.len() as u32;
        all.push(make());
        index.insert_unique(hash, number, |&number| rehash(&all[number as usize]));
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

/// The parts of all states.
#[derive(Debug)]
pub(super) struct Store {
    hosts: Parts<Host>,
    cpus: Parts<Cpu>,
    vcpus: Parts<Vcpu>,
    counts: (usize, usize),
}

impl Store {
    pub(super) fn new(scope: &Scope) -> Store {
        Store {
            hosts: Parts::new(),
            cpus: Parts::new(),
            vcpus: Parts::new(),
            counts: (scope.options.cpus, scope.vcpus),
        }
    }

    /// How many numbers a state is.
    pub(super) fn width(&self) -> usize {
        1 + self.counts.0 + self.counts.1
    }

    /// A machine as a state: appends its numbers.
    pub(super) fn pack(&self, machine: &Machine, row: &mut Vec<u32>) {
        let hash_of =
            |host: &Host| hash(&(&host.tasks, &host.contexts, &host.counters, &host.debugger, &host.histogram));
        let Machine { tasks, contexts, counters, debugger, histogram, .. } = machine;
        let same = |host: &Host| {
            host.counters == *counters
                && host.contexts == *contexts
                && host.tasks == *tasks
                && host.debugger == *debugger
                && host.histogram == *histogram
        };
        let make = || Host {
            tasks: tasks.clone(),
            contexts: contexts.clone(),
            counters: counters.clone(),
            debugger: debugger.clone(),
            histogram: histogram.clone(),
        };
        row.push(self.hosts.number(hash(&(tasks, contexts, counters, debugger, histogram)), same, make, hash_of));
        for cpu in &machine.cpus {
            row.push(self.cpus.number(hash(cpu), |other| other == cpu, || cpu.clone(), hash));
        }
        for vcpu in &machine.vcpus {
            row.push(self.vcpus.number(hash(vcpu), |other| other == vcpu, || *vcpu, hash));
        }
    }

    /// A state as a machine.
    pub(super) fn unpack(&self, row: &[u32], scope: &Scope, policy: Policy) -> Machine {
        let mut machine = Machine::new(scope.options, policy);
        machine.mutant = scope.mutant;
        self.hosts.with(row[0], |host| {
            machine.tasks.clone_from(&host.tasks);
            machine.contexts.clone_from(&host.contexts);
            machine.counters.clone_from(&host.counters);
            machine.debugger.clone_from(&host.debugger);
            machine.histogram.clone_from(&host.histogram);
        });
        let (cpus, vcpus) = row[1..].split_at(self.counts.0);
        for (cpu, &number) in machine.cpus.iter_mut().zip(cpus) {
            self.cpus.with(number, |part| cpu.clone_from(part));
        }
        machine.vcpus.extend(vcpus.iter().map(|&number| self.vcpus.with(number, |part| *part)));
        machine
    }

    /// About how many bytes the parts take.
    pub(super) fn bytes(&self) -> usize {
        // What a host has on the heap, as a rule: a few lists of a few numbers for each task.
        let heap = 1024;
        self.hosts.len() * (size_of::<Host>() + heap)
            + self.cpus.len() * (size_of::<Cpu>() + 8)
            + self.vcpus.len() * (size_of::<Vcpu>() + 8)
    }
}

fn hash<T: Hash>(value: &T) -> u64 {
    FxBuildHasher.hash_one(value)
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
    pub(super) fn new(width: usize) -> States {
        States { width, rows: Vec::new(), links: Vec::new(), index: HashTable::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.links.len()
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
        self.index.find(hash(&row), |&state| self.row(state as usize) == row).is_some()
    }

    /// Adds a state unless it is there already.
    pub(super) fn add(&mut self, row: &[u32], from: usize, by: u32) {
        let States { width, rows, links, index } = self;
        let at = |state: u32| state as usize * *width;
        let is = |&state: &u32| rows[at(state)..at(state) + *width] == *row;
        let hash_of = hash(&row);
        if index.find(hash_of, is).is_some() {
            return;
        }
        let state = links.len() as u32;
        rows.extend_from_slice(row);
        links.push((from as u32, by));
        index.insert_unique(hash_of, state, |&state| hash(&&rows[at(state)..at(state) + *width]));
    }

    /// How many bytes all of them take.
    pub(super) fn bytes(&self) -> usize {
        self.rows.capacity() * 4 + self.links.capacity() * 8 + self.index.allocation_size()
    }
}
