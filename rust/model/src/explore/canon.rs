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
use crate::machine::Machine;
use crate::policy::Delta;
use crate::step::{counter_of, owner};
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
    renumber_contexts(machine);
    let counters = renumber_counters(machine);
    // A user's policy may remember an address, or know one from another.
    let symmetry = scope.symmetry && !machine.policy.is_users();
    let addresses = if symmetry { rename_addresses(machine, scope) } else { scope.all_addresses().collect() };
    Renaming { counters, addresses }
}

/// Drops what no event ever looks at.
fn forget(machine: &mut Machine) {
    machine.clock = 0;
    for (id, cpu) in (0..).map(CpuId).zip(&mut machine.cpus) {
        cpu.bank.cost = Cost::default();
        cpu.announced = [0; 4];
        // How often something was announced is compared with what was found before, and with nothing else.
        let found = cpu.loan.iter_mut().chain(machine.debugger.loans(id)).map(Loan::announced);
        rank(&mut found.chain([&mut cpu.bank.announced]).collect::<Vec<_>>());
    }
    for counter in &mut machine.counters {
        (counter.count, counter.since) = (0, 0);
    }
    let rereads = machine.policy.has(Delta::Z6) || machine.policy.has(Delta::H32);
    let running: Vec<_> = machine.cpus.iter().map(|cpu| cpu.guest).collect();
    for (id, vcpu) in (0..).map(VcpuId).zip(&mut machine.vcpus) {
        if !rereads {
            vcpu.debug_exit = crate::DebugExit::default();
        }
        if !running.contains(&Some(id)) {
            // An entry starts it anew.
            vcpu.loaded = 0;
        }
    }
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
    let contexts = std::mem::take(&mut machine.contexts);
    machine.contexts = order.iter().map(|id| contexts[id.index()].clone()).collect();
    for task in &mut machine.tasks {
        task.context = task.context.map(new);
    }
    for cpu in &mut machine.cpus {
        cpu.task_context = cpu.task_context.map(new);
    }
    for counter in &mut machine.counters {
        // A context that nobody mentions any more has no counter that is scheduled.
        counter.context = counter.context.and_then(|old| order.contains(&old).then(|| new(old)));
    }
    for context in &mut machine.contexts {
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
    for context in &machine.contexts {
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
    let counters = std::mem::take(&mut machine.counters);
    machine.counters = order.iter().map(|id| counters[id.index()]).collect();
    for counter in &mut machine.counters {
        counter.leader = counter.leader.map(new);
        counter.origin = match counter.origin {
            Origin::Inherited(of) => Origin::Inherited(new(of)),
            Origin::Wide(of) => Origin::Wide(new(of)),
            other => other,
        };
    }
    for context in &mut machine.contexts {
        context.rename_counters(new);
    }
    for task in &mut machine.tasks {
        task.descriptors.iter_mut().for_each(|id| *id = new(*id));
        for id in task.ptrace_bps.iter_mut().chain(&mut task.thread.owner).flatten() {
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

fn rename_addresses(machine: &mut Machine, scope: &Scope) -> Vec<u64> {
    let mut old: Vec<u64> = Vec::with_capacity(scope.addresses);
    machine.each_address(&mut |address| {
        if scope.number(*address).is_none() {
            return;
        }
        let at = old.iter().position(|known| known == address).unwrap_or_else(|| {
            old.push(*address);
            old.len() - 1
        });
        *address = Scope::address(at);
    });
    let rest: Vec<u64> = scope.all_addresses().filter(|address| !old.contains(address)).collect();
    old.extend(rest);
    old
}

impl Machine {
    /// Every address that it knows, in a fixed order.
    fn each_address(&mut self, f: &mut impl FnMut(&mut u64)) {
        for cpu in &mut self.cpus {
            cpu.bank.address.iter_mut().for_each(&mut *f);
            cpu.bank.hardware.dr.iter_mut().for_each(&mut *f);
        }
        for counter in &mut self.counters {
            f(&mut counter.attr.bp_addr);
            f(&mut counter.info.address);
        }
        for task in &mut self.tasks {
            task.thread.dr.iter_mut().for_each(&mut *f);
        }
        self.debugger.each_address(f);
        for vcpu in &mut self.vcpus {
            let registers = [&mut vcpu.own, &mut vcpu.vmsa, &mut vcpu.saved];
            for registers in registers {
                registers.dr.iter_mut().for_each(&mut *f);
            }
            for dr in [&mut vcpu.db, &mut vcpu.eff_db, &mut vcpu.debug.dr] {
                dr.iter_mut().for_each(&mut *f);
            }
        }
    }
}
