//! What the lines leave open: they do not tell what somebody holds.

use debugreg::{Dr7, Slot};
use debugreg_model::{CounterId, State};

use super::Replayer;
use crate::strangers::{Stranger, Who};

impl Replayer<'_> {
    /// A counter is not any more what it was, and the probe could not read what it is.
    pub(super) fn alter(&mut self, counter: CounterId, line: u32) {
        let target = self.machine.counter(counter);
        let pid = self.tasks.iter().find(|&(_, &task)| Some(task) == target.target).map(|(&pid, _)| pid);
        let who = match (pid, target.cpu) {
            (Some(pid), _) => Who::Task(pid),
            (None, Some(cpu)) => Who::Cpu(cpu.0 as u16),
            (None, None) => return,
        };
        self.altered.push((self.unseen.holders.len(), counter));
        self.unseen.holders.push(Stranger { who, from: line, to: u32::MAX });
    }

    /// Descriptors have been closed: what was altered may be gone.
    pub(super) fn end_altered(&mut self, line: u32) {
        self.altered.retain(|&(holder, counter)| {
            let is_dead = self.machine.counter(counter).state == State::Dead;
            if is_dead {
                self.unseen.holders[holder].to = line;
            }
            !is_dead
        });
    }

    /// A tracer enables registers of a task that is older than the trace: in those that it is not seen to write before,
    /// there may be any address.
    pub(super) fn poke_of_unknown_address(&mut self, tracee: i32, dr: u8, value: u64, line: u32) {
        if self.quiet_before || self.born.contains(&tracee) {
            return;
        }
        let poked = self.poked.entry(tracee).or_default();
        match dr {
            0..=3 => *poked |= 1 << dr,
            7 => {
                let mut armed = Slot::ALL.into_iter().filter(|&slot| Dr7(value).is_armed(slot));
                if armed.any(|slot| *poked & 1 << slot.index() == 0) {
                    self.unseen.holders.push(Stranger { who: Who::Task(tracee), from: line, to: u32::MAX });
                }
            }
            _ => {}
        }
    }
}
