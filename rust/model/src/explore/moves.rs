//! What can happen in a state: the events of a scope, in a fixed order.

use debugreg::trip::{Access, What};
use debugreg::{Dr6, Dr7, Enable, Kind as BpKind, Length, Slot};

use super::scope::{Kind, Scope};
use crate::counter::{Attr, BpType, Changes};
use crate::event::{Event, ExitReason, GuestDebug, Insn, Kgdb, Nmi, Scope as On};
use crate::machine::Machine;
use crate::{CounterId, CpuId, Life, Origin, TaskId, VcpuId};

/// An event, and of which kind it is.
pub(super) type Move = (Kind, Event);

/// Of whom it is that something happens to.
#[derive(Copy, Clone, Debug)]
pub(super) enum Group {
    Cpu(CpuId),
    Task(TaskId),
    Counters,
    Vcpu(VcpuId),
}

/// All of them, in order.
pub(super) fn groups(scope: &Scope) -> Vec<Group> {
    let cpus = (0..scope.options.cpus).map(|cpu| Group::Cpu(CpuId::from(cpu)));
    let tasks = scope.all_tasks().chain(scope.child()).map(Group::Task);
    let vcpus = (0..scope.vcpus).map(|vcpu| Group::Vcpu(VcpuId::from(vcpu)));
    cpus.chain(tasks).chain([Group::Counters]).chain(vcpus).collect()
}

/// Everything that can happen between two events. Some of it may make no sense after all ([`crate::Misuse`]).
pub(super) fn moves(machine: &Machine, scope: &Scope) -> Vec<Move> {
    groups(scope).into_iter().flat_map(|group| of_group(machine, scope, group)).collect()
}

/// What can happen to one of them.
pub(super) fn of_group(machine: &Machine, scope: &Scope, group: Group) -> Vec<Move> {
    let mut moves = Moves { machine, scope, list: Vec::new() };
    match group {
        Group::Cpu(cpu) => moves.of_cpu(cpu),
        Group::Task(task) if machine.task(task).life == Life::Alive => moves.of_task(task),
        Group::Task(_) => {}
        Group::Counters => moves.of_counters(),
        Group::Vcpu(vcpu) if machine.guest_runs(vcpu) => moves.of_guest(vcpu),
        Group::Vcpu(vcpu) => moves.of_vmm(vcpu),
    }
    moves.list
}

/// What an NMI on a CPU can do.
pub(super) fn nmis(machine: &Machine, scope: &Scope, cpu: CpuId) -> Vec<Nmi> {
    let mut nmis = Vec::new();
    if scope.nmis.kgdb {
        for address in scope.all_addresses() {
            let set = machine.kgdb_breakpoints(cpu).any(|(_, bp)| bp.address == address);
            nmis.push(if set { Nmi::KgdbClear(address) } else { Nmi::KgdbSet(BpType::W, address, 8) });
        }
    }
    if scope.nmis.announce {
        for slot in Slot::ALL.into_iter().take(scope.options.slots) {
            let index = slot.index() as u8;
            let announced = machine.is_announced(cpu, slot);
            nmis.push(if announced { Nmi::KgdbRelease(index) } else { Nmi::KgdbAnnounce(index) });
        }
    }
    nmis
}

/// What another CPU can do while this one is inside an event.
pub(super) fn races(machine: &Machine, scope: &Scope, cpu: CpuId) -> Vec<Event> {
    let all = moves(machine, scope).into_iter().map(|(_, event)| event);
    all.filter(|event| match *event {
        Event::SchedSwitch(of, _) => of != cpu,
        Event::TaskAccess { task, .. } => machine.task(task).cpu != cpu,
        Event::VmEntry(vcpu) | Event::VmExit(vcpu, _) => machine.task(machine.thread(vcpu)).cpu != cpu,
        Event::Enable(id) | Event::Disable(id) | Event::Close(id) => machine.runs_on(id).is_some_and(|of| of != cpu),
        _ => false,
    })
    .collect()
}

/// A debugger that has the registers, and one that steps.
const HW: u32 = GuestDebug::ENABLE | GuestDebug::USE_HW_BP;
const STEP: u32 = GuestDebug::ENABLE | GuestDebug::SINGLESTEP;

struct Moves<'a> {
    machine: &'a Machine,
    scope: &'a Scope,
    list: Vec<Move>,
}

impl Moves<'_> {
    fn has(&self, kind: Kind) -> bool {
        self.scope.kinds.has(kind)
    }

    fn add(&mut self, kind: Kind, event: Event) {
        if self.has(kind) {
            self.list.push((kind, event));
        }
    }

    fn cpus(&self) -> impl Iterator<Item = CpuId> + use<> {
        (0..self.scope.options.cpus).map(CpuId::from)
    }

    /// Whether there may be one more breakpoint.
    fn has_room(&self) -> bool {
        self.machine.live().filter(|&id| !matches!(self.machine.counter(id).origin, Origin::Kgdb(_))).count()
            < self.scope.counters
    }

    fn of_cpu(&mut self, cpu: CpuId) {
        let (guest, is_online) = (self.machine.guest(cpu), self.machine.is_online(cpu));
        if self.scope.nmis.any() && is_online {
            self.list.push((Kind::Nmi, Event::Nmi(cpu, Nmi::Plain)));
            for nmi in nmis(self.machine, self.scope, cpu) {
                self.list.push((Kind::Nmi, Event::Nmi(cpu, nmi)));
            }
        }
        if guest.is_none() && is_online {
            for next in std::iter::once(TaskId::IDLE).chain(self.scope.all_tasks()).chain(self.scope.child()) {
                let task = self.machine.task(next);
                let can_run = next == TaskId::IDLE || task.cpu == cpu && task.is_alive();
                if next != self.machine.running(cpu) && can_run {
                    self.add(Kind::Switch, Event::SchedSwitch(cpu, next));
                }
            }
            self.add(Kind::Refresh, Event::Refresh(cpu));
        }
        if self.has_room() {
            for address in self.scope.all_addresses() {
                for (kind, attr) in attrs(address) {
                    let Some(by) = self.scope.all_tasks().find(|&task| self.machine.task(task).is_alive()) else {
                        break;
                    };
                    if self.has(kind) || kind == Kind::Open {
                        self.add(
                            Kind::OpenCpu,
                            Event::PerfEventOpen { by, attr, task: None, cpu: Some(cpu), group: None },
                        );
                    }
                }
            }
        }
        if cpu != CpuId(0) {
            let event = if is_online { Event::Offline(cpu) } else { Event::Online(cpu) };
            self.add(Kind::Hotplug, event);
        }
        if cpu == CpuId(0) && self.has(Kind::Kgdb) {
            self.add(Kind::Kgdb, Event::Kgdb(cpu, Kgdb::Enter));
            self.add(Kind::Kgdb, Event::Kgdb(cpu, Kgdb::Resume));
            for address in self.scope.all_addresses() {
                self.add(Kind::Kgdb, Event::Kgdb(cpu, Kgdb::Set(BpType::W, address, 8)));
                self.add(Kind::Kgdb, Event::Kgdb(cpu, Kgdb::Clear(address)));
            }
        }
    }

    fn of_task(&mut self, task: TaskId) {
        let machine = self.machine;
        let on_itself = |attr| Event::PerfEventOpen { by: task, attr, task: Some(task), cpu: None, group: None };
        if self.has_room() {
            for address in self.scope.all_addresses() {
                for (kind, attr) in attrs(address) {
                    self.add(kind, on_itself(attr));
                }
            }
        }
        if self.has_room() && self.has(Kind::OpenOnCpu) {
            for (cpu, address) in self.cpus().flat_map(|cpu| self.scope.all_addresses().map(move |at| (cpu, at))) {
                let attr = Attr::write(address, 8);
                let event = Event::PerfEventOpen { by: task, attr, task: Some(task), cpu: Some(cpu), group: None };
                self.list.push((Kind::OpenOnCpu, event));
            }
        }
        if self.has_room() && task == TaskId(2) {
            for address in self.scope.all_addresses() {
                let (attr, on) = (Attr::write(address, 8), Some(TaskId(1)));
                self.add(Kind::OpenOther, Event::PerfEventOpen { by: task, attr, task: on, cpu: None, group: None });
            }
        }
        self.add(Kind::OpenInvalid, on_itself(Attr::write(0x1001, 8)));
        let (cpu, runs) = (machine.task(task).cpu, machine.is_running(task));
        if runs && machine.guest(cpu).is_none() {
            for address in self.scope.all_addresses() {
                let access = Access { what: What::Store, address, bytes: 8 };
                let store = |kernel| Event::TaskAccess { task, access, insn: Insn::Plain, kernel };
                self.add(Kind::Access, store(false));
                self.add(Kind::KernelAccess, store(true));
                let access = Access { what: What::Execute, address, bytes: 1 };
                self.add(Kind::Execute, Event::TaskAccess { task, access, insn: Insn::Plain, kernel: false });
            }
            if let Some(child) = self.scope.child().filter(|&child| machine.task(child).life == Life::Unborn)
                && task == TaskId(1)
            {
                self.add(Kind::Fork, Event::Fork { parent: task, child, thread: false });
                self.add(Kind::Thread, Event::Fork { parent: task, child, thread: true });
            }
            self.add(Kind::Exit, Event::Exit(task));
            self.add(Kind::Exec, Event::Exec(task));
        }
        for to in self.cpus().filter(|&to| to != cpu) {
            self.add(Kind::Migrate, Event::Migrate(task, to));
        }
        if task == TaskId(2) {
            self.of_tracer(task, TaskId(1));
        }
    }

    fn of_tracer(&mut self, tracer: TaskId, tracee: TaskId) {
        if self.machine.task(tracee).tracer != Some(tracer) {
            self.add(Kind::Ptrace, Event::Attach { tracer, tracee });
            return;
        }
        let poke = |dr, value| Event::PtracePoke { tracer, tracee, dr, value };
        let slots = self.scope.options.slots.min(2);
        for dr in 0..slots {
            for address in self.scope.all_addresses() {
                self.add(Kind::Ptrace, poke(dr as u8, address));
            }
        }
        for dr7 in dr7s(slots, BpKind::Write) {
            self.add(Kind::Ptrace, poke(7, dr7));
        }
        self.add(Kind::Ptrace, Event::Detach { tracer, tracee });
    }

    fn of_counters(&mut self) {
        for id in self.machine.live() {
            let counter = self.machine.counter(id);
            match counter.origin {
                Origin::Perf => {
                    self.add(Kind::Close, Event::Close(id));
                    self.add(Kind::Toggle, if counter.enabled { Event::Disable(id) } else { Event::Enable(id) });
                    let change = |bp_addr| Event::Modify(id, Changes { bp_addr: Some(bp_addr), ..Changes::default() });
                    for address in self.scope.all_addresses().chain([0x1001]) {
                        if address != counter.attr.bp_addr {
                            self.add(Kind::Modify, change(address));
                        }
                    }
                }
                Origin::Kernel => {
                    self.add(Kind::Register, Event::UnregisterHwBreakpoint(id));
                    self.of_wide(id);
                }
                Origin::Inherited(_) | Origin::Ptrace(_) | Origin::Wide(_) | Origin::Kgdb(_) => {}
            }
        }
        if self.has_room() {
            for address in self.scope.all_addresses() {
                let attr = Attr::kernel(BpType::W, address, 8);
                self.add(Kind::Register, Event::RegisterHwBreakpoint { on: On::Wide, attr });
            }
        }
    }

    fn of_wide(&mut self, counter: CounterId) {
        for cpu in self.cpus() {
            for (bp_type, len) in [(BpType::W, 8), (BpType::Rw, 1)] {
                for address in self.scope.all_addresses() {
                    let attr = Attr::kernel(bp_type, address, len);
                    self.add(Kind::WideLocal, Event::ModifyWideLocal { cpu, counter, attr });
                }
            }
        }
    }

    fn of_guest(&mut self, vcpu: VcpuId) {
        let slots = self.scope.options.slots;
        self.add(Kind::Entry, Event::VmExit(vcpu, ExitReason::Other("intr")));
        self.add(Kind::Fastpath, Event::VmExit(vcpu, ExitReason::Fastpath));
        self.add(Kind::ExitIo, Event::VmExit(vcpu, ExitReason::Other("io")));
        self.add(Kind::ExitDr, Event::VmExit(vcpu, ExitReason::named("dr")));
        let write = |dr, value| Event::MovToDr { vcpu, dr, value, cpl: 0 };
        let read = |dr| Event::MovFromDr { vcpu, dr, cpl: 0 };
        for dr in 0..slots as u8 {
            for address in self.scope.all_addresses() {
                self.add(Kind::GuestDr, write(dr, address));
            }
            self.add(Kind::GuestDr, read(dr));
        }
        for dr7 in dr7s(slots, BpKind::Write) {
            self.add(Kind::GuestDr, write(7, dr7));
        }
        if self.has(Kind::Execute) {
            self.add(Kind::GuestDr, write(7, dr7_of(0, BpKind::Execute)));
        }
        self.add(Kind::GuestDr, read(7));
        for dr6 in [Dr6::IDLE.0, Dr6::IDLE.0 | Dr6::BS | 1] {
            self.add(Kind::GuestDr6, write(6, dr6));
        }
        self.add(Kind::GuestDr6, read(6));
        // What is written and read, but not enabled: a step over it may show a match.
        self.add(Kind::GuestStep, write(7, dr7_of(0, BpKind::Write) & !0xff));
        self.add(Kind::GuestDr5, write(5, Dr7::FIXED | Dr7::GE));
        self.add(Kind::GuestDr5, read(5));
        self.add(Kind::GuestCpl3, Event::MovFromDr { vcpu, dr: 0, cpl: 3 });
        self.add(Kind::GuestGd, write(7, Dr7::FIXED | Dr7::GD));
        if self.has(Kind::GuestGd) {
            self.list.push((Kind::GuestGd, write(7, dr7_of(0, BpKind::Write) | Dr7::GD)));
        }
        for address in self.scope.all_addresses() {
            let store = Access { what: What::Store, address, bytes: 8 };
            let execute = Access { what: What::Execute, address, bytes: 1 };
            let access = |access, insn, emulated| Event::GuestAccess { vcpu, access, insn, emulated };
            self.add(Kind::GuestAccess, access(store, Insn::Plain, false));
            self.add(Kind::GuestStep, access(store, Insn::PopfTf, false));
            self.add(Kind::Frame, access(store, Insn::Frame, false));
            self.add(Kind::Execute, access(execute, Insn::Plain, false));
            self.add(Kind::Emulate, access(store, Insn::Plain, true));
            if self.has(Kind::Execute) {
                self.add(Kind::Emulate, access(execute, Insn::Plain, true));
            }
        }
        self.add(Kind::TaskSwitch, Event::TaskSwitch(vcpu));
        self.add(Kind::Smi, Event::Smi(vcpu));
        if self.machine.vcpu(vcpu).smram.is_some() {
            self.add(Kind::Smi, Event::Rsm(vcpu));
        }
        if self.machine.vcpu(vcpu).nested.is_some() {
            self.add(Kind::Nested, Event::NestedExit(vcpu));
            return;
        }
        for dr7 in [Dr7::RESET.0, dr7_of(0, BpKind::Write)] {
            for intercepts_db in [false, true] {
                self.add(Kind::Nested, Event::NestedEntry { vcpu, dr6: None, dr7: Some(dr7), intercepts_db });
            }
        }
    }

    /// What the VMM asks for while its guest does not run.
    fn of_vmm(&mut self, vcpu: VcpuId) {
        self.add(Kind::Entry, Event::VmEntry(vcpu));
        let debug = |control, dr, dr7| Event::SetGuestDebug(vcpu, GuestDebug { control, dr, dr7 });
        let slots = self.scope.options.slots.min(2);
        for slot in 0..slots {
            for address in self.scope.all_addresses() {
                let mut dr = [0; 4];
                dr[slot] = address;
                self.add(Kind::Debug, debug(HW, dr, dr7_of(slot, BpKind::Write)));
                if self.has(Kind::Execute) {
                    self.add(Kind::Debug, debug(HW, dr, dr7_of(slot, BpKind::Execute)));
                }
            }
        }
        // The upper slot too: what is there may not fit into a signed integer.
        let upper = Dr7(Dr7::FIXED | Dr7::GD).arm(Slot::ALL[3], Enable::Global, BpKind::Write, Length::Eight).0;
        self.add(Kind::DebugGd, debug(HW, [0; 4], Dr7::FIXED | Dr7::GD));
        self.add(Kind::DebugGd, debug(HW, [0; 4], upper));
        self.add(Kind::DebugUpper, debug(HW, [0; 4], 1 << 32 | Dr7::FIXED));
        self.add(Kind::Step, debug(STEP, [0; 4], 0));
        if self.machine.vcpu(vcpu).is_debugged() {
            for kind in [Kind::Debug, Kind::Step, Kind::DebugGd] {
                if self.has(kind) {
                    self.list.push((kind, debug(0, [0; 4], 0)));
                    break;
                }
            }
        }
        let set = |dr0: Option<u64>, dr6, dr7| Event::SetDebugregs { vcpu, dr: [dr0, None, None, None], dr6, dr7 };
        self.add(Kind::Ioctl, Event::GetDebugregs(vcpu));
        for address in self.scope.all_addresses() {
            self.add(Kind::Ioctl, set(Some(address), None, None));
        }
        for dr7 in [Dr7::RESET.0, dr7_of(0, BpKind::Write)] {
            self.add(Kind::Ioctl, set(None, None, Some(dr7)));
        }
        self.add(Kind::IoctlUpper, set(None, Some(1 << 40), None));
        self.add(Kind::IoctlReserved, set(None, None, Some(Dr7::FIXED | 1 << 12)));
        if self.has(Kind::IoctlReserved) && !self.has(Kind::Ioctl) {
            self.add(Kind::IoctlReserved, Event::GetDebugregs(vcpu));
        }
        self.add(Kind::Init, Event::Init(vcpu));
    }
}

/// What may be asked for at an address.
fn attrs(address: u64) -> [(Kind, Attr); 4] {
    let plain = Attr::write(address, 8);
    [
        (Kind::Open, plain),
        (Kind::Pinned, Attr { pinned: true, ..plain }),
        (Kind::Inherit, Attr { inherit: true, ..plain }),
        (Kind::Execute, Attr { bp_type: BpType::X, ..plain }),
    ]
}

/// DR7 with one slot armed.
fn dr7_of(slot: usize, kind: BpKind) -> u64 {
    let length = if kind == BpKind::Execute { Length::One } else { Length::Eight };
    Dr7::RESET.arm(Slot::ALL[slot], Enable::Local, kind, length).0
}

/// DR7 with every subset of the lowest slots armed.
fn dr7s(slots: usize, kind: BpKind) -> impl Iterator<Item = u64> {
    (0..1usize << slots).map(move |set| {
        let chosen = (0..slots).filter(|slot| set >> slot & 1 != 0);
        chosen.fold(Dr7::RESET.0, |dr7, slot| dr7 | dr7_of(slot, kind))
    })
}
