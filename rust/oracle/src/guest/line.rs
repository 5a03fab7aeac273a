//! A line of a guest: performed, and what came of it.
//!
//! Where KVM emulates a guest's instructions, it does what real guests do but for what is said here; a line whose outcome
//! depends on that is unobserved, and so is what follows from it.

use debugreg::trip::{Access, What};
use debugreg::{Dr, Dr7, Registers};
use debugreg_model::{Event, ExitReason, GuestDebug, Insn, Outcome, Vcpu as Model, Vector};

use super::code::Act;
use super::vcpu::{Happened, Stop};
use super::vm::Exit;
use super::{Guest, Kind, Unlike, with_prefix};
use crate::Error;
use crate::perform::{outcome, pages, refused, unobserved};
use crate::report::Seen;
use crate::tasks::Tasks;

const NO_DATA: &str = "this KVM emulates a guest's instructions (kvm-pvm), and its emulator knows no data breakpoints";
const MISSED_HIT: &str = "a data breakpoint before it would have changed this, but guests are emulated here (kvm-pvm)";
const EMULATED_GD: &str =
    "guests are emulated here (kvm-pvm), and KVM's emulator minds the guest's own GD whoever has the registers (H-21)";
const EMULATED_PRIVILEGE: &str =
    "guests are emulated here (kvm-pvm), and KVM's emulator looks at the privilege before the register's number";
const OPEN_WINDOW: &str = "in the model this follows from an exit for a MOV DR, which user space cannot choose";
const EMULATED_ALIAS: &str = "guests are emulated here (kvm-pvm), and KVM's emulator ignores bits 63:32 for DR4 and DR5 \
                              (em_dr_write, to 6.18), without an exception and without effect";

/// A line of a guest.
pub(super) struct Performing<'a, 'w> {
    pub(super) guest: &'a mut Guest,
    pub(super) tasks: &'a mut Tasks<'w>,
    pub(super) kind: Kind,
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
            Event::GuestAccess { access, emulated, .. } => self.access(access, emulated),
            Event::MovToDr { dr, value, cpl, .. } => {
                self.mov_dr(Act::ToDr { number: dr, value, ring: cpl }, dr, Some(value))
            }
            Event::MovFromDr { dr, cpl, .. } => self.mov_dr(Act::FromDr { number: dr, ring: cpl }, dr, None),
            Event::SetGuestDebug(_, debug) => self.set_guest_debug(debug),
            Event::GetDebugregs(_) => self.get_debugregs(),
            Event::SetDebugregs { dr, dr6, dr7, .. } => self.set_debugregs(dr, dr6, dr7),
            Event::Init(_) => self.init(),
            _ => Ok(unobserved("user space cannot do that")),
        }
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
        let records = self.guest.vcpu.records();
        Ok(match (stop, &records[..]) {
            (Stop::Left(exit), _) => self.strange(exit),
            (Stop::Parked, []) => Seen::Outcome(Outcome::Ok),
            (Stop::Parked, [only]) if injected && only.vector == 1 => Seen::Outcome(Outcome::Ok),
            (Stop::Parked, [first, ..]) => Seen::Strange(format!("exception {} on entry", first.vector)),
        })
    }

    fn exit(&mut self, reason: ExitReason) -> Result<Seen, Error> {
        const NOT_BY_CHOICE: &str = "user space cannot choose this exit: it left by a port instead";
        let vcpu = &mut self.guest.vcpu;
        let stays = |stop: Exit, as_meant: bool| match stop {
            Exit::Port(_) if !as_meant => unobserved(NOT_BY_CHOICE),
            Exit::Port(_) | Exit::Halt | Exit::Signal => Seen::Outcome(Outcome::Ok),
            other => Seen::Strange(format!("{other:?}")),
        };
        Ok(match reason {
            ExitReason::Fastpath => unobserved("which exits KVM handles inside its loop does not show"),
            // A local APIC of KVM's would have the task sleep.
            ExitReason::Other("hlt") if !vcpu.vm.has_apic => stays(vcpu.halt(self.tasks)?, true),
            ExitReason::Other("intr") => stays(vcpu.interrupt(self.tasks)?, true),
            ExitReason::Other("io") => stays(vcpu.leave(self.tasks)?, true),
            _ => stays(vcpu.leave(self.tasks)?, false),
        })
    }

    fn access(&mut self, access: Access, emulated: bool) -> Result<Seen, Error> {
        let io = matches!(access.what, What::Io { .. });
        let forced = emulated && !io && self.kind == Kind::Hardware;
        if forced && !self.forcible {
            return Ok(unobserved("KVM's emulator is not to be had: kvm.force_emulation_prefix is 0"));
        }
        let reached =
            io || pages(with_prefix(access, forced), Insn::Plain).all(|page| self.guest.vcpu.image.is_mapped(page));
        let Access { address, bytes, .. } = access;
        let act = match access.what {
            What::Store => Act::Store { address, bytes, forced },
            What::Load => Act::Load { address, bytes, forced },
            What::Execute => Act::Execute { address, forced },
            What::Io { .. } => Act::Out { port: address as u16, bytes },
        };
        let happened = if reached { self.guest.vcpu.perform(self.tasks, act)? } else { None };
        let Some(happened) = happened else {
            self.missed();
            let why = if reached { "this driver has no such access" } else { "nothing can be mapped there" };
            return Ok(unobserved(why));
        };
        let seen = self.seen(&happened, nothing(), emulated);
        let data = matches!(access.what, What::Load | What::Store) && !emulated;
        if data && self.kind == Kind::Emulated && seen == Seen::Outcome(nothing()) {
            self.missed();
            return Ok(unobserved(NO_DATA));
        }
        Ok(self.guest.unlike.all.map_or(seen, unobserved))
    }

    /// Where the model says that the guest got #DB, it did not.
    fn missed(&mut self) {
        if let Some(Outcome::Exception { vector: Vector::Debug, .. }) = self.told {
            self.guest.unlike.dr6 = true;
            if self.before.own.dr7 & Dr7::GD != 0 {
                self.guest.unlike.all = Some(MISSED_HIT);
            }
        }
    }

    fn mov_dr(&mut self, act: Act, number: u8, write: Option<u64>) -> Result<Seen, Error> {
        let Some(happened) = self.guest.vcpu.perform(self.tasks, act)? else {
            return Ok(unobserved("there is no such instruction"));
        };
        let done = write.map_or(Outcome::Value(happened.value), |_| Outcome::Ok);
        let seen = self.seen(&happened, done, false);
        if self.kind == Kind::Emulated {
            let detects = (self.before.own.dr7 | self.before.debug.dr7) & Dr7::GD != 0;
            if self.before.debugger_gets_db() && detects {
                self.guest.unlike.all = Some(EMULATED_GD);
            }
            let ring = match act {
                Act::ToDr { ring, .. } | Act::FromDr { ring, .. } => ring,
                _ => 0,
            };
            if number > 7 && ring > 0 {
                return Ok(unobserved(EMULATED_PRIVILEGE));
            }
            if matches!(number, 4 | 5) && write.is_some_and(|value| value > u64::from(u32::MAX)) {
                return Ok(unobserved(EMULATED_ALIAS));
            }
        }
        if let Some(why) = self.guest.unlike.all {
            return Ok(unobserved(why));
        }
        if Dr::from_number(number) == Some(Dr::Status) {
            match (&seen, write) {
                (Seen::Outcome(Outcome::Ok), Some(_)) => self.guest.unlike.dr6 = false,
                (Seen::Outcome(Outcome::Value(_)), None) if self.guest.unlike.dr6 => {
                    return Ok(unobserved(MISSED_HIT));
                }
                _ => {}
            }
        }
        Ok(seen)
    }

    /// What came of an instruction.
    fn seen(&mut self, happened: &Happened, done: Outcome, emulated: bool) -> Seen {
        match happened.stop {
            Stop::Left(Exit::Debug { dr6, dr7, .. }) => {
                let outcome = Outcome::ExitDebug { dr6, dr7 };
                // KVM's emulator leaves the field as it is (kvm_vcpu_check_code_breakpoint, to 6.18).
                if emulated || self.kind == Kind::Emulated {
                    return Seen::Without(outcome, Dr::Control);
                }
                return Seen::Outcome(outcome);
            }
            Stop::Left(exit) => return self.strange(exit),
            Stop::Parked => {}
        }
        let Some(record) = happened.records.first() else { return Seen::Outcome(done) };
        let fault = record.rip == happened.key;
        let vector = match record.vector {
            1 => Vector::Debug,
            6 if fault => Vector::InvalidOpcode,
            13 if fault => Vector::GeneralProtection,
            other => return Seen::Strange(format!("exception {other} at {:#x}", record.rip)),
        };
        if vector == Vector::Debug {
            // B0-B3 of a missed hit are gone; others do not come from one.
            self.guest.unlike.dr6 = false;
        }
        Seen::Outcome(Outcome::Exception { vector, dr6: record.dr6, fault })
    }

    /// The guest left where it should not have.
    fn strange(&mut self, exit: Exit) -> Seen {
        if exit == Exit::Unknown && self.kind == Kind::Emulated {
            return unobserved("KVM's emulator does not know the instruction");
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
            self.guest.unlike.all = Some(OPEN_WINDOW);
        }
        let result = self.guest.vcpu.vm.set_guest_debug(self.tasks, debug)?;
        if result.is_ok() {
            let enabled = debug.control & GuestDebug::ENABLE != 0;
            self.guest.vcpu.control = if enabled { debug.control } else { 0 };
            self.guest.vcpu.injecting |= debug.control & GuestDebug::INJECT_DB != 0;
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
        let registers = Registers { dr: registers.db, dr6: registers.dr6, dr7: registers.dr7 };
        let outcome = Outcome::Registers(registers);
        Ok(if self.guest.unlike.dr6 { Seen::Without(outcome, Dr::Status) } else { Seen::Outcome(outcome) })
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
            self.guest.unlike.dr6 &= dr6.is_none();
        }
        Ok(outcome(result))
    }

    fn init(&mut self) -> Result<Seen, Error> {
        self.outside()?;
        match self.guest.vcpu.vm.init(self.tasks)? {
            Ok(true) => {
                self.guest.unlike = Unlike::default();
                Ok(Seen::Outcome(Outcome::Ok))
            }
            Ok(false) => Ok(self.lose("the vCPU has not taken an INIT".to_owned())),
            Err(errno) => Ok(refused(errno)),
        }
    }
}

fn nothing() -> Outcome {
    Outcome::Hits { counters: Vec::new(), kgdb: false, sigtrap: None }
}

/// Whether the machine is emulated by QEMU (CPUID leaf 0x40000000).
fn is_tcg() -> bool {
    let leaf = std::arch::x86_64::__cpuid(0x4000_0000);
    [leaf.ebx, leaf.ecx, leaf.edx].map(u32::to_le_bytes).concat() == b"TCGTCGTCGTCG"
}
