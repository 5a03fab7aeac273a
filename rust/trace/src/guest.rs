//! What guests did to their own registers between two VMRUNs: input that only a steps file has.

use crate::input::{Input, Trace, Why};
use crate::steps::What;

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
    /// What it executed without an exit.
    pub(crate) executed: Vec<Mov>,
    /// The access that exited and ended the stay.
    pub(crate) trapped: Option<Mov>,
}

/// By entry row of the trace, in order: the stay that it begins. Empty without a steps file.
///
/// The k-th VMRUN is the k-th `kvm_entry` line. A trace whose head was overwritten lacks the first ones, so the two are
/// aligned at the end.
pub(crate) fn runs(trace: &Trace) -> Vec<Run> {
    let Some(steps) = &trace.steps else { return Vec::new() };
    let mut stays: Vec<Run> = Vec::new();
    let mut current = vec![None; usize::from(steps.iter().map(|step| step.cpu).max().unwrap_or(0)) + 1];
    for step in steps {
        let stay = &mut current[usize::from(step.cpu)];
        match (step.what, step.is_kernel(), *stay) {
            (What::VmRun, _, _) => {
                *stay = Some(stays.len());
                stays.push(Run::default());
            }
            (What::Write { dr, value }, false, Some(at)) => stays[at].executed.push(Mov { dr, write: Some(value) }),
            (What::Read { dr }, false, Some(at)) => stays[at].executed.push(Mov { dr, write: None }),
            (_, true, _) => *stay = None,
            _ => {}
        }
    }
    let entries = trace.rows.iter().filter(|row| matches!(row.input, Input::Entry { .. })).count();
    let mut stays = stays.split_off(stays.len().saturating_sub(entries));
    // An access that exits is logged when it traps; it was not executed then.
    let mut entry = None;
    let mut last = vec![None; trace.cpus];
    for row in &trace.rows {
        match row.input {
            Input::Entry { .. } => {
                let next = entry.map_or(0, |at| at + 1);
                entry = Some(next);
                last[usize::from(row.cpu)] = Some(next);
            }
            Input::KvmExit { why: Why::DrAccess { dr, write }, .. } => {
                if let Some(stay) = last[usize::from(row.cpu)].and_then(|at: usize| stays.get_mut(at)) {
                    let fits = |mov: &Mov| mov.dr == dr && mov.write.is_some() == write;
                    stay.trapped = stay.executed.pop_if(|mov| fits(mov));
                }
            }
            _ => {}
        }
    }
    stays
}
