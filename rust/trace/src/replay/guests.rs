//! The guests of a trace: entries, exits, what they did in between, and what the lines tell of their registers.

use debugreg::{Dr, Dr6};
use debugreg_model::{CpuId, DrAccess, Event, ExitReason, GuestDebug, VcpuId};

use super::{Interrupt, Replayer};
use crate::guest::{Mov, Run};
use crate::input::{Input, Row, Why};
use crate::observe::Observer;
use crate::predict::Load;

/// A vCPU between its entry and what its exit handler made of a MOV DR.
#[derive(Default)]
pub(super) struct Stay {
    /// The access that will end it.
    trapped: Option<Mov>,
    /// The access that raises #DB, and thereby will.
    detected: bool,
    retry: Option<Retry>,
    /// Where it was when a MOV DR exited.
    rip: Option<u64>,
}

/// What became of an access that exited.
#[derive(Copy, Clone)]
enum Retry {
    /// The policy emulated it: if the traced kernel let the guest try again, that is not to be done twice.
    Done(Mov),
    /// The policy lets the guest try again: if the traced kernel emulated it, it is still to be done.
    Again(Mov),
}

/// What the lines have told of a vCPU's registers: nothing, of one that is older than the trace.
#[derive(Copy, Clone)]
pub(super) struct Told {
    /// The guest's DR0-DR3.
    addresses: [bool; 4],
    /// The guest's DR7.
    control: bool,
    /// Whether its MOV DR exit. Every exit makes them.
    window: bool,
    debugger: Debugger,
}

/// What the lines have told of a vCPU's debugger.
#[derive(Copy, Clone, PartialEq, Eq)]
enum Debugger {
    /// Nothing: it is presumed that there is none.
    Presumed,
    /// What it has set, or that there is none.
    Told,
    /// There is one, that the trace does not show.
    Hidden,
}

impl Told {
    const NOTHING: Told = Told { addresses: [false; 4], control: false, window: false, debugger: Debugger::Presumed };
    const ALL: Told = Told { addresses: [true; 4], control: true, window: true, debugger: Debugger::Told };

    fn write(&mut self, mov: Mov) {
        match mov.dr {
            _ if mov.write.is_none() => {}
            dr @ 0..=3 => self.addresses[usize::from(dr)] = true,
            7 => self.control = true,
            _ => {}
        }
    }
}

impl Replayer<'_> {
    pub(super) fn vcpu(&mut self, pid: i32, number: u32, cpu: CpuId) -> VcpuId {
        let thread = self.task(pid, cpu);
        let vcpu = *self.vcpus.entry((pid, number)).or_insert_with(|| {
            let is_told = self.quiet_before || self.created.remove(&(pid, number));
            self.told.push(if is_told { Told::ALL } else { Told::NOTHING });
            let vcpu = self.machine.add_vcpu(thread);
            if let (false, Some(steps)) = (is_told, &self.trace.steps) {
                self.machine.find_guest_registers(vcpu, steps.guests.before);
            }
            vcpu
        });
        self.last_vcpu.insert(pid, vcpu);
        vcpu
    }

    /// An ioctl names a descriptor; whose vCPU it is shows from who calls, or from there being only one.
    pub(super) fn vcpu_of_caller(&mut self, row: &Row, cpu: CpuId) -> Option<VcpuId> {
        let own = self.last_vcpu.get(&row.pid).copied();
        let only = self.vcpus.values().copied().next().filter(|_| self.vcpus.len() == 1);
        if self.vcpus.is_empty() {
            return Some(self.vcpu(row.pid, 0, cpu));
        }
        own.or(only)
    }

    /// Events were lost: what was told may have changed.
    pub(super) fn forget_guests(&mut self) {
        self.told.fill(Told::NOTHING);
    }

    pub(super) fn set_guest_debug(&mut self, vcpu: VcpuId, debug: GuestDebug, in_force: Option<u64>) {
        self.told[vcpu.index()].debugger = Debugger::Told;
        self.apply(&Event::SetGuestDebug(vcpu, debug));
        // Where the debugger has nothing in force, the guest has.
        if let Some(dr7) = in_force
            && !self.machine.vcpu(vcpu).debugger_owns()
            && (self.trace.steps.is_none() || !self.told[vcpu.index()].control)
        {
            self.find_written(vcpu, Mov { dr: 7, write: Some(dr7) });
        }
    }

    pub(super) fn set_debugregs(&mut self, vcpu: VcpuId, dr: [Option<u64>; 4], dr6: Option<u64>, dr7: Option<u64>) {
        let told = &mut self.told[vcpu.index()];
        for (told, value) in told.addresses.iter_mut().zip(dr) {
            *told |= value.is_some();
        }
        told.control |= dr7.is_some();
        self.apply(&Event::SetDebugregs { vcpu, dr, dr6, dr7 });
    }

    /// `KVM_RUN` returned to a debugger: there is one. If no line tells what it has set, that is not known; beside it, no
    /// window opens.
    pub(super) fn debug_exit(&mut self, pid: i32) {
        let Some(&vcpu) = self.last_vcpu.get(&pid) else { return };
        if !self.machine.vcpu(vcpu).is_debugged() {
            self.told[vcpu.index()].debugger = Debugger::Hidden;
            self.machine.find_window(vcpu, false);
            let control = GuestDebug::ENABLE | GuestDebug::SINGLESTEP;
            self.apply(&Event::SetGuestDebug(vcpu, GuestDebug { control, ..GuestDebug::default() }));
        }
    }

    /// What the guest has in a register is found to be what it last wrote.
    fn find_written(&mut self, vcpu: VcpuId, mov: Mov) {
        let mut registers = self.machine.vcpu(vcpu).own;
        if let (Some(dr), Some(value)) = (Dr::from_number(mov.dr), mov.write) {
            registers.set(dr, value);
            self.machine.find_guest_registers(vcpu, registers);
            self.told[vcpu.index()].write(mov);
        }
    }

    pub(super) fn entry(&mut self, row: &Row, cpu: CpuId, number: u32, rip: Option<u64>) {
        let vcpu = self.vcpu(row.pid, number, cpu);
        let before = Observer::before(&self.machine, cpu);
        let guest = self.uses_registers(vcpu);
        let (trace, none) = (self.trace, Run::default());
        let run = trace.steps.as_ref().map_or(&none, |steps| &steps.guests.runs[self.entries]);
        self.entries += 1;
        let Stay { retry, rip: left, .. } = self.stays.remove(&vcpu).unwrap_or_default();
        let tries_again = rip.zip(left).map(|(rip, left)| rip == left);
        self.tell_of_retry(vcpu, tries_again);
        self.tell_of_run(vcpu, run);
        self.tell_of_entry(vcpu, cpu);
        if self.apply(&Event::VmEntry(vcpu)).is_none() {
            return;
        }
        self.watch.observer.entry(&self.machine, cpu, row.line, before, guest);
        self.settled(cpu, row.line);
        let mut movs = run.executed.as_slice();
        match retry {
            Some(Retry::Done(mov)) if movs.first() == Some(&mov) => movs = &movs[1..],
            // It may be interrupted before it does.
            Some(Retry::Again(mov)) if movs.first() != Some(&mov) && tries_again != Some(true) => {
                self.guest_mov(vcpu, mov);
            }
            _ => {}
        }
        let detected = self.guest_movs(vcpu, movs, run.ends_in_db);
        self.stays.insert(vcpu, Stay { trapped: run.trapped, detected, ..Stay::default() });
    }

    /// What a guest executes in a stay. Returns whether the last access raises #DB (DR7.GD), which is an exit: it is
    /// performed where the exit is.
    fn guest_movs(&mut self, vcpu: VcpuId, movs: &[Mov], ends_in_db: bool) -> bool {
        let Some((&last, others)) = movs.split_last() else { return false };
        for &mov in others {
            self.guest_mov(vcpu, mov);
        }
        let detected = ends_in_db && self.machine.detects_mov_dr(vcpu);
        if !detected {
            self.guest_mov(vcpu, last);
        }
        detected
    }

    /// The guest is left although no line says that it was entered: that was before the trace begins.
    fn find(&mut self, row: &Row, cpu: CpuId, number: Option<u32>) -> VcpuId {
        let vcpu = self.vcpu(row.pid, number.unwrap_or(0), cpu);
        let (trace, none) = (self.trace, Run::default());
        let run = trace.steps.as_ref().map_or(&none, |steps| &steps.guests.begun[cpu.index()]);
        self.tell_of_run(vcpu, run);
        self.machine.find_in_guest(vcpu, cpu);
        let detected = self.guest_movs(vcpu, &run.executed, run.ends_in_db);
        self.stays.insert(vcpu, Stay { trapped: run.trapped, detected, ..Stay::default() });
        vcpu
    }

    /// A MOV DR that the guest executed.
    fn guest_mov(&mut self, vcpu: VcpuId, mov: Mov) {
        let Mov { dr, write } = mov;
        self.told[vcpu.index()].write(mov);
        self.apply(&match write {
            Some(value) => Event::MovToDr { vcpu, dr, value, cpl: 0 },
            None => Event::MovFromDr { vcpu, dr, cpl: 0 },
        });
    }

    /// KVM lets a guest try a MOV DR again if it has opened the window, and goes past it if it has emulated it: beside a
    /// debugger (`handle_dr`, `dr_interception`).
    fn tell_of_retry(&mut self, vcpu: VcpuId, tries_again: Option<bool>) {
        let debugger = &mut self.told[vcpu.index()].debugger;
        if let (Debugger::Presumed, Some(tries_again)) = (*debugger, tries_again) {
            *debugger = if tries_again { Debugger::Told } else { Debugger::Hidden };
        }
    }

    /// Who executes a MOV DR without an exit has an open window, and no debugger.
    fn tell_of_run(&mut self, vcpu: VcpuId, run: &Run) {
        if run.executed.is_empty() {
            return;
        }
        let told = &mut self.told[vcpu.index()];
        let was_told = std::mem::replace(&mut told.window, true);
        let debugger = std::mem::replace(&mut told.debugger, Debugger::Told);
        if debugger == Debugger::Hidden {
            self.apply(&Event::SetGuestDebug(vcpu, GuestDebug::default()));
        }
        if debugger == Debugger::Hidden || !was_told {
            self.machine.find_window(vcpu, true);
        }
    }

    /// What is told of the registers that an entry loads.
    fn tell_of_entry(&mut self, vcpu: VcpuId, cpu: CpuId) {
        let Some(window) = self.watch.window(cpu) else { return };
        let told = self.told[vcpu.index()];
        let debugger_owns = self.machine.vcpu(vcpu).debugger_owns();
        window.vcpu = Some(vcpu);
        window.guest = self.machine.vcpu(vcpu).effective();
        window.load = match told.debugger {
            Debugger::Told if told.window && (debugger_owns || told.control) => Load::Told,
            Debugger::Hidden => Load::Hidden,
            _ => Load::Presumed,
        };
        if !debugger_owns {
            window.addresses_told = told.addresses;
        }
    }

    /// What is told of an exit's reading back.
    fn tell_of_exit(&mut self, vcpu: VcpuId, cpu: CpuId, control_told: bool) {
        let open = self.machine.vcpu(vcpu).wont_exit;
        let told = &mut self.told[vcpu.index()];
        let was_told = std::mem::replace(&mut told.window, true);
        if let Some(window) = self.watch.window(cpu) {
            window.sync_told = was_told && (!open || told.debugger == Debugger::Told);
            window.vcpu = Some(vcpu);
            window.guest = self.machine.vcpu(vcpu).own;
            window.addresses_told = told.addresses;
            window.control_told = control_told;
        }
    }

    pub(super) fn exit(&mut self, row: &Row, cpu: CpuId) {
        let Input::KvmExit { vcpu: number, rip, why, guest_dr7 } = row.input else { return };
        let vcpu = match self.machine.guest(cpu) {
            Some(vcpu) => vcpu,
            None => self.find(row, cpu, number),
        };
        let vendor = self.machine.options.vendor;
        let stay = self.stays.remove(&vcpu).unwrap_or_default();
        let told = &mut self.told[vcpu.index()];
        let control_told = told.control && self.trace.steps.is_some();
        if let Some(dr7) = guest_dr7
            && self.machine.vcpu(vcpu).wont_exit
            && !control_told
        {
            // The only word on what the guest did in the window.
            told.control = told.debugger == Debugger::Told;
            self.machine.observe_guest_dr(vcpu, Dr::Control, dr7);
        }
        self.tell_of_exit(vcpu, cpu, control_told);
        if stay.detected
            && let Some(window) = self.watch.window(cpu)
        {
            window.guest.dr7 = vendor.dr7_after_db(window.guest.dr7);
        }
        let guest = self.uses_registers(vcpu);
        let reason = match why {
            Why::DrAccess { dr, write } => {
                let value = stay.trapped.and_then(|mov| mov.write);
                ExitReason::DrAccess(DrAccess { dr, write: value.filter(|_| write) })
            }
            Why::Db => ExitReason::Db(stay.detected.then_some(Dr6::BD)),
            Why::Other => ExitReason::Other("other"),
        };
        let before = Observer::before(&self.machine, cpu);
        self.apply(&Event::VmExit(vcpu, reason));
        if why == Why::Db {
            self.machine.find_db(vcpu);
        }
        let interrupts = self.interrupts.extract_if(.., |(interrupted, _)| *interrupted == cpu);
        for (_, interrupt) in interrupts.collect::<Vec<_>>() {
            match interrupt {
                Interrupt::Event(event) => drop(self.apply(&event)),
                Interrupt::Close(task, counter) => self.machine.close_descriptor(task, counter, &mut self.watch),
            }
        }
        if matches!(why, Why::DrAccess { .. }) {
            let emulated = self.machine.vcpu(vcpu).vmcs.dr_intercept;
            self.lower_bound |= emulated && self.trace.steps.is_none() && !self.machine.vcpu(vcpu).is_debugged();
            if let Some(mov) = stay.trapped.filter(|_| emulated) {
                self.told[vcpu.index()].write(mov);
            }
            let retry = stay.trapped.map(|mov| if emulated { Retry::Done(mov) } else { Retry::Again(mov) });
            self.stays.insert(vcpu, Stay { retry, rip, ..Stay::default() });
        } else {
            self.watch.observer.hook(&self.machine, cpu, row.line, before, guest);
        }
    }

    /// Whether a guest has breakpoints, or may look at its registers without an exit.
    fn uses_registers(&self, vcpu: VcpuId) -> bool {
        let vcpu = self.machine.vcpu(vcpu);
        vcpu.wont_exit || vcpu.effective().armed().next().is_some()
    }
}
