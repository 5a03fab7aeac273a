//! `u_debugreg` as a tracer sees it: every register that it names becomes a perf counter of the tracee.
//!
//! Source: arch/x86/kernel/ptrace.c (6.17); results measured on 6.18. The tracer's register number is not a hardware
//! register: perf puts the counter where there is room.

use debugreg::{Dr6, Dr7, Kind, Length, Slot};

use crate::counter::{Attr, BpType, Origin, parse};
use crate::event::{Errno, Misuse, Outcome, Refusal};
use crate::machine::Machine;
use crate::step::Probe;
use crate::task::Capabilities;
use crate::{CounterId, TaskId};

/// Bits of DR7 that `ptrace_write_dr7` drops before it decodes: 63:32 and 15:10 (`DR_CONTROL_RESERVED`).
const CONTROL_RESERVED: u64 = 0xffff_ffff_0000_fc00;

impl Machine {
    /// `PTRACE_ATTACH`.
    pub(crate) fn attach(&mut self, tracer: TaskId, tracee: TaskId) -> Result<Outcome, Misuse> {
        self.alive(tracer)?;
        self.born(tracee)?;
        if !self.task(tracee).is_alive() {
            return Ok(Outcome::Refused(Refusal::new(Errno::EPERM, "the task has exited")));
        }
        if let Err(refusal) = self.may_trace(tracer, tracee) {
            return Ok(Outcome::Refused(refusal));
        }
        if self.task(tracee).tracer.is_some() {
            return Ok(Outcome::Refused(Refusal::new(Errno::EPERM, "the task has a tracer already")));
        }
        self.tasks[tracee.index()].tracer = Some(tracer);
        Ok(Outcome::Ok)
    }

    /// `PTRACE_DETACH`: the breakpoints stay (M6).
    pub(crate) fn detach(&mut self, tracer: TaskId, tracee: TaskId) -> Result<Outcome, Misuse> {
        if let Some(refusal) = self.not_traced(tracer, tracee)? {
            return Ok(Outcome::Refused(refusal));
        }
        self.tasks[tracee.index()].tracer = None;
        Ok(Outcome::Ok)
    }

    /// A 32-bit tracer writes zero-extended and reads truncated.
    fn register_width(&self, tracer: TaskId) -> u64 {
        if self.task(tracer).is_32bit { u64::from(u32::MAX) } else { u64::MAX }
    }

    fn not_traced(&self, tracer: TaskId, tracee: TaskId) -> Result<Option<Refusal>, Misuse> {
        self.alive(tracer)?;
        self.born(tracee)?;
        let traced = self.task(tracee).tracer == Some(tracer);
        Ok((!traced).then(|| Refusal::new(Errno::ESRCH, "the caller does not trace that task, or it has exited")))
    }

    /// `PTRACE_PEEKUSER`.
    pub(crate) fn ptrace_peek(&self, tracer: TaskId, tracee: TaskId, dr: u8) -> Result<Outcome, Misuse> {
        if let Some(refusal) = self.not_traced(tracer, tracee)? {
            return Ok(Outcome::Refused(refusal));
        }
        let task = self.task(tracee);
        let value = match dr {
            0..=3 => task.ptrace_bps[usize::from(dr)].map_or(0, |id| self.counter(id).info.address),
            6 => Dr6::from_events(task.virtual_dr6).0,
            7 => task.ptrace_dr7,
            _ => 0,
        };
        Ok(Outcome::Value(value & self.register_width(tracer)))
    }

    /// `PTRACE_POKEUSER`. The tracee is stopped meanwhile: if it is on a CPU here, it leaves it for the call.
    pub(crate) fn ptrace_poke<P: Probe>(
        &mut self,
        tracer: TaskId,
        tracee: TaskId,
        dr: u8,
        value: u64,
        probe: &mut P,
    ) -> Result<Outcome, Misuse> {
        if let Some(refusal) = self.not_traced(tracer, tracee)? {
            return Ok(Outcome::Refused(refusal));
        }
        let value = value & self.register_width(tracer);
        let cpu = self.task(tracee).cpu;
        let stopped = self.is_running(tracee);
        if stopped {
            self.host_cpu(cpu)?;
            self.sched_switch(cpu, TaskId::IDLE, probe);
        }
        let result = match dr {
            0..=3 => self.poke_address(tracee, dr, value, probe),
            6 => {
                self.tasks[tracee.index()].virtual_dr6 = Dr6(value).events();
                Ok(())
            }
            7 => self.poke_control(tracee, value, probe),
            _ => Err(Refusal::new(Errno::EIO, "u_debugreg has no DR4 or DR5")),
        };
        if stopped {
            self.sched_switch(cpu, tracee, probe);
        }
        Ok(match result {
            Ok(()) => Outcome::Ok,
            Err(refusal) => Outcome::Refused(refusal),
        })
    }

    /// POKE DR0-DR3: the first one makes a disabled write breakpoint of one byte, which takes a slot.
    fn poke_address<P: Probe>(&mut self, task: TaskId, dr: u8, address: u64, probe: &mut P) -> Result<(), Refusal> {
        match self.task(task).ptrace_bps[usize::from(dr)] {
            None => self.register(task, dr, Attr::ptrace(BpType::W, address, 1, true), probe).map(|_| ()),
            Some(id) => {
                let wanted = Attr { bp_addr: address, ..self.counter(id).attr };
                self.modify_one(id, wanted, false, Capabilities::None, probe)
            }
        }
    }

    /// `register_user_hw_breakpoint` for the tracee.
    fn register<P: Probe>(&mut self, task: TaskId, dr: u8, attr: Attr, probe: &mut P) -> Result<CounterId, Refusal> {
        self.reserve(Some(task), None)?;
        let info = parse(&attr, Capabilities::None, &self.options);
        let info = info.map_err(|refusal| self.refused_after_slot(refusal, Some(task), None))?;
        let id = self.create(attr, info, Some(task), None, Origin::Ptrace(dr));
        self.activate(id, probe);
        self.tasks[task.index()].ptrace_bps[usize::from(dr)] = Some(id);
        Ok(id)
    }

    /// POKE DR7: one pass over the slots; after an error a second pass with the old value. The second pass restores
    /// values, not slots: what the first one registered stays, disabled (M5).
    fn poke_control<P: Probe>(&mut self, task: TaskId, value: u64, probe: &mut P) -> Result<(), Refusal> {
        let old = self.enabled_control(task);
        let result = self.write_control(task, Dr7(value & !CONTROL_RESERVED), probe);
        match result {
            Ok(()) => self.tasks[task.index()].ptrace_dr7 = value,
            Err(_) => drop(self.write_control(task, old, probe)),
        }
        result
    }

    /// DR7 as the tracee's enabled counters say it (`ptrace_get_dr7`).
    fn enabled_control(&self, task: TaskId) -> Dr7 {
        let bps = self.task(task).ptrace_bps;
        Slot::ALL.into_iter().fold(Dr7(0), |dr7, slot| match bps[slot.index()] {
            Some(id) if !self.counter(id).attr.disabled => {
                let info = self.counter(id).info;
                dr7.arm(slot, debugreg::Enable::Global, info.kind, info.length)
            }
            _ => dr7,
        })
    }

    fn write_control<P: Probe>(&mut self, task: TaskId, dr7: Dr7, probe: &mut P) -> Result<(), Refusal> {
        for slot in Slot::ALL {
            let (dr, disabled) = (slot.index() as u8, !dr7.is_armed(slot));
            let existing = self.task(task).ptrace_bps[slot.index()];
            if existing.is_none() && disabled {
                continue;
            }
            // `arch_bp_generic_fields`: R/W=10b, and execute with a length, have no generic form.
            let (bp_type, bp_len) = match (dr7.kind(slot), dr7.length(slot)) {
                (Kind::Execute, Length::One) => (BpType::X, 8),
                (Kind::Write, length) => (BpType::W, length.bytes()),
                (Kind::ReadWrite, length) => (BpType::Rw, length.bytes()),
                _ => {
                    return Err(Refusal::new(
                        Errno::EINVAL,
                        "R/W=10b, or R/W=00b with LEN, in a slot that is enabled or has an address",
                    ));
                }
            };
            match existing {
                None => drop(self.register(task, dr, Attr::ptrace(bp_type, 0, bp_len, disabled), probe)?),
                Some(id) => {
                    let wanted = Attr { bp_type, bp_len, disabled, ..self.counter(id).attr };
                    self.modify_one(id, wanted, false, Capabilities::None, probe)?;
                }
            }
        }
        Ok(())
    }

    /// `flush_ptrace_hw_breakpoint`.
    pub(crate) fn flush_ptrace<P: Probe>(&mut self, task: TaskId, probe: &mut P) {
        for dr in 0..4 {
            if let Some(id) = self.tasks[task.index()].ptrace_bps[dr].take() {
                self.release(id, probe);
            }
        }
    }
}
