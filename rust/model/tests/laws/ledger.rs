//! What was asked for, kept from events and outcomes alone.

use std::collections::BTreeMap;

use debugreg::{Breakpoint, Dr7, Kind, Length, Slot};
use debugreg_model::{Attr, BpType, CounterId, CpuId, Event, GuestDebug, Outcome, TaskId, Vector};

/// A counter as its owner knows it.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) attr: Attr,
    pub(crate) cpu: Option<CpuId>,
    /// The tasks that have it or a copy of it; `None` for a counter of a CPU.
    pub(crate) tasks: Option<Vec<TaskId>>,
    pub(crate) enabled: bool,
    /// The tasks that have a descriptor.
    pub(crate) descriptors: Vec<TaskId>,
}

/// What was asked for: a second, plainer account of it, to disagree with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) counters: BTreeMap<u32, Asked>,
    /// DR0-DR3 and DR7 of tracers, as last accepted.
    pub(crate) traced: BTreeMap<u32, ([u64; 4], u64)>,
    /// DR0-DR3 and DR7 of guests, as they themselves or their VMM wrote them.
    pub(crate) guests: [Guest; 2],
}

#[derive(Clone, Debug)]
pub(crate) struct Guest {
    pub(crate) dr: [u64; 4],
    pub(crate) dr7: u64,
    /// A debugger's #DB waits for the next entry.
    pub(crate) injected: bool,
}

impl Default for Guest {
    fn default() -> Guest {
        Guest { dr: [0; 4], dr7: Dr7::FIXED, injected: false }
    }
}

impl Ledger {
    pub(crate) fn record(&mut self, event: &Event, outcome: &Outcome) {
        match (event, outcome) {
            (&Event::PerfEventOpen { by, attr, task, cpu, .. }, Outcome::Bound(id)) => {
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
            (Event::Fork { parent, child, .. }, Outcome::Ok) => {
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

    pub(crate) fn record_guest(&mut self, event: &Event, outcome: &Outcome) {
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
            (Event::Init(_), Outcome::Ok) => *guest = Guest::default(),
            _ => {}
        }
    }

    pub(crate) fn counter(&mut self, id: CounterId) -> &mut Asked {
        self.counters.get_mut(&id.0).expect("an open counter")
    }

    /// A task's counters end with it; one whose last descriptor it had is closed.
    pub(crate) fn exit(&mut self, task: TaskId) {
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
    pub(crate) fn owed(&self, cpu: CpuId, running: TaskId) -> Vec<Breakpoint> {
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
