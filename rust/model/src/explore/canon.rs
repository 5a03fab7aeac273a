//! Which states are the same: what nobody can tell apart is written the same way.
//!
//! Times, costs and hit counts are dropped. Contexts and counters are numbered in the order in which the machine mentions
//! them, and those that nobody mentions any more go; generations of contexts become ranks. Addresses of the scope are
//! renamed in the order of their first mention, which makes states that differ by a permutation of them one: every event
//! of the scope treats all of them alike.

use debugreg::Cost;
use debugreg::announce::Loan;

use super::scope::Scope;
use crate::context::Context;
use crate::counter::{Counter, Origin, State};
use crate::machine::{Cpu, Machine};
use crate::policy::{Delta, Policy};
use crate::step::{counter_of, owner};
use crate::task::Task;
use crate::vcpu::Vcpu;
use crate::{ContextId, CounterId, CpuId, VcpuId};

/// What the names of before have become.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Renaming {
    /// By new number of a counter: the old one.
    pub(super) counters: Vec<CounterId>,
    /// By new number of an address: the old one.
    pub(super) addresses: Vec<u64>,
}

/// Writes a machine in the one way that all machines are written that cannot be told from it.
pub(super) fn canon(machine: &mut Machine, scope: &Scope) -> Renaming {
    forget(machine);
    let counters = settle(machine);
    let order = if has_symmetry(machine.policy, scope) { Order::of(machine, scope) } else { Order::default() };
    rename_addresses(machine, scope, order);
    Renaming { counters, addresses: order.all(scope) }
}

/// Whether addresses may be renamed: a user's policy may remember one, or know one from another.
pub(super) fn has_symmetry(policy: Policy, scope: &Scope) -> bool {
    scope.symmetry && !policy.is_users()
}

/// Drops what no event ever looks at.
pub(super) fn forget(machine: &mut Machine) {
    machine.clock = 0;
    for cpu in &mut machine.cpus {
        cpu.bank.cost = Cost::default();
        cpu.announced = [0; 4];
    }
    for counter in machine.counters.iter_mut() {
        (counter.count, counter.since) = (0, 0);
    }
    if !machine.policy.has(Delta::Z6) && !machine.policy.has(Delta::H32) {
        for vcpu in &mut machine.vcpus {
            vcpu.debug_exit = crate::DebugExit::default();
        }
    }
}

/// Drops what only the whole shows to be never looked at, and numbers what has numbers.
pub(super) fn settle(machine: &mut Machine) -> Vec<CounterId> {
    for (id, cpu) in (0..).map(CpuId).zip(&mut machine.cpus) {
        // How often something was announced is compared with what was found before, and with nothing else.
        let Cpu { loan, bank, .. } = &mut **cpu;
        let found = loan.iter_mut().chain(machine.debugger.loans(id)).map(Loan::announced);
        rank(&mut found.chain([&mut bank.announced]).collect::<Vec<_>>());
    }
    for id in (0..machine.vcpus.len()).map(VcpuId::from) {
        if !machine.turns.iter().any(|turn| turn.guest == Some(id)) {
            stop(&mut machine.vcpus[id.index()]);
        }
    }
    renumber_contexts(machine);
    renumber_counters(machine)
}

/// Drops what an entry of a vCPU starts anew.
pub(super) fn stop(vcpu: &mut Vcpu) {
    vcpu.loaded = 0;
}

/// Contexts: the CPUs' stay, then each task's.
fn renumber_contexts(machine: &mut Machine) {
    let cpus = machine.cpus.len();
    if machine.contexts.len() == cpus {
        return rank_generations(&mut machine.contexts);
    }
    let mut order: Vec<ContextId> = (0..cpus).map(ContextId::from).collect();
    let mentioned = machine.tasks.iter().filter_map(|task| task.context);
    order.extend(mentioned.chain(machine.cpus.iter().filter_map(|cpu| cpu.task_context)));
    dedup(&mut order);
    // Whoever is a clone of something mentions it.
    let mut at = 0;
    while at < order.len() {
        if let Some((parent, _)) = machine.contexts[order[at].index()].parent
            && !order.contains(&parent)
        {
            order.push(parent);
        }
        at += 1;
    }
    let new = |old: ContextId| ContextId::from(order.iter().position(|&id| id == old).expect("it is mentioned"));
    let contexts = std::mem::take(&mut *machine.contexts);
    *machine.contexts = order.iter().map(|id| contexts[id.index()].clone()).collect();
    for task in &mut machine.tasks {
        task.context = task.context.map(new);
    }
    for cpu in &mut machine.cpus {
        cpu.task_context = cpu.task_context.map(new);
    }
    for counter in machine.counters.iter_mut() {
        // A context that nobody mentions any more has no counter that is scheduled.
        counter.context = counter.context.and_then(|old| order.contains(&old).then(|| new(old)));
    }
    for context in machine.contexts.iter_mut() {
        context.parent = context.parent.map(|(parent, generation)| (new(parent), generation));
    }
    rank_generations(&mut machine.contexts);
}

/// A generation is compared with what a clone remembers of it, and with nothing else.
fn rank_generations(contexts: &mut [Context]) {
    for id in (0..contexts.len()).map(ContextId::from) {
        let mut numbers = Vec::new();
        for (of, context) in (0..).map(ContextId).zip(&mut *contexts) {
            if of == id {
                numbers.push(&mut context.generation);
            }
            if let Some((parent, generation)) = &mut context.parent
                && *parent == id
            {
                numbers.push(generation);
            }
        }
        rank(&mut numbers);
    }
}

/// Numbers that are only ever compared with each other, the greatest of which grows: by rank.
fn rank(numbers: &mut [&mut u64]) {
    let mut all: Vec<u64> = numbers.iter().map(|number| **number).collect();
    all.sort_unstable();
    all.dedup();
    for number in numbers {
        **number = all.iter().position(|other| other == *number).expect("it is listed") as u64;
    }
}

/// Counters: in the order in which contexts, tasks and CPUs mention them, then those that only hold a slot.
fn renumber_counters(machine: &mut Machine) -> Vec<CounterId> {
    if machine.counters.is_empty() {
        return Vec::new();
    }
    let mut order: Vec<CounterId> = Vec::new();
    for context in machine.contexts.iter() {
        order.extend(context.counters());
    }
    for task in &machine.tasks {
        order.extend(task.ptrace_bps.iter().flatten());
        order.extend(task.thread.owner.iter().flatten());
        order.extend(&task.descriptors);
    }
    order.extend(machine.debugger.counters());
    for cpu in &machine.cpus {
        order.extend(cpu.bank.owner.iter().copied().filter_map(counter_of));
    }
    dedup(&mut order);
    let mut at = 0;
    while at < order.len() {
        if let Origin::Inherited(of) | Origin::Wide(of) = machine.counters[order[at].index()].origin
            && !order.contains(&of)
        {
            order.push(of);
        }
        at += 1;
    }
    let mut rest: Vec<CounterId> = machine.live().filter(|id| !order.contains(id)).collect();
    rest.sort_by_key(|&id| order_of(machine.counter(id)));
    order.extend(rest);
    let in_order = order.iter().enumerate().all(|(new, old)| new == old.index());
    if in_order && order.len() == machine.counters.len() {
        return order;
    }
    let new = |old: CounterId| CounterId::from(order.iter().position(|&id| id == old).expect("it is mentioned"));
    let counters = std::mem::take(&mut *machine.counters);
    *machine.counters = order.iter().map(|id| counters[id.index()]).collect();
    for counter in machine.counters.iter_mut() {
        counter.leader = counter.leader.map(new);
        counter.origin = match counter.origin {
            Origin::Inherited(of) => Origin::Inherited(new(of)),
            Origin::Wide(of) => Origin::Wide(new(of)),
            other => other,
        };
    }
    for context in machine.contexts.iter_mut() {
        context.rename_counters(new);
    }
    for task in &mut machine.tasks {
        task.descriptors.iter_mut().for_each(|id| *id = new(*id));
        let Task { ptrace_bps, thread, .. } = &mut **task;
        for id in ptrace_bps.iter_mut().chain(&mut thread.owner).flatten() {
            *id = new(*id);
        }
    }
    machine.debugger.rename_counters(new);
    for cpu in &mut machine.cpus {
        for word in &mut cpu.bank.owner {
            if let Some(id) = counter_of(*word) {
                *word = owner(new(id));
            }
        }
    }
    order
}

/// An order among counters that nobody mentions: they hold a slot, and that is all.
fn order_of(counter: &Counter) -> impl Ord + use<> {
    let Counter { target, cpu, attr, state, .. } = *counter;
    (target, cpu, attr.bp_addr, state == State::Exit)
}

fn dedup<T: PartialEq + Copy>(list: &mut Vec<T>) {
    let mut seen = Vec::with_capacity(list.len());
    list.retain(|item| {
        let is_new = !seen.contains(item);
        if is_new {
            seen.push(*item);
        }
        is_new
    });
}

/// The addresses of a scope in the order of their first mention: a digit for each, the first one lowest, from 1.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Order(pub(super) u64);

impl Order {
    /// All that a machine mentions.
    pub(super) fn of(machine: &mut Machine, scope: &Scope) -> Order {
        let mut order = Order::default();
        machine.each_address(&mut |address| order.mention(*address, scope));
        order
    }

    /// What a machine mentions apart from its vCPUs.
    pub(super) fn without_vcpus(machine: &mut Machine, scope: &Scope) -> Order {
        let mut order = Order::default();
        machine.each_address_of_host(&mut |address| order.mention(*address, scope));
        order
    }

    /// What a vCPU mentions.
    pub(super) fn of_vcpu(vcpu: &mut Vcpu, scope: &Scope) -> Order {
        let mut order = Order::default();
        each_address_of_vcpu(vcpu, &mut |address| order.mention(*address, scope));
        order
    }

    fn digits(self) -> impl Iterator<Item = u64> {
        (0..16).map(move |at| self.0 >> (4 * at) & 0xf).take_while(|&digit| digit != 0)
    }

    fn mention(&mut self, address: u64, scope: &Scope) {
        if let Some(number) = scope.number(address) {
            *self = self.then(Order(number as u64 + 1));
        }
    }

    /// These, and then those.
    #[must_use]
    pub(super) fn then(self, those: Order) -> Order {
        those.digits().fold(self, |order, digit| {
            let count = order.digits().take_while(|&other| other != digit).count();
            if order.0 >> (4 * count) == 0 { Order(order.0 | digit << (4 * count)) } else { order }
        })
    }

    /// Whether every address has its name already.
    pub(super) const fn is_natural(self) -> bool {
        const NATURAL: u64 = 0x8765_4321;
        let digits = 16 - self.0.leading_zeros() / 4;
        self.0 == NATURAL & !(u64::MAX << (4 * digits))
    }

    /// The new number of one.
    fn position(self, number: usize) -> Option<usize> {
        self.digits().position(|digit| digit == number as u64 + 1)
    }

    /// By new number of an address: the old one. Those that are not mentioned come last.
    fn all(self, scope: &Scope) -> Vec<u64> {
        let mentioned: Vec<u64> = self.digits().map(|digit| Scope::address(digit as usize - 1)).collect();
        let rest = scope.all_addresses().filter(|address| !mentioned.contains(address));
        mentioned.iter().copied().chain(rest).collect()
    }

    /// What an address is called from here on.
    fn renamed(self, address: u64, scope: &Scope) -> u64 {
        scope.number(address).and_then(|number| self.position(number)).map_or(address, Scope::address)
    }
}

/// Renames addresses in the order of their first mention.
pub(super) fn rename_addresses(machine: &mut Machine, scope: &Scope, order: Order) {
    if !order.is_natural() {
        machine.each_address(&mut |address| *address = order.renamed(*address, scope));
    }
}

/// The same in a vCPU.
pub(super) fn rename_addresses_of_vcpu(vcpu: &mut Vcpu, scope: &Scope, order: Order) {
    each_address_of_vcpu(vcpu, &mut |address| *address = order.renamed(*address, scope));
}

impl Machine {
    /// Every address that it knows, in a fixed order.
    fn each_address(&mut self, f: &mut impl FnMut(&mut u64)) {
        self.each_address_of_host(f);
        self.vcpus.iter_mut().for_each(|vcpu| each_address_of_vcpu(vcpu, f));
    }

    fn each_address_of_host(&mut self, f: &mut impl FnMut(&mut u64)) {
        for cpu in &mut self.cpus {
            cpu.bank.address.iter_mut().for_each(&mut *f);
            cpu.bank.hardware.dr.iter_mut().for_each(&mut *f);
        }
        for counter in self.counters.iter_mut() {
            f(&mut counter.attr.bp_addr);
            f(&mut counter.info.address);
        }
        for task in &mut self.tasks {
            task.thread.dr.iter_mut().for_each(&mut *f);
        }
        self.debugger.each_address(f);
    }
}

fn each_address_of_vcpu(vcpu: &mut Vcpu, f: &mut impl FnMut(&mut u64)) {
    for registers in [&mut vcpu.own, &mut vcpu.vmsa, &mut vcpu.saved] {
        registers.dr.iter_mut().for_each(&mut *f);
    }
    for dr in [&mut vcpu.db, &mut vcpu.eff_db, &mut vcpu.debug.dr] {
        dr.iter_mut().for_each(&mut *f);
    }
}
