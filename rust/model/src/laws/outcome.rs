//! What an event should come to, from what was asked for alone.

use debugreg::trip::{Access, What, trip};
use debugreg::{Dr, Dr6, Dr7, Registers};

use super::{Breach, Law};
use crate::event::{Errno, Event, GuestDebug, Insn, Outcome, Vector};
use crate::machine::{Machine, Processor, Vendor};
use crate::{CounterId, Origin, TaskId, VcpuId};

/// What an event should come to.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Expected {
    /// No law says.
    Anything,
    /// Exactly this.
    Exactly(Law, Outcome),
    /// Who hears of a task's access.
    Hits { counters: Vec<CounterId>, kgdb: bool, sigtrap: Option<u64> },
    /// A guest's access that trips nothing.
    Nothing,
    /// A #DB for the guest, which finds its own DR6.
    Db { fault: bool },
    /// KVM_EXIT_DEBUG, with these events, and the DR7 that was in force.
    Told { events: u64, dr7: u64 },
    /// An exit of a nested guest to its hypervisor, with these.
    Nested { dr6: u64, dr7: u64 },
    /// The VMM, or the guest, reads the guest's registers.
    Own(VcpuId, Option<Dr>),
    /// A registration: whether the rule of slots admits it, if that is known, and how many counters there were.
    Slots { admits: Option<bool>, live: usize },
}

impl Expected {
    pub(super) fn of(machine: &Machine, event: &Event) -> Expected {
        if machine.options.processor == Processor::Tcg {
            // An emulator has faults of its own; they are compared, not judged.
            return Expected::Anything;
        }
        match *event {
            Event::TaskAccess { task, access, insn: Insn::Plain, kernel } => hits(machine, task, access, kernel),
            Event::GuestAccess { vcpu, access, insn, emulated } => guest_access(machine, vcpu, access, insn, emulated),
            Event::MovToDr { vcpu, dr, value, cpl } => mov_dr(machine, vcpu, dr, Some(value), cpl),
            Event::MovFromDr { vcpu, dr, cpl } => mov_dr(machine, vcpu, dr, None, cpl),
            Event::GetDebugregs(vcpu) if !machine.policy.world().is_protected() => Expected::Own(vcpu, None),
            Event::SetDebugregs { dr6, dr7, .. } if [dr6, dr7].into_iter().flatten().any(has_upper) => {
                Expected::Exactly(Law::GuestReadsOwn, refused(Errno::EINVAL))
            }
            Event::SetGuestDebug(_, debug)
                if debug.control & GuestDebug::USE_HW_BP != 0
                    && has_upper(debug.dr7)
                    && !machine.policy.world().is_protected() =>
            {
                Expected::Exactly(Law::GuestArmed, refused(Errno::EINVAL))
            }
            Event::VmEntry(_) => Expected::Exactly(Law::GuestArmed, Outcome::Ok),
            Event::NestedExit(vcpu) if machine.guest_runs(vcpu) && machine.vcpu(vcpu).nested.is_some() => {
                let own = machine.vcpu(vcpu).own;
                let dr6 = if machine.options.vendor == Vendor::Amd { own.dr6 } else { Dr6::IDLE.0 };
                Expected::Nested { dr6, dr7: own.dr7 }
            }
            Event::PerfEventOpen { task, cpu, .. } => {
                Expected::Slots { admits: Some(machine.count(task, cpu).is_ok()), live: machine.live().count() }
            }
            Event::PtracePoke { .. } | Event::Fork { .. } | Event::RegisterHwBreakpoint { .. } | Event::Modify(..) => {
                Expected::Slots { admits: None, live: machine.live().count() }
            }
            _ => Expected::Anything,
        }
    }

    /// Whether the outcome is another one, and which law says so.
    pub(super) fn breach(&self, machine: &Machine, event: &Event, outcome: &Outcome) -> Option<Breach> {
        let breach = |law, why: String| Some(Breach { law, why });
        let found = |law, wanted: String| breach(law, format!("{wanted} was due, and there was {}", brief(outcome)));
        match (self, outcome) {
            (Expected::Exactly(_, Outcome::Refused(wanted)), Outcome::Refused(refusal))
                if wanted.errno == refusal.errno =>
            {
                None
            }
            (Expected::Exactly(_, wanted), outcome) if wanted == outcome => None,
            (Expected::Exactly(law, wanted), _) => found(*law, brief(wanted)),
            (Expected::Hits { .. }, _) => self.hits_breach(outcome),
            (Expected::Nothing, outcome) if *outcome == Outcome::nothing() => None,
            (Expected::Nothing, _) => found(Law::Dr6True, "nothing".to_owned()),
            (Expected::Db { fault }, Outcome::Exception { vector: Vector::Debug, dr6, fault: was }) => {
                let own = machine.vcpu(vcpu_of(event)?).own.dr6;
                if fault != was {
                    return found(Law::NoLoss, if *fault { "a fault" } else { "a trap" }.to_owned());
                }
                if *dr6 == own { None } else { found(Law::Dr6True, format!("#DB dr6={own:#x}")) }
            }
            (Expected::Db { .. }, _) => found(Law::NoLoss, "#DB in the guest".to_owned()),
            (Expected::Told { events, dr7 }, Outcome::ExitDebug { dr6, dr7: told }) => {
                let wanted = Dr6::from_events(*events).0;
                let same = *dr6 == wanted && told | Dr7::FIXED == dr7 | Dr7::FIXED;
                if same { None } else { found(Law::Dr6True, format!("exit debug dr6={wanted:#x} dr7={dr7:#x}")) }
            }
            (Expected::Told { .. }, _) => found(Law::NoLoss, "an exit to the debugger".to_owned()),
            (Expected::Nested { dr6, dr7 }, Outcome::ExitNested { dr6: has6, dr7: has7 }) => {
                let same = dr6 == has6 && dr7 | Dr7::FIXED == has7 | Dr7::FIXED;
                if same { None } else { found(Law::GuestReadsOwn, format!("dr6={dr6:#x} dr7={dr7:#x}")) }
            }
            (Expected::Nested { .. }, _) => found(Law::NoLoss, "an exit to the guest hypervisor".to_owned()),
            (Expected::Own(vcpu, dr), outcome) => {
                let own = machine.vcpu(*vcpu).own;
                let wanted = dr.map_or(Outcome::Registers(own), |dr| Outcome::Value(own.get(dr)));
                if wanted == *outcome { None } else { found(Law::GuestReadsOwn, brief(&wanted)) }
            }
            (Expected::Slots { admits: Some(false), .. }, Outcome::Bound(_)) => {
                breach(Law::SlotsSound, "it was admitted, though every slot is spoken for".to_owned())
            }
            (Expected::Slots { admits: Some(true), .. }, Outcome::Refused(refusal))
                if refusal.errno == Some(Errno::ENOSPC) =>
            {
                breach(Law::SlotsSound, "it was refused, though a slot is free".to_owned())
            }
            (Expected::Slots { live, .. }, Outcome::Refused(_)) if *live != machine.live().count() => {
                let now = machine.live().count();
                breach(Law::SlotsSound, format!("it was refused, and {now} counters hold slots instead of {live}"))
            }
            (Expected::Anything | Expected::Slots { .. }, _) => None,
        }
    }

    fn hits_breach(&self, outcome: &Outcome) -> Option<Breach> {
        let Expected::Hits { counters, kgdb, sigtrap } = self else { return None };
        let (law, why) = match outcome {
            Outcome::Hits { counters: heard, kgdb: kgdb_heard, sigtrap: signal } => {
                let lost = counters.iter().any(|id| !heard.contains(id)) || *kgdb && !kgdb_heard;
                let stray = heard.iter().any(|id| !counters.contains(id)) || *kgdb_heard && !kgdb;
                match (lost, stray) {
                    (true, _) => (Law::NoLoss, "a breakpoint was met, and its owner does not hear of it"),
                    (_, true) => (Law::Dr6True, "somebody hears of an access that was not his"),
                    _ if sigtrap.is_some() && signal.is_none() => (Law::NoLoss, "a tracer does not hear of its own"),
                    _ if sigtrap != signal => (Law::Dr6True, "a task gets a SIGTRAP, or a DR6, that is not its own"),
                    _ => return None,
                }
            }
            _ => (Law::NoLoss, "the access never comes to an end"),
        };
        let wanted = brief(&Outcome::Hits { counters: counters.clone(), kgdb: *kgdb, sigtrap: *sigtrap });
        Some(Breach { law, why: format!("{why}: {wanted} was due, and there was {}", brief(outcome)) })
    }
}

fn vcpu_of(event: &Event) -> Option<VcpuId> {
    match *event {
        Event::GuestAccess { vcpu, .. } | Event::MovToDr { vcpu, .. } | Event::MovFromDr { vcpu, .. } => Some(vcpu),
        _ => None,
    }
}

fn hits(machine: &Machine, task: TaskId, access: Access, kernel: bool) -> Expected {
    let cpu = machine.task(task).cpu;
    let (met, kgdb) = machine.met_by(cpu, access);
    let (mut counters, mut events, mut signals) = (Vec::new(), 0, false);
    for id in met {
        let counter = machine.counter(id);
        if if kernel { counter.attr.exclude_kernel } else { counter.attr.exclude_user } {
            continue;
        }
        match counter.origin {
            Origin::Ptrace(dr) => events |= 1 << dr,
            Origin::Kgdb(_) => {}
            _ => {
                let original = machine.original(id);
                if !counters.contains(&original) {
                    counters.push(original);
                }
                signals |= counter.attr.sigtrap;
            }
        }
    }
    let sigtrap = (events != 0 || signals).then(|| Dr6::from_events(events).0);
    Expected::Hits { counters, kgdb: kgdb && kernel, sigtrap }
}

fn guest_access(machine: &Machine, id: VcpuId, access: Access, insn: Insn, emulated: bool) -> Expected {
    let vcpu = machine.vcpu(id);
    let told = vcpu.debugger_owns() && machine.options.disabled_match;
    if vcpu.mov_ss || told || !matches!(insn, Insn::Plain | Insn::PopfTf | Insn::Frame) {
        return Expected::Anything;
    }
    let own_step = insn == Insn::PopfTf;
    if own_step && (vcpu.is_debugged() || emulated || access.what == What::Execute || vcpu.nested.is_some()) {
        return Expected::Anything;
    }
    let executes = access.what == What::Execute;
    let effective = machine.effective(id);
    // The emulator heeds execute breakpoints only.
    let events = if emulated && !executes { 0 } else { u64::from(trip(&effective, access).armed) };
    let step = if vcpu.is_stepped() { Dr6::BS } else { 0 };
    // The fault of an execute breakpoint comes before the instruction, and before its step.
    let events = if executes && events != 0 { events } else { events | step };
    if own_step {
        return Expected::Db { fault: false };
    }
    if events == 0 {
        return Expected::Nothing;
    }
    if vcpu.debugger_owns() {
        return Expected::Told { events, dr7: machine.options.vendor.dr7_after_db(vcpu.debug.dr7) };
    }
    if events & Dr6::BS != 0 {
        return Expected::Told { events: Dr6::BS, dr7: machine.options.vendor.dr7_after_db(vcpu.own.dr7) };
    }
    if vcpu.nested.is_some_and(|nested| nested.intercepts_db) && !emulated {
        let is_amd = machine.options.vendor == Vendor::Amd;
        let dr6 = if is_amd { Dr6(vcpu.own.dr6).after_db(events).0 } else { Dr6::from_events(events).0 };
        return Expected::Nested { dr6, dr7: machine.options.vendor.dr7_after_db(vcpu.own.dr7) };
    }
    Expected::Db { fault: executes }
}

fn mov_dr(machine: &Machine, id: VcpuId, number: u8, write: Option<u64>, cpl: u8) -> Expected {
    let vcpu = machine.vcpu(id);
    let missing = vcpu.debug_extensions && matches!(number, 4 | 5);
    let Some(dr) = Dr::from_number(number).filter(|_| !missing) else { return Expected::Anything };
    // L1 may have asked for the accesses of its guest, which is left out.
    if vcpu.nested.is_some() || vcpu.is_stepped() {
        return Expected::Anything;
    }
    if cpl > 0 {
        let dr6 = vcpu.own.dr6;
        let gp = Outcome::Exception { vector: Vector::GeneralProtection, dr6, fault: true };
        return Expected::Exactly(Law::GuestReadsOwn, gp);
    }
    let in_force = if vcpu.debugger_owns() { vcpu.debug.dr7 } else { vcpu.own.dr7 };
    if in_force & Dr7::GD != 0 {
        let told = Expected::Told { events: Dr6::BD, dr7: machine.options.vendor.dr7_after_db(vcpu.debug.dr7) };
        return if vcpu.debugger_owns() { told } else { Expected::Db { fault: true } };
    }
    match write {
        Some(value) if has_upper(value) && !matches!(dr, Dr::Address(_)) => Expected::Anything,
        Some(_) => Expected::Exactly(Law::GuestReadsOwn, Outcome::Ok),
        None => Expected::Own(id, Some(dr)),
    }
}

fn has_upper(value: u64) -> bool {
    value > u64::from(u32::MAX)
}

fn refused(errno: Errno) -> Outcome {
    Outcome::Refused(crate::Refusal::new(errno, ""))
}

/// An outcome without names.
fn brief(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Ok => "ok".to_owned(),
        Outcome::Value(value) => format!("{value:#x}"),
        Outcome::Bound(_) => "a new counter".to_owned(),
        Outcome::Refused(refusal) => refusal.errno.map_or("error".to_owned(), Errno::name),
        Outcome::Hits { counters, kgdb, sigtrap } => {
            let mut said: Vec<String> = Vec::new();
            if !counters.is_empty() {
                said.push(match counters.len() {
                    1 => "a hit of 1 counter".to_owned(),
                    n => format!("hits of {n} counters"),
                });
            }
            if *kgdb {
                said.push("kgdb".to_owned());
            }
            if let Some(dr6) = sigtrap {
                said.push(format!("SIGTRAP dr6={dr6:#x}"));
            }
            if said.is_empty() { "nothing".to_owned() } else { said.join(" and ") }
        }
        Outcome::Exception { vector: Vector::Debug, dr6, fault } => {
            format!("#DB dr6={dr6:#x}{}", if *fault { " (a fault)" } else { "" })
        }
        Outcome::Exception { vector: Vector::InvalidOpcode, .. } => "#UD".to_owned(),
        Outcome::Exception { vector: Vector::GeneralProtection, .. } => "#GP".to_owned(),
        Outcome::ExitDebug { dr6, dr7 } => format!("exit debug dr6={dr6:#x} dr7={dr7:#x}"),
        Outcome::ExitFailEntry => "a failed entry".to_owned(),
        Outcome::ExitNested { dr6, dr7 } => format!("exit nested dr6={dr6:#x} dr7={dr7:#x}"),
        Outcome::Registers(Registers { dr, dr6, dr7 }) => format!("{dr:x?} dr6={dr6:#x} dr7={dr7:#x}"),
        Outcome::Slots(_) => "slots".to_owned(),
        Outcome::Endless => "a #DB without end".to_owned(),
    }
}
