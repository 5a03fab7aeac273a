//! A line of a guest: performed, and what came of it.

use debugreg::trip::{Access, What, trip};
use debugreg::{Dr, Registers};
use debugreg_model::{Event, ExitReason, GuestDebug, Insn, Outcome, Vcpu as Model, Vector, Vendor};

use super::snippet::Act;
use super::unlike::{self, Unlike};
use super::vcpu::{Happened, Stop};
use super::vm::Exit;
use super::{Guest, Kind, is_tcg, touched};
use crate::Error;
use crate::perform::{outcome, refused, unobserved};
use crate::report::Seen;
use crate::tasks::Tasks;

/// A line of a guest.
pub(super) struct Performing<'a, 'w> {
    pub(super) guest: &'a mut Guest,
    pub(super) tasks: &'a mut Tasks<'w>,
    pub(super) kind: Kind,
    pub(super) vendor: Vendor,
    /// Whether KVM's emulator can be had for an instruction.
    pub(super) forcible: bool,
    /// The vCPU in the model, before the line.
    pub(super) before: Model,
    /// What the model says of the line.
    pub(super) told: Option<Outcome>,
}

impl Performing<'_, '_> {
    pub(super) fn event(mut self, event: &Event) -> Result<Seen, Error> {
        match *event {
            Event::VmEntry(_) => self.entry(),
            Event::VmExit(_, reason) => self.exit(reason),
            Event::GuestAccess { access, insn, emulated, .. } => self.access(access, insn, emulated),
            Event::MovToDr { dr, value, cpl, .. } => {
                self.mov_dr(Act::ToDr { number: dr, value, ring: cpl }, dr, cpl, Some(value))
            }
            Event::MovFromDr { dr, cpl, .. } => self.mov_dr(Act::FromDr { number: dr, ring: cpl }, dr, cpl, None),
            Event::SetGuestDebug(_, debug) => self.set_guest_debug(debug),
            Event::GetDebugregs(_) => self.get_debugregs(),
            Event::SetDebugregs { dr, dr6, dr7, .. } => self.set_debugregs(dr, dr6, dr7),
            Event::Init(_) => self.init(),
            _ => Ok(self.undone("the guests of this driver are not made for it")),
        }
    }

    /// The event is not performed, and what the guest's registers hold afterwards depends on it.
    fn undone(&mut self, why: &'static str) -> Seen {
        self.guest.unlike.all = Some("an event before it was not performed");
        unobserved(why)
    }

    /// Nothing more can be observed of the guest.
    fn lose(&mut self, why: String) -> Seen {
        self.guest.lost = Some(why.clone());
        Seen::Unobserved(why)
    }

    /// What user space does to a vCPU it does outside. In the model the guest has left where a debugger was told of
    /// something that an emulated guest did not notice.
    fn outside(&mut self) -> Result<(), Error> {
        if self.guest.vcpu.vm.is_inside(self.tasks) {
            self.guest.vcpu.leave(self.tasks)?;
        }
        Ok(())
    }

    fn entry(&mut self) -> Result<Seen, Error> {
        self.outside()?;
        if self.guest.vcpu.is_stepped() && is_tcg() {
            return Ok(self.lose("QEMU's emulation can hang when a step meets a data breakpoint".to_owned()));
        }
        let stop = self.guest.vcpu.enter(self.tasks)?;
        let injected = std::mem::take(&mut self.guest.vcpu.injecting);
        let failed = self.told == Some(Outcome::ExitFailEntry);
        Ok(match (stop, self.guest.vcpu.exceptions(), self.guest.vcpu.first_exception()) {
            (Stop::Left(Exit::FailEntry), ..) => Seen::Outcome(Outcome::ExitFailEntry),
            (Stop::Left(exit), ..) => self.strange(exit),
            (Stop::Parked, ..) if failed && self.kind == Kind::Emulated => unobserved(unlike::NO_ENTRY),
            (Stop::Parked, _, None) => Seen::Outcome(Outcome::Ok),
            (Stop::Parked, 1, Some(record)) if injected && matches!(record.vector, 1 | 3) => Seen::Outcome(Outcome::Ok),
            (Stop::Parked, _, Some(record)) => Seen::Strange(format!("exception {} on entry", record.vector)),
        })
    }

    fn exit(&mut self, reason: ExitReason) -> Result<Seen, Error> {
        const NOT_BY_CHOICE: &str = "user space cannot choose this exit: it left by a port instead";
        let vcpu = &mut self.guest.vcpu;
        let (exit, as_meant) = match reason {
            ExitReason::Fastpath => {
                return Ok(unobserved("which exits KVM handles inside its loop does not show"));
            }
            // A local APIC of KVM's would have the task sleep. Of a HLT under a step KVM's emulator tells the step alone.
            ExitReason::Other("hlt") if !(vcpu.vm.has_apic || self.kind == Kind::Emulated && vcpu.is_stepped()) => {
                (vcpu.halt(self.tasks)?, true)
            }
            ExitReason::Other("intr") => (vcpu.interrupt(self.tasks)?, true),
            ExitReason::Other("io") => (vcpu.leave(self.tasks)?, true),
            _ => (vcpu.leave(self.tasks)?, false),
        };
        Ok(match exit {
            Exit::Port(_) | Exit::Halt | Exit::Signal if as_meant => Seen::Outcome(Outcome::Ok),
            Exit::Port(_) => unobserved(NOT_BY_CHOICE),
            other => self.strange(other),
        })
    }

    fn access(&mut self, access: Access, insn: Insn, emulated: bool) -> Result<Seen, Error> {
        let io = matches!(access.what, What::Io { .. });
        let forced = emulated && !io && self.kind == Kind::Hardware;
        if forced && !self.forcible {
            self.missed();
            return Ok(unobserved("KVM's emulator is not to be had: kvm.force_emulation_prefix is 0"));
        }
        // Between the two lines of the model's there are instructions of the driver's.
        if self.before.mov_ss && access.what == What::Execute && self.vendor == Vendor::Intel {
            return Ok(unobserved("MOV SS holds off the next instruction, which is not the scenario's"));
        }
        let act = match access.what {
            What::Io { .. } => Act::Out { port: access.address as u16, bytes: access.bytes },
            _ => Act::Access { access, insn, forced },
        };
        let reached = io || touched(access, insn, forced).all(|page| self.guest.vcpu.image.is_mapped(page));
        let clear = !self.is_watched_beside(access, insn);
        let happened = if reached && clear { self.guest.vcpu.perform(self.tasks, act)? } else { None };
        let Some(happened) = happened else {
            self.missed();
            let why = if reached { "this driver has no such access" } else { "nothing can be mapped there" };
            return Ok(unobserved(why));
        };
        let data = matches!(access.what, What::Load | What::Store);
        let seen = self.seen(&happened, nothing(), !data, emulated);
        if self.kind == Kind::Emulated && insn == Insn::PopfTf && self.before.debugger_owns() {
            // A debugger that steps is told of it, and the guest of its own.
            self.guest.unlike.all = (!self.before.is_stepped()).then_some(unlike::GUESTS_TF).or(self.guest.unlike.all);
        }
        if self.kind == Kind::Emulated && !data && unlike::heeds_the_guests(&self.before, access) {
            self.guest.unlike.missed(self.before.own.dr7);
            return Ok(unobserved(unlike::GUESTS_OWN));
        }
        let held_off = insn == Insn::IretRf && !emulated && self.before.debugger_owns();
        if self.kind == Kind::Emulated && held_off && unlike::hits(&self.before.effective(), access, insn) {
            return Ok(unobserved(unlike::THROUGH_RF));
        }
        if self.kind == Kind::Emulated && io && self.before.is_stepped() {
            return Ok(unobserved(unlike::UNSTEPPED));
        }
        if self.kind == Kind::Emulated && data && !emulated {
            let steps = insn == Insn::PopfTf || self.before.is_stepped();
            let hits = unlike::hits(&self.before.effective(), access, insn);
            // Where something else shows, it can be compared if nothing was missed.
            if hits || !steps && seen == Seen::Outcome(nothing()) {
                self.missed();
                return Ok(unobserved(unlike::NO_DATA));
            }
        }
        Ok(match (self.guest.unlike.all, seen) {
            (Some(why), Seen::Outcome(_) | Seen::Without(..)) => unobserved(why),
            (_, seen) => seen,
        })
    }

    /// Whether somebody watches an instruction that this driver needs right beside the scenario's.
    fn is_watched_beside(&self, access: Access, insn: Insn) -> bool {
        let beside = match insn {
            Insn::PopfTf => access.address.wrapping_sub(1),
            Insn::Icebp => access.address.wrapping_add(1),
            _ => return false,
        };
        let registers = self.before.effective();
        access.what == What::Execute && trip(&registers, Access { address: beside, ..access }).armed != 0
    }

    /// Where the model says that the guest got #DB, it did not.
    fn missed(&mut self) {
        if let Some(Outcome::Exception { vector: Vector::Debug, .. }) = self.told {
            self.guest.unlike.missed(self.before.own.dr7);
        }
    }

    fn mov_dr(&mut self, act: Act, number: u8, ring: u8, write: Option<u64>) -> Result<Seen, Error> {
        let Some(happened) = self.guest.vcpu.perform(self.tasks, act)? else {
            return Ok(unobserved("there is no such instruction"));
        };
        let done = write.map_or(Outcome::Value(happened.value), |_| Outcome::Ok);
        let seen = self.seen(&happened, done, true, false);
        if self.kind == Kind::Emulated
            && let Some(why) = self.guest.unlike.mov_dr(&self.before, number, ring, write)
        {
            return Ok(unobserved(why));
        }
        if let Some(why) = self.guest.unlike.all {
            return Ok(unobserved(why));
        }
        Ok(match (&seen, Dr::from_number(number)) {
            (Seen::Outcome(Outcome::Ok), Some(dr)) => {
                self.guest.unlike.written(dr);
                seen
            }
            (Seen::Outcome(Outcome::Value(_)), Some(dr)) => self.guest.unlike.read(dr).map_or(seen, unobserved),
            _ => seen,
        })
    }

    /// What came of an instruction that may fault, or only trap.
    fn seen(&mut self, happened: &Happened, done: Outcome, faults: bool, emulated: bool) -> Seen {
        match happened.stop {
            Stop::Left(Exit::Debug { dr6, dr7, .. }) => {
                let outcome = Outcome::ExitDebug { dr6, dr7 };
                // KVM's emulator leaves the field as it is (Z-6).
                let stale = emulated || self.kind == Kind::Emulated;
                return if stale { Seen::Without(outcome, vec![Dr::Control]) } else { Seen::Outcome(outcome) };
            }
            Stop::Left(exit) => return self.strange(exit),
            Stop::Parked if happened.endless => return Seen::Strange("#DB without end".to_owned()),
            Stop::Parked => {}
        }
        let Some(record) = happened.first else { return Seen::Outcome(done) };
        let fault = faults && record.rip == happened.key;
        let vector = match record.vector {
            1 => Vector::Debug,
            6 if fault => Vector::InvalidOpcode,
            13 if fault => Vector::GeneralProtection,
            other => return Seen::Strange(format!("exception {other} at {:#x}", record.rip)),
        };
        if vector == Vector::Debug {
            self.guest.unlike.delivered();
        }
        Seen::Outcome(Outcome::Exception { vector, dr6: record.dr6, fault })
    }

    /// The guest left where it should not have.
    fn strange(&mut self, exit: Exit) -> Seen {
        if exit == Exit::Unknown && self.kind == Kind::Emulated {
            return self.undone("KVM's emulator does not know the instruction");
        }
        let why = format!("KVM_RUN came to {exit:?}");
        if exit != Exit::Unknown {
            self.guest.lost = Some(format!("{why} before it"));
        }
        Seen::Strange(why)
    }

    fn set_guest_debug(&mut self, debug: GuestDebug) -> Result<Seen, Error> {
        self.outside()?;
        // Only an exit for a MOV DR leaves the window open, and a debugger that comes then finds it so (Z-1).
        if self.before.wont_exit && debug.control & GuestDebug::ENABLE != 0 {
            self.guest.unlike.all = Some(unlike::OPEN_WINDOW);
        }
        let result = self.guest.vcpu.vm.set_guest_debug(self.tasks, debug)?;
        if result.is_ok() {
            let enabled = debug.control & GuestDebug::ENABLE != 0;
            let injects = debug.control & (GuestDebug::INJECT_DB | GuestDebug::INJECT_BP) != 0;
            self.guest.vcpu.control = if enabled { debug.control } else { 0 };
            self.guest.vcpu.injecting |= injects;
        }
        Ok(outcome(result))
    }

    fn get_debugregs(&mut self) -> Result<Seen, Error> {
        self.outside()?;
        let registers = match self.guest.vcpu.vm.debugregs(self.tasks)? {
            Ok(registers) => registers,
            Err(errno) => return Ok(refused(errno)),
        };
        if let Some(why) = self.guest.unlike.all {
            return Ok(unobserved(why));
        }
        let outcome = Outcome::Registers(Registers { dr: registers.db, dr6: registers.dr6, dr7: registers.dr7 });
        let unlike = self.guest.unlike.registers(self.before.dr7);
        Ok(if unlike.is_empty() { Seen::Outcome(outcome) } else { Seen::Without(outcome, unlike) })
    }

    fn set_debugregs(&mut self, dr: [Option<u64>; 4], dr6: Option<u64>, dr7: Option<u64>) -> Result<Seen, Error> {
        self.outside()?;
        let mut registers = match self.guest.vcpu.vm.debugregs(self.tasks)? {
            Ok(registers) => registers,
            Err(errno) => return Ok(refused(errno)),
        };
        for (register, value) in registers.db.iter_mut().zip(dr) {
            *register = value.unwrap_or(*register);
        }
        registers.dr6 = dr6.unwrap_or(registers.dr6);
        registers.dr7 = dr7.unwrap_or(registers.dr7);
        let result = self.guest.vcpu.vm.set_debugregs(self.tasks, registers)?;
        if result.is_ok() {
            self.guest.unlike.set(dr6, dr7, self.kind);
        }
        Ok(outcome(result))
    }

    fn init(&mut self) -> Result<Seen, Error> {
        self.outside()?;
        match self.guest.vcpu.vm.init(self.tasks)? {
            Ok(true) => {
                self.guest.unlike = Unlike::default();
                self.guest.vcpu.injecting = false;
                Ok(Seen::Outcome(Outcome::Ok))
            }
            Ok(false) => Ok(self.lose("the vCPU has not taken an INIT".to_owned())),
            Err(errno) => Ok(refused(errno)),
        }
    }
}

pub(super) fn nothing() -> Outcome {
    Outcome::Hits { counters: Vec::new(), kgdb: false, sigtrap: None }
}
