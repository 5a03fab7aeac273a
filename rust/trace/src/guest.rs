//! What guests did to their own registers between two VMRUNs: input that only a steps file has.

use debugreg::{Dr, Registers};

use crate::input::{Input, Trace, Why};
use crate::steps::{MarkName, Step, What};
use crate::tie::Place;
use crate::truth::Anchor;

/// A MOV DR of a guest.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Mov {
    /// 0 to 7.
    pub(crate) dr: u8,
    /// The value; `None` for a read.
    pub(crate) write: Option<u64>,
}

/// One stay in the guest.
#[derive(Clone, Default, Debug)]
pub(crate) struct Run {
    /// The line of the entry; 0 if that is not in the trace.
    pub(crate) line: u32,
    /// What it executed without an exit.
    pub(crate) executed: Vec<Mov>,
    /// The access that exited and ended the stay.
    pub(crate) trapped: Option<Mov>,
    /// A #DB ended it: that of the last access, if DR7.GD is set then.
    pub(crate) ends_in_db: bool,
}

/// What guests did.
#[derive(Clone, Debug)]
pub(crate) struct Guests {
    /// By entry row of the trace, in order: in the stay that it begins.
    pub(crate) runs: Vec<Run>,
    /// By CPU: in the stay that was begun before the first line.
    pub(crate) begun: Vec<Run>,
    /// What was written before the first line, if it was by the one vCPU that the trace has.
    pub(crate) before: Registers,
}

/// Lays the steps of guests beside the entries of the trace.
pub(crate) fn guests(trace: &Trace, steps: &[Step], places: &[Place]) -> Guests {
    let entries = trace.rows.iter().filter(|row| matches!(row.input, Input::Entry { .. }));
    let mut stays: Vec<Run> = entries.map(|row| Run { line: row.line, ..Run::default() }).collect();
    let mut begun = vec![Run::default(); places.len()];
    let mut before = Registers::RESET;
    // By CPU: the number of its next mark, and in which stay its guest is, if it is in one.
    let mut next = vec![0; places.len()];
    let mut current: Vec<Option<Stay>> = vec![None; places.len()];
    for step in steps {
        let cpu = usize::from(step.cpu);
        let write = match step.what {
            What::Write { value, .. } => Some(value),
            What::Read { .. } => None,
            What::VmRun => {
                let anchor = places[cpu].anchor(next[cpu]);
                current[cpu] = match anchor {
                    Some(Anchor::Entry { window }) => at_line(&stays, window).map(Stay::Shown),
                    Some(_) => None,
                    None if places[cpu].is_after(next[cpu]) => None,
                    None => {
                        begun[cpu] = Run::default();
                        Some(Stay::Begun)
                    }
                };
                next[cpu] += 1;
                continue;
            }
            What::Mark { name: MarkName::Install | MarkName::Uninstall | MarkName::Restore, .. } => {
                // Of a stay that was over before the first line nothing is left to be shown.
                if places[cpu].anchor(next[cpu]).is_none() {
                    begun[cpu] = Run::default();
                }
                next[cpu] += 1;
                current[cpu] = None;
                continue;
            }
            What::Mark { .. } => {
                current[cpu] = current[cpu].filter(|_| !step.is_kernel());
                continue;
            }
        };
        let (What::Write { dr, .. } | What::Read { dr }) = step.what else { continue };
        let stay = match current[cpu] {
            _ if step.is_kernel() => {
                current[cpu] = None;
                continue;
            }
            Some(Stay::Shown(at)) => &mut stays[at],
            Some(Stay::Begun) => {
                if let (Some(dr), Some(value)) = (Dr::from_number(dr), write) {
                    before.set(dr, value);
                }
                &mut begun[cpu]
            }
            None => continue,
        };
        stay.executed.push(Mov { dr, write });
    }
    set_trapped_apart(trace, &mut stays, &mut begun);
    let before = if has_one_vcpu(trace) { before } else { Registers::RESET };
    Guests { runs: stays, begun, before }
}

fn at_line(runs: &[Run], line: u32) -> Option<usize> {
    runs.binary_search_by_key(&line, |run| run.line).ok()
}

impl Guests {
    /// The stay that the entry of this line begins.
    pub(crate) fn run(&self, line: u32) -> Option<&Run> {
        at_line(&self.runs, line).map(|at| &self.runs[at])
    }
}

fn has_one_vcpu(trace: &Trace) -> bool {
    let mut vcpus = trace.rows.iter().filter_map(|row| match row.input {
        Input::Entry { vcpu, .. } | Input::KvmExit { vcpu: Some(vcpu), .. } => Some((row.pid, vcpu)),
        _ => None,
    });
    let first = vcpus.next();
    vcpus.all(|vcpu| Some(vcpu) == first)
}

/// A stay in a guest.
#[derive(Copy, Clone)]
enum Stay {
    /// Its entry is the trace's entry row of this number.
    Shown(usize),
    /// It was entered before the first line.
    Begun,
}

/// An access that exits is logged when it traps; it was not executed then. Of a stay whose exit is not in the trace nothing
/// can be said.
fn set_trapped_apart(trace: &Trace, stays: &mut [Run], begun: &mut [Run]) {
    let mut entries = 0;
    let mut last: Vec<Option<usize>> = vec![None; begun.len()];
    let mut is_in = vec![false; begun.len()];
    for row in &trace.rows {
        let cpu = usize::from(row.cpu);
        match row.input {
            Input::Entry { .. } => {
                last[cpu] = Some(entries);
                is_in[cpu] = true;
                entries += 1;
            }
            Input::KvmExit { why, .. } => {
                // Where events were lost, one exit may follow another.
                if !std::mem::replace(&mut is_in[cpu], false) && last[cpu].is_some() {
                    continue;
                }
                let stay = match last[cpu] {
                    Some(at) => &mut stays[at],
                    None => &mut begun[cpu],
                };
                stay.ends_in_db = why == Why::Db;
                if let Why::DrAccess { dr, write } = why {
                    let fits = |mov: &Mov| mov.dr == dr && mov.write.is_some() == write;
                    stay.trapped = stay.executed.pop_if(|mov| fits(mov));
                }
            }
            _ => {}
        }
    }
    for (_, last) in is_in.into_iter().zip(last).filter(|&(is_in, _)| is_in) {
        let stay = &mut stays[last.expect("entered")];
        *stay = Run { line: stay.line, ..Run::default() };
    }
}
