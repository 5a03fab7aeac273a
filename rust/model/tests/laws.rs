//! Laws of the machine under random events: what is armed is what was asked for, a guest reads what it wrote, a refusal
//! and a mistake change nothing, and the slot rule is the reference's formula.
//!
//! What was asked for is kept in a [`Ledger`], from events and outcomes alone. Kernels that break a law by a documented
//! bug, and states that the reference documents as broken, are left out by name: see [`Walk::documented`].

use std::collections::BTreeMap;

use debugreg::trip::{Access, What};
use debugreg::{Breakpoint, Dr7, Kind, Length, Registers, Slot};
use debugreg_model::policy::{HostHalf, NAMED};
use debugreg_model::scenario::{parse, run};
use debugreg_model::{
    Attr, BpType, Capabilities, Changes, CounterId, CpuId, Delta, DrAccess, Errno, Event, ExitReason, GuestDebug,
    Holder, Machine, Nmi, Options, Outcome, Policy, Probe, State, TaskId, VcpuId, Vector, Vendor,
};
use proptest::prelude::*;

const CPUS: u32 = 2;
/// Forks included.
const TASKS: usize = 6;

/// One step of a walk. Numbers choose among what there is when its turn comes.
#[derive(Clone, Debug)]
enum Op {
    Open { by: usize, target: usize, cpu: Option<u32>, of_task: bool, attr: Attr },
    Close(usize),
    Enable(usize),
    Disable(usize),
    Modify(usize, Changes),
    Switch { cpu: u32, next: usize },
    Migrate(usize, u32),
    Fork(usize),
    Exec(usize),
    Exit(usize),
    Attach(usize, usize),
    Detach(usize, usize),
    Poke { tracer: usize, tracee: usize, dr: u8, value: u64 },
    Touch { task: usize, access: Access, kernel: bool },
    Nmi(u32, Nmi),
    Refresh(u32),
    Entry(u32),
    Leave(u32, ExitReason),
    Guest { vcpu: u32, access: Access, emulated: bool },
    Write { vcpu: u32, dr: u8, value: u64 },
    Read { vcpu: u32, dr: u8 },
    Debug(u32, GuestDebug),
    Set { vcpu: u32, dr: [Option<u64>; 4], dr7: Option<u64> },
    Init(u32),
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![4 => Just(0x1000), 2 => Just(0x1008), 2 => Just(0x2000), 1 => Just(0x2001), 1 => Just(0u64)]
}

fn attr() -> impl Strategy<Value = Attr> {
    let bp_type = prop_oneof![
        6 => Just(BpType::W), 2 => Just(BpType::Rw), 2 => Just(BpType::X), 1 => Just(BpType::R)
    ];
    let bp_len = prop_oneof![8 => Just(8u64), 2 => Just(1u64), 1 => Just(4u64), 1 => Just(3u64)];
    let flags = (any::<bool>(), prop::bool::weighted(0.3), any::<bool>(), prop::bool::weighted(0.2));
    (bp_type, address(), bp_len, flags).prop_map(|(bp_type, bp_addr, bp_len, (pinned, disabled, inherit, user))| Attr {
        bp_type,
        bp_addr,
        bp_len,
        pinned,
        disabled,
        inherit,
        exclude_user: user,
        exclude_kernel: !user,
    })
}

fn changes() -> impl Strategy<Value = Changes> {
    let bp_type = prop::option::of(prop_oneof![Just(BpType::W), Just(BpType::Rw), Just(BpType::R)]);
    let bp_len = prop::option::weighted(0.3, prop_oneof![Just(8u64), Just(1u64), Just(3u64)]);
    let disabled = prop::option::weighted(0.3, any::<bool>());
    let pinned = prop::option::weighted(0.2, any::<bool>());
    (bp_type, prop::option::of(address()), bp_len, disabled, pinned).prop_map(
        |(bp_type, bp_addr, bp_len, disabled, pinned)| Changes {
            bp_type,
            bp_addr,
            bp_len,
            disabled,
            pinned,
            ..Changes::default()
        },
    )
}

/// Values of DR7 that a guest or a debugger may load: Z-5 and Z-7 (bits that the hardware does not have, stored raw by
/// KVM's ioctls) are left out.
fn dr7() -> impl Strategy<Value = u64> {
    let enables = prop_oneof![Just(0u64), Just(0x1), Just(0x2), Just(0x5), Just(0x50), Just(0xaa), 0..0x100u64];
    let fields = prop_oneof![Just(0x9999_0000u64), Just(0x1111_0000), Just(0xdf90_0000), Just(0)];
    let exact = prop_oneof![4 => Just(0u64), 1 => Just(Dr7::GE)];
    (enables, fields, exact).prop_map(|(enables, fields, exact)| enables | fields | exact | Dr7::FIXED)
}

fn access() -> impl Strategy<Value = Access> {
    let what = prop_oneof![Just(What::Store), Just(What::Load), Just(What::Execute)];
    (what, address(), prop_oneof![Just(1u64), Just(8)]).prop_map(|(what, address, bytes)| Access {
        what,
        address,
        bytes,
    })
}

fn guest_debug() -> impl Strategy<Value = GuestDebug> {
    let control = prop_oneof![
        2 => Just(0),
        3 => Just(GuestDebug::ENABLE | GuestDebug::USE_HW_BP),
        1 => Just(GuestDebug::ENABLE | GuestDebug::USE_SW_BP),
        1 => Just(GuestDebug::ENABLE),
        1 => Just(GuestDebug::USE_HW_BP),
        1 => Just(GuestDebug::INJECT_DB),
    ];
    (control, [address(), address(), address(), address()], dr7()).prop_map(|(control, dr, dr7)| GuestDebug {
        control,
        dr,
        dr7,
    })
}

fn host_op() -> impl Strategy<Value = Op> {
    let task = || 0..TASKS;
    let cpu = || 0..CPUS;
    let ptrace_value = prop_oneof![
        4 => address(),
        1 => Just(0xffff_8000_0000_0000u64),
        2 => Just(0x1),
        2 => Just(0x000d_0001),
        1 => Just(0x9999_0055),
        1 => Just(0x0002_0001),
        1 => Just(0x0111_0015),
    ];
    let kgdb = prop_oneof![
        2 => Just(Nmi::Plain),
        1 => (0..4u8).prop_map(Nmi::KgdbAnnounce),
        2 => (0..4u8).prop_map(Nmi::KgdbRelease),
    ];
    prop_oneof![
        10 => (task(), task(), prop::option::of(cpu()), any::<bool>(), attr())
            .prop_map(|(by, target, cpu, of_task, attr)| Op::Open { by, target, cpu, of_task, attr }),
        4 => any::<usize>().prop_map(Op::Close),
        3 => any::<usize>().prop_map(Op::Enable),
        3 => any::<usize>().prop_map(Op::Disable),
        3 => (any::<usize>(), changes()).prop_map(|(at, changes)| Op::Modify(at, changes)),
        12 => (cpu(), 0..=TASKS).prop_map(|(cpu, next)| Op::Switch { cpu, next }),
        2 => (task(), cpu()).prop_map(|(task, cpu)| Op::Migrate(task, cpu)),
        3 => task().prop_map(Op::Fork),
        1 => task().prop_map(Op::Exec),
        1 => task().prop_map(Op::Exit),
        2 => (task(), task()).prop_map(|(tracer, tracee)| Op::Attach(tracer, tracee)),
        1 => (task(), task()).prop_map(|(tracer, tracee)| Op::Detach(tracer, tracee)),
        4 => (task(), task(), prop_oneof![0..4u8, Just(7u8), Just(7), Just(6)], ptrace_value)
            .prop_map(|(tracer, tracee, dr, value)| Op::Poke { tracer, tracee, dr, value }),
        3 => (task(), access(), any::<bool>()).prop_map(|(task, access, kernel)| Op::Touch { task, access, kernel }),
        2 => (cpu(), kgdb).prop_map(|(cpu, nmi)| Op::Nmi(cpu, nmi)),
        1 => cpu().prop_map(Op::Refresh),
    ]
}

fn guest_op() -> impl Strategy<Value = Op> {
    let vcpu = || 0..2u32;
    let reason = prop_oneof![
        4 => Just(ExitReason::Other("io")),
        1 => Just(ExitReason::Fastpath),
        2 => Just(ExitReason::DrAccess(DrAccess { dr: 7, write: None })),
    ];
    prop_oneof![
        8 => vcpu().prop_map(Op::Entry),
        8 => (vcpu(), reason).prop_map(|(vcpu, reason)| Op::Leave(vcpu, reason)),
        4 => (vcpu(), access(), prop::bool::weighted(0.2))
            .prop_map(|(vcpu, access, emulated)| Op::Guest { vcpu, access, emulated }),
        4 => (vcpu(), 0..4u8, address()).prop_map(|(vcpu, dr, value)| Op::Write { vcpu, dr, value }),
        4 => (vcpu(), dr7()).prop_map(|(vcpu, value)| Op::Write { vcpu, dr: 7, value }),
        1 => vcpu().prop_map(|vcpu| Op::Write { vcpu, dr: 7, value: Dr7::GD | Dr7::FIXED }),
        1 => vcpu().prop_map(|vcpu| Op::Write { vcpu, dr: 7, value: 1 << 32 }),
        2 => (vcpu(), 0..9u8).prop_map(|(vcpu, dr)| Op::Read { vcpu, dr }),
        3 => (vcpu(), guest_debug()).prop_map(|(vcpu, debug)| Op::Debug(vcpu, debug)),
        2 => (vcpu(), [(); 4].map(|()| prop::option::of(address())), prop::option::of(dr7()))
            .prop_map(|(vcpu, dr, dr7)| Op::Set { vcpu, dr, dr7 }),
        1 => vcpu().prop_map(Op::Init),
    ]
}

fn walk() -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(prop_oneof![3 => host_op(), 2 => guest_op()], 1..80)
}

/// No guests: deeper into perf.
fn host_walk() -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(host_op(), 20..80)
}

fn options() -> impl Strategy<Value = Options> {
    let vendor = prop_oneof![Just(Vendor::Amd), Just(Vendor::Intel)];
    (vendor, any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(vendor, hypervisor, fred, disabled_match)| {
        Options { cpus: CPUS as usize, vendor, hypervisor, fred, disabled_match, ..Options::default() }
    })
}

fn policies(host: HostHalf) -> impl Strategy<Value = Policy> {
    let names: Vec<_> = NAMED.iter().filter(|named| named.host == host).map(|named| named.name).collect();
    prop::sample::select(names).prop_map(|name| Policy::parse(name).expect("named"))
}

/// A counter as its owner knows it.
#[derive(Clone, Debug)]
struct Asked {
    attr: Attr,
    cpu: Option<CpuId>,
    /// The tasks that have it or a copy of it; `None` for a counter of a CPU.
    tasks: Option<Vec<TaskId>>,
    enabled: bool,
    /// The tasks that have a descriptor.
    descriptors: Vec<TaskId>,
}

/// What was asked for: a second, plainer account of it, to disagree with.
#[derive(Clone, Debug, Default)]
struct Ledger {
    counters: BTreeMap<u32, Asked>,
    /// DR0-DR3 and DR7 of tracers, as last accepted.
    traced: BTreeMap<u32, ([u64; 4], u64)>,
    /// DR0-DR3 and DR7 of guests, as they themselves or their VMM wrote them.
    guests: [Guest; 2],
}

#[derive(Clone, Debug)]
struct Guest {
    dr: [u64; 4],
    dr7: u64,
    /// A debugger's #DB waits for the next entry.
    injected: bool,
}

impl Default for Guest {
    fn default() -> Guest {
        Guest { dr: [0; 4], dr7: Dr7::FIXED, injected: false }
    }
}

impl Ledger {
    fn record(&mut self, event: &Event, outcome: &Outcome) {
        match (event, outcome) {
            (&Event::PerfEventOpen { by, attr, task, cpu }, Outcome::Bound(id)) => {
                let tasks = task.map(|task| vec![task]);
                self.counters.insert(id.0, Asked { attr, cpu, tasks, enabled: !attr.disabled, descriptors: vec![by] });
            }
            (Event::Close(id), _) => drop(self.counters.remove(&id.0)),
            (Event::Enable(id), _) => self.counter(*id).enabled = true,
            (Event::Disable(id), _) => self.counter(*id).enabled = false,
            (Event::Modify(id, changes), _) => {
                let asked = self.counter(*id);
                if *outcome == Outcome::Ok {
                    asked.attr.bp_type = changes.bp_type.unwrap_or(asked.attr.bp_type);
                    asked.attr.bp_addr = changes.bp_addr.unwrap_or(asked.attr.bp_addr);
                    asked.attr.bp_len = changes.bp_len.unwrap_or(asked.attr.bp_len);
                    asked.attr.disabled = changes.disabled.unwrap_or(asked.attr.disabled);
                }
                // Accepted or not, what is left is what attr.disabled says (M7).
                asked.enabled = !asked.attr.disabled;
            }
            (Event::Fork { parent, child }, Outcome::Ok) => {
                for asked in self.counters.values_mut() {
                    if asked.descriptors.contains(parent) {
                        asked.descriptors.push(*child);
                    }
                    if let Some(tasks) =
                        asked.tasks.as_mut().filter(|tasks| asked.attr.inherit && tasks.contains(parent))
                    {
                        tasks.push(*child);
                    }
                }
            }
            (Event::Exec(task), _) => drop(self.traced.remove(&task.0)),
            (Event::Exit(task), _) => self.exit(*task),
            (Event::PtracePoke { tracee, dr, value, .. }, Outcome::Ok) => {
                let (addresses, control) = self.traced.entry(tracee.0).or_default();
                match *dr {
                    7 => *control = *value,
                    dr if dr < 4 => addresses[usize::from(dr)] = *value,
                    _ => {}
                }
            }
            _ => {}
        }
    }

    fn record_guest(&mut self, event: &Event, outcome: &Outcome) {
        let (&Event::MovToDr { vcpu, .. }
        | &Event::MovFromDr { vcpu, .. }
        | &Event::GuestAccess { vcpu, .. }
        | &Event::SetDebugregs { vcpu, .. }
        | &Event::SetGuestDebug(vcpu, _)
        | &Event::VmEntry(vcpu)
        | &Event::Init(vcpu)) = event
        else {
            return;
        };
        let guest = &mut self.guests[vcpu.index()];
        match (event, outcome) {
            // Every #DB that is delivered clears GD.
            (_, Outcome::Exception { vector: Vector::Debug, .. }) => guest.dr7 &= !Dr7::GD,
            (&Event::MovToDr { dr: dr @ 0..=3, value, .. }, Outcome::Ok) => guest.dr[usize::from(dr)] = value,
            (&Event::MovToDr { dr: 7, value, .. }, Outcome::Ok) => guest.dr7 = value,
            (&Event::SetDebugregs { dr, dr7, .. }, Outcome::Ok) => {
                for (has, value) in guest.dr.iter_mut().zip(dr) {
                    *has = value.unwrap_or(*has);
                }
                guest.dr7 = dr7.unwrap_or(guest.dr7);
            }
            (Event::SetGuestDebug(_, debug), Outcome::Ok) => {
                guest.injected |= debug.control & GuestDebug::INJECT_DB != 0;
            }
            (Event::VmEntry(_), Outcome::Ok) if guest.injected => {
                guest.injected = false;
                guest.dr7 &= !Dr7::GD;
            }
            (Event::Init(_), Outcome::Ok) => *guest = Guest { injected: guest.injected, ..Guest::default() },
            _ => {}
        }
    }

    fn counter(&mut self, id: CounterId) -> &mut Asked {
        self.counters.get_mut(&id.0).expect("an open counter")
    }

    /// A task's counters end with it; one whose last descriptor it had is closed.
    fn exit(&mut self, task: TaskId) {
        self.traced.remove(&task.0);
        for asked in self.counters.values_mut() {
            asked.descriptors.retain(|&holder| holder != task);
            if let Some(tasks) = &mut asked.tasks {
                tasks.retain(|&holder| holder != task);
            }
        }
        self.counters.retain(|_, asked| !asked.descriptors.is_empty());
    }

    /// What should be armed on a CPU that runs a task.
    fn owed(&self, cpu: CpuId, running: TaskId) -> Vec<Breakpoint> {
        let mut owed = Vec::new();
        for Asked { attr, cpu: bound, tasks, enabled, .. } in self.counters.values() {
            let here = bound.is_none_or(|bound| bound == cpu);
            if *enabled && here && tasks.as_ref().is_none_or(|tasks| tasks.contains(&running)) {
                let (kind, length) = match attr.bp_type {
                    BpType::X => (Kind::Execute, Some(Length::One)),
                    BpType::W => (Kind::Write, Length::from_bytes(attr.bp_len)),
                    BpType::Rw | BpType::R => (Kind::ReadWrite, Length::from_bytes(attr.bp_len)),
                };
                owed.push(Breakpoint { address: attr.bp_addr, kind, length: length.expect("it was accepted") });
            }
        }
        if let Some((addresses, control)) = self.traced.get(&running.0) {
            let control = Dr7(*control);
            let enabled = Slot::ALL.into_iter().filter(|&slot| control.is_armed(slot));
            owed.extend(enabled.map(|slot| control.breakpoint(slot, addresses[slot.index()])));
        }
        owed.sort_by_key(|bp| (bp.address, bp.kind.bits(), bp.length.bits()));
        owed
    }
}

/// A machine with three tasks and two vCPUs, and what has happened to it.
struct Walk {
    machine: Machine,
    ledger: Ledger,
    tasks: Vec<TaskId>,
    unborn: Option<TaskId>,
    counters: Vec<CounterId>,
    /// A child has inherited a counter, and a task has exited: what M1 is made of.
    inherited: bool,
    exited: bool,
}

impl Walk {
    fn new(options: Options, policy: Policy) -> Walk {
        let mut machine = Machine::new(options, policy);
        let task = |machine: &mut Machine, cpu| machine.add_task(CpuId(cpu), Capabilities::Root);
        let tasks = vec![task(&mut machine, 0), task(&mut machine, 1), task(&mut machine, 0)];
        machine.add_vcpu(tasks[0]);
        machine.add_vcpu(tasks[1]);
        let (ledger, counters) = (Ledger::default(), Vec::new());
        Walk { machine, ledger, tasks, unborn: None, counters, inherited: false, exited: false }
    }

    fn task(&self, at: usize) -> TaskId {
        self.tasks[at % self.tasks.len()]
    }

    fn counter(&self, at: usize) -> Option<CounterId> {
        (!self.counters.is_empty()).then(|| self.counters[at % self.counters.len()])
    }

    /// The event that an op comes to, if it comes to one.
    fn event(&mut self, op: &Op) -> Option<Event> {
        Some(match *op {
            Op::Open { by, target, cpu, of_task, attr } => {
                let task = (of_task || cpu.is_none()).then(|| self.task(target));
                Event::PerfEventOpen { by: self.task(by), attr, task, cpu: cpu.map(CpuId) }
            }
            Op::Close(at) => Event::Close(self.counter(at)?),
            Op::Enable(at) => Event::Enable(self.counter(at)?),
            Op::Disable(at) => Event::Disable(self.counter(at)?),
            Op::Modify(at, changes) => Event::Modify(self.counter(at)?, changes),
            Op::Switch { cpu, next } => {
                // A task of this CPU, or idle.
                let here: Vec<_> =
                    self.tasks.iter().copied().filter(|&task| self.machine.task(task).cpu == CpuId(cpu)).collect();
                let next = if next == TASKS || here.is_empty() { TaskId::IDLE } else { here[next % here.len()] };
                Event::SchedSwitch(CpuId(cpu), next)
            }
            Op::Migrate(task, cpu) => Event::Migrate(self.task(task), CpuId(cpu)),
            Op::Fork(task) => {
                if self.tasks.len() == TASKS {
                    return None;
                }
                let parent = self.task(task);
                // The place of a child that was refused is the next one's.
                let machine = &mut self.machine;
                let child = *self.unborn.get_or_insert_with(|| machine.add_sleeping_task(CpuId(0), Capabilities::Root));
                Event::Fork { parent, child }
            }
            Op::Exec(task) => Event::Exec(self.task(task)),
            Op::Exit(task) => Event::Exit(self.task(task)),
            Op::Attach(tracer, tracee) => Event::Attach { tracer: self.task(tracer), tracee: self.task(tracee) },
            Op::Detach(tracer, tracee) => Event::Detach { tracer: self.task(tracer), tracee: self.task(tracee) },
            Op::Poke { tracer, tracee, dr, value } => {
                // Mostly by the one who may.
                let tracee = self.task(tracee);
                let tracer = self.machine.task(tracee).tracer.unwrap_or_else(|| self.task(tracer));
                Event::PtracePoke { tracer, tracee, dr, value }
            }
            Op::Touch { task, access, kernel } => Event::TaskAccess { task: self.task(task), access, kernel },
            Op::Nmi(cpu, nmi) => Event::Nmi(CpuId(cpu), nmi),
            Op::Refresh(cpu) => Event::Refresh(CpuId(cpu)),
            Op::Entry(vcpu) => Event::VmEntry(VcpuId(vcpu)),
            Op::Leave(vcpu, reason) => Event::VmExit(VcpuId(vcpu), reason),
            Op::Guest { vcpu, access, emulated } => Event::GuestAccess { vcpu: VcpuId(vcpu), access, emulated },
            Op::Write { vcpu, dr, value } => Event::MovToDr { vcpu: VcpuId(vcpu), dr, value, cpl: 0 },
            Op::Read { vcpu, dr } => Event::MovFromDr { vcpu: VcpuId(vcpu), dr, cpl: 0 },
            Op::Debug(vcpu, debug) => Event::SetGuestDebug(VcpuId(vcpu), debug),
            Op::Set { vcpu, dr, dr7 } => Event::SetDebugregs { vcpu: VcpuId(vcpu), dr, dr6: None, dr7 },
            Op::Init(vcpu) => Event::Init(VcpuId(vcpu)),
        })
    }

    /// Whether the reference documents that an event breaks a law here.
    fn documented(&self, event: &Event) -> Option<&'static str> {
        let has = |delta| self.machine.policy.has(delta);
        match *event {
            Event::SetGuestDebug(vcpu, _) if self.machine.vcpu(vcpu).wont_exit => Some(
                "Z-1: a debugger attaches while the window is open; the next exit stores its registers as the guest's",
            ),
            Event::Init(_) if has(Delta::H11) || has(Delta::H13) => {
                Some("H-11, H-13: INIT left the old addresses to be loaded, and took the debugger's DR7 away")
            }
            Event::MovToDr { dr: 7, value, .. } if value & Dr7::GD != 0 && has(Delta::H15) => {
                Some("H-15: GD survives the #DB that KVM injects again")
            }
            Event::Modify(id, _)
                if self.machine.policy.host == HostHalf::Perf && self.leaves_copies_apart(id, event) =>
            {
                Some("M7 and 7.3: a refused change stops or starts the original, no copy; a swap exchanges the two")
            }
            _ => None,
        }
    }

    /// Whether a change is refused of a counter that has copies, and whose own state is not what attr.disabled says.
    fn leaves_copies_apart(&self, id: CounterId, event: &Event) -> bool {
        let refused = matches!(self.machine.clone().apply(event, &mut ()), Ok(Outcome::Refused(_)));
        let asked = self.ledger.counters.get(&id.0);
        refused && asked.is_some_and(|asked| asked.attr.inherit && asked.enabled == asked.attr.disabled)
    }

    /// Performs an op. `None` if it came to nothing.
    fn perform(&mut self, op: &Op) -> Result<Option<Outcome>, TestCaseError> {
        let Some(event) = self.event(op) else { return Ok(None) };
        if self.documented(&event).is_some() {
            return Ok(None);
        }
        let opens = matches!(event, Event::PerfEventOpen { .. });
        let before = self.machine.clone();
        match self.machine.apply(&event, &mut ()) {
            Err(misuse) => {
                let (before, after) = (format!("{before:?}"), format!("{:?}", self.machine));
                prop_assert_eq!(before, after, "{} of {:?} changed something", misuse, event);
                Ok(None)
            }
            Ok(outcome) => {
                self.ledger.record(&event, &outcome);
                self.ledger.record_guest(&event, &outcome);
                match (&event, &outcome) {
                    (_, Outcome::Bound(counter)) => self.counters.push(*counter),
                    (_, Outcome::Refused(_)) if opens => {
                        let (before, after) = (format!("{before:?}"), format!("{:?}", self.machine));
                        prop_assert_eq!(without_clock(&before), without_clock(&after), "refused: {:?}", event);
                    }
                    (Event::Fork { child, .. }, Outcome::Ok) => {
                        self.tasks.push(*child);
                        self.unborn = None;
                        self.inherited = true;
                    }
                    (Event::Exit(_), Outcome::Ok) => self.exited = true,
                    // Nobody catches the SIGTRAP: the task has exited (M6).
                    (Event::TaskAccess { task, .. }, Outcome::Hits { sigtrap: Some(_), .. })
                        if before.task(*task).tracer.is_none() =>
                    {
                        self.exited = true;
                        self.ledger.exit(*task);
                    }
                    _ => {}
                }
                Ok(Some(outcome))
            }
        }
    }

    /// M1: a context that changed hands has brought more counters to a CPU than it has registers. What is armed is part
    /// of what is owed, and for the rest of the walk nothing can be said: a flexible counter that found no register
    /// waits for the next scheduling point.
    fn is_over_committed(&self) -> Result<bool, TestCaseError> {
        for cpu in (0..CPUS).map(CpuId) {
            let announced = self.machine.slots(cpu).iter().filter(|&&holder| holder == Holder::Kgdb).count();
            let mut owed = self.machine.owed(cpu);
            if self.machine.cpu(cpu).guest.is_none() && owed.len() + announced > 4 {
                prop_assert!(self.inherited && self.exited, "over-committed without M1");
                for armed in self.machine.armed(cpu) {
                    let at = owed.iter().position(|bp| *bp == armed);
                    prop_assert!(at.is_some(), "{:?} is armed and not owed", armed);
                    owed.swap_remove(at.expect("just found"));
                }
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn check(&self, op: &Op) -> Result<(), TestCaseError> {
        let machine = &self.machine;
        let mut placed = Vec::new();
        for cpu in (0..CPUS).map(CpuId) {
            prop_assert_eq!(machine.armed(cpu), machine.owed(cpu), "cpu{} after {:?}", cpu.0, op);
            for holder in machine.slots(cpu) {
                if let Holder::Counter(id) = holder {
                    prop_assert_eq!(
                        machine.counter(id).state,
                        State::Active,
                        "in a slot of cpu{} after {:?}",
                        cpu.0,
                        op
                    );
                    prop_assert!(machine.counter(id).fits(cpu));
                    prop_assert!(!placed.contains(&id), "{:?} twice", id);
                    placed.push(id);
                }
            }
            if let Some(guest) = machine.cpu(cpu).guest {
                self.check_reads(guest, op)?;
            } else {
                let asked = self.ledger.owed(cpu, machine.cpu(cpu).running);
                prop_assert_eq!(machine.armed(cpu), asked, "what was asked for of cpu{} after {:?}", cpu.0, op);
                // The shadow says what the hardware does (INV1 to INV3).
                let registers = shadow(machine, cpu);
                let hardware = machine.cpu(cpu).bank.hardware;
                prop_assert_eq!(Dr7(registers.dr7).any_armed(), Dr7(hardware.dr7).any_armed());
                prop_assert!(registers.armed().eq(hardware.armed()), "the shadow of cpu{} after {:?}", cpu.0, op);
            }
        }
        for &id in &self.counters {
            let active = machine.counter(id).state == State::Active;
            prop_assert_eq!(active, placed.contains(&id), "{:?} is {:?}", id, machine.counter(id).state);
        }
        Ok(())
    }

    /// A guest reads its own registers, whoever owns the hardware. Asked of a copy: asking may open the window.
    fn check_reads(&self, guest: VcpuId, op: &Op) -> Result<(), TestCaseError> {
        let vcpu = self.machine.vcpu(guest);
        let Guest { dr, dr7, .. } = self.ledger.guests[guest.index()];
        prop_assert_eq!((vcpu.own.dr, vcpu.own.dr7), (dr, dr7), "{:?} after {:?}", guest, op);
        if vcpu.effective().dr7 & Dr7::GD != 0 {
            return Ok(()); // Each read would be a #DB.
        }
        for (number, own) in (0..).zip(dr).chain([(7, dr7)]) {
            let read = Event::MovFromDr { vcpu: guest, dr: number, cpl: 0 };
            let told = self.machine.clone().apply(&read, &mut ());
            prop_assert_eq!(told, Ok(Outcome::Value(own)), "DR{} of {:?} after {:?}", number, guest, op);
        }
        Ok(())
    }
}

/// Another event before one of the steps.
#[derive(Debug)]
struct Interruption {
    at: usize,
    event: Option<Event>,
}

impl Probe for Interruption {
    fn before(&mut self, machine: &mut Machine, _: CpuId) {
        self.at = self.at.saturating_sub(1);
        if self.at == 0
            && let Some(event) = self.event.take()
        {
            let _ = machine.apply(&event, &mut ());
        }
    }
}

fn shadow(machine: &Machine, cpu: CpuId) -> Registers {
    let told = machine.clone().apply(&Event::Registers(cpu), &mut ());
    let Ok(Outcome::Registers(registers)) = told else { unreachable!("registers come to registers") };
    registers
}

/// The machine's text without how many events there have been, which is its last field.
fn without_clock(text: &str) -> &str {
    text.rsplit_once(", clock: ").expect("the clock").0
}

/// `PROPTEST_CASES=30000 cargo test --release -p debugreg-model --test laws` for more.
fn config() -> ProptestConfig {
    let more = std::env::var_os("PROPTEST_CASES").is_some();
    if more { ProptestConfig::default() } else { ProptestConfig::with_cases(600) }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn what_is_armed_is_what_is_owed(policy in policies(HostHalf::Perf), options in options(), ops in walk()) {
        let mut walk = Walk::new(options, policy);
        for op in &ops {
            if walk.perform(op)?.is_some() {
                if walk.is_over_committed()? {
                    break;
                }
                walk.check(op)?;
            }
        }
    }

    /// The host half is the same under all of them.
    #[test]
    fn what_is_armed_is_what_is_owed_without_guests(options in options(), ops in host_walk()) {
        let mut walk = Walk::new(options, Policy::parse("linux").expect("named"));
        for op in &ops {
            if walk.perform(op)?.is_some() {
                if walk.is_over_committed()? {
                    break;
                }
                walk.check(op)?;
            }
        }
    }

    /// Up to 2.6.32 a switch leaves the last task's breakpoints armed, so only this much is promised.
    #[test]
    fn the_thread_half_takes_whatever_comes(policy in policies(HostHalf::Thread), options in options(), ops in walk()) {
        let mut walk = Walk::new(options, policy);
        for op in &ops {
            walk.perform(op)?;
        }
    }

    /// Whatever happens before whichever step, `@N` in a scenario: no panic. (What should come of it is the checker's.)
    #[test]
    fn an_interruption_is_survived(
        policy in prop_oneof![9 => policies(HostHalf::Perf), 1 => policies(HostHalf::Thread)],
        options in options(),
        ops in prop::collection::vec((prop_oneof![3 => host_op(), 2 => guest_op()], 1..16usize), 2..80),
    ) {
        let mut walk = Walk::new(options, policy);
        for pair in ops.windows(2) {
            let [(op, at), (inner, _)] = pair else { unreachable!("windows of two") };
            // Both would want the same place for their child.
            let event = if matches!(inner, Op::Fork(_)) { None } else { walk.event(inner) };
            let mut interruption = Interruption { at: *at, event };
            let Some(event) = walk.event(op) else { continue };
            let outcome = walk.machine.apply(&event, &mut interruption);
            match (event, outcome) {
                (_, Ok(Outcome::Bound(id))) => walk.counters.push(id),
                (Event::Fork { child, .. }, Ok(Outcome::Ok)) => {
                    walk.tasks.push(child);
                    walk.unborn = None;
                }
                _ => {}
            }
        }
    }

    /// Everything that is closed is gone: registers disarmed up to GE, and every slot to be had again.
    #[test]
    fn closing_everything_undoes_everything(policy in policies(HostHalf::Perf), options in options(), ops in walk()) {
        let mut walk = Walk::new(options, policy);
        for op in &ops {
            // kgdb's slots and a tracer's counters are not closed by anybody here.
            if !matches!(op, Op::Nmi(..) | Op::Attach(..)) {
                walk.perform(op)?;
            }
        }
        for vcpu in (0..2).map(VcpuId) {
            let _ = walk.machine.apply(&Event::VmExit(vcpu, ExitReason::Other("io")), &mut ());
        }
        for counter in walk.counters.clone() {
            let _ = walk.machine.apply(&Event::Close(counter), &mut ());
        }
        for cpu in (0..CPUS).map(CpuId) {
            prop_assert_eq!(walk.machine.slots(cpu), [Holder::Nobody; 4]);
            prop_assert!(!Dr7(walk.machine.cpu(cpu).bank.hardware.dr7).any_armed());
            prop_assert!(!walk.machine.breakpoints_active(cpu));
        }
        let by = walk.machine.add_task(CpuId(0), Capabilities::Root);
        for cpu in [0, 0, 0, 0, 1, 1, 1, 1].map(CpuId) {
            let open = Event::PerfEventOpen { by, attr: Attr::write(0x1000, 8), task: None, cpu: Some(cpu) };
            prop_assert!(matches!(walk.machine.apply(&open, &mut ()), Ok(Outcome::Bound(_))));
        }
    }

    /// Section 4 of the reference, counted once more from what was opened and closed.
    #[test]
    fn the_slot_rule_is_the_formula(
        slots in 1..=4usize,
        wishes in prop::collection::vec((0..3usize, 0..4u32, any::<bool>(), prop::bool::weighted(0.3)), 1..60),
    ) {
        let options = Options { cpus: CPUS as usize, slots, ..Options::default() };
        let mut walk = Walk::new(options, Policy::parse("linux").expect("named"));
        let mut open: Vec<(CounterId, Option<TaskId>, Option<CpuId>)> = Vec::new();
        for (who, wherever, of_task, close) in wishes {
            if close && !open.is_empty() {
                let (id, ..) = open.swap_remove(who % open.len());
                prop_assert_eq!(walk.machine.apply(&Event::Close(id), &mut ()), Ok(Outcome::Ok));
                continue;
            }
            let cpu = (wherever < CPUS).then_some(CpuId(wherever));
            let task = (of_task || cpu.is_none()).then(|| walk.tasks[who]);
            let on = |at: CpuId| move |cpu: Option<CpuId>| cpu.is_none_or(|cpu| cpu == at);
            let fits = |at: CpuId| {
                let bound = open.iter().filter(|(_, task, cpu)| task.is_none() && on(at)(*cpu)).count();
                let of = |wanted: TaskId| {
                    open.iter().filter(|(_, task, cpu)| *task == Some(wanted) && on(at)(*cpu)).count()
                };
                let tasks = match task {
                    Some(task) => of(task),
                    None => walk.tasks.iter().map(|&task| of(task)).max().unwrap_or(0),
                };
                bound + tasks < slots
            };
            let admitted = match cpu {
                Some(cpu) => fits(cpu),
                None => (0..CPUS).map(CpuId).all(fits),
            };
            let event = Event::PerfEventOpen { by: walk.tasks[0], attr: Attr::write(0x1000, 8), task, cpu };
            match walk.machine.apply(&event, &mut ()) {
                Ok(Outcome::Bound(id)) => {
                    prop_assert!(admitted, "{:?} was admitted", event);
                    open.push((id, task, cpu));
                }
                Ok(Outcome::Refused(refusal)) => {
                    prop_assert!(!admitted, "{:?} was refused", event);
                    prop_assert_eq!(refusal.errno, Errno::ENOSPC);
                    prop_assert!(!refusal.holders.is_empty());
                    prop_assert!(refusal.holders.iter().all(|holder| open.iter().any(|(id, ..)| id == holder)));
                }
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }
}

/// The shortest of what [`an_interruption_is_survived`] has found.
#[test]
fn a_counter_that_is_closed_inside_a_reschedule_is_survived() {
    for step in 1..40 {
        let text = format!(
            "machine policy=linux\ntask sh\n\
             sh perf_event_open bp_type=w bp_addr=0x1000 bp_len=8 => A\n\
             sh perf_event_open bp_type=w bp_addr=0x2000 bp_len=8 => B\n\
             sh perf_event_open bp_type=w bp_addr=0x3000 bp_len=8 pinned @{step} B close => C\n"
        );
        let scenario = parse(&text).expect("valid");
        let report = run(&scenario, Policy::parse("linux").expect("named"), None, false);
        assert!(report.is_ok_and(|report| report.ok) || step > 28, "@{step}");
    }
}

#[test]
fn nothing_set_costs_nothing() {
    for policy in NAMED.iter().filter(|named| named.name != "linux-2.6.30") {
        for vendor in [Vendor::Amd, Vendor::Intel] {
            let options = Options { cpus: CPUS as usize, vendor, ..Options::default() };
            let mut walk = Walk::new(options, Policy::parse(policy.name).expect("named"));
            let [qemu, _, sh] = walk.tasks[..] else { unreachable!("three tasks") };
            let vcpu = VcpuId(0);
            let round = [
                Event::VmEntry(vcpu),
                Event::VmExit(vcpu, ExitReason::Other("io")),
                Event::SchedSwitch(CpuId(0), sh),
                Event::SchedSwitch(CpuId(0), TaskId::IDLE),
                Event::SchedSwitch(CpuId(0), qemu),
            ];
            for event in round.iter().cycle().take(50) {
                assert_eq!(walk.machine.apply(event, &mut ()), Ok(Outcome::Ok));
            }
            let cost = walk.machine.cost();
            assert_eq!((cost.touched(), cost.vm_exits, cost.skips), (0, 0, 50), "{} {}", policy.name, vendor.name());
        }
    }
}
