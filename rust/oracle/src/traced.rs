//! The trace of a kernel that performed a scenario, replayed: where more is switched than the scenario says, the lines
//! tell it.
//!
//! What `debugreg replay --verify` compares is compared: installs, uninstalls, refreshes, readings-back, every MOV DR of
//! the host with its value, and the registers of guests.

use std::collections::BTreeSet;
use std::path::Path;

use debugreg_model::scenario::{Expectation, Scenario};
use debugreg_model::{Event, Options, Processor, VcpuId, Vendor};
use debugreg_trace::input::Input;
use debugreg_trace::{Difference, Trace, replay, steps};

use crate::report::Report;
use crate::{Error, Likeness};

/// Whether a scenario's instructions are compared with its trace: with two CPUs, whose tasks sleep between the lines, and
/// with guests, which leave more often than the scenario says.
///
/// Of a thread that runs two vCPUs no line tells which one an ioctl is about, nor of a guest whether it has DR4 and DR5.
pub fn wants_trace(parsed: &Scenario) -> bool {
    let threads: BTreeSet<_> = parsed.vcpus.iter().map(|vcpu| vcpu.task).collect();
    let writes_aliases = |id: VcpuId| {
        parsed.lines.iter().any(|line| matches!(line.event, Event::MovToDr { vcpu, dr: 4 | 5, .. } if vcpu == id))
    };
    let mut vcpus = (0..).map(VcpuId::from).zip(&parsed.vcpus);
    (parsed.options.cpus > 1 || !parsed.vcpus.is_empty())
        && threads.len() == parsed.vcpus.len()
        && vcpus.all(|(id, vcpu)| !vcpu.debug_extensions || !writes_aliases(id))
}

/// Lets each line fail in which the trace, with its log, is not what the model says.
///
/// # Errors
///
/// [`Error::Lost`] if the log cannot be read, or is not that of the trace.
pub fn compare_trace(
    report: &mut Report,
    parsed: &Scenario,
    likeness: Likeness,
    log: &[u8],
    lines: &[u8],
) -> Result<(), Error> {
    let log = steps::parse(Path::new("the log of the emulated machine"), log);
    let log = log.map_err(|error| Error::Lost(error.to_string()))?;
    let mut trace = Trace::parse("the trace of the emulated machine", lines);
    trace.quiet_before = true;
    trace.lay_beside(&log);
    if let Some(untied) = trace.untied {
        return Err(Error::Lost(untied.to_string()));
    }
    let options = Options { vendor: Vendor::Amd, processor: Processor::Tcg, ..Options::default() };
    let replayed = replay(&trace, likeness.policy, options, true, |_| true);
    let Some(verify) = replayed.and_then(|replayed| replayed.verify) else { return Ok(()) };
    report.moves += verify.step.map_or(0, |score| score.matched);
    let unknown = untold(parsed, report);
    for difference in verify.differences {
        blame(report, &trace, difference, unknown);
    }
    let steps = &report.steps;
    report.ok = steps.iter().all(|step| step.ok != Some(false)) && steps.iter().any(|step| step.ok == Some(true));
    Ok(())
}

/// The first line of which the trace does not tell everything.
fn untold(parsed: &Scenario, report: &Report) -> u32 {
    let mut holders = BTreeSet::new();
    let mut reach = BTreeSet::new();
    let mut debugged = BTreeSet::new();
    for (line, step) in parsed.lines.iter().zip(&report.steps) {
        let dies = step.observed.as_ref().is_some_and(|observed| observed.contains("sigtrap"));
        let is_untold = match line.event {
            Event::PerfEventOpen { by, attr, task, .. } => {
                let is_own = task == Some(by);
                if !is_own || attr.inherit {
                    holders.insert(by);
                }
                if let (false, Some(Expectation::Bind(counter))) = (is_own, &line.expectation) {
                    reach.insert(*counter);
                }
                false
            }
            // The driver has the descriptors too, which shows in no line, and keeps counters in the registers that are not
            // those of who ends.
            Event::Exit(task) => holders.contains(&task),
            Event::TaskAccess { task, .. } => dies && holders.contains(&task),
            // Two interrupts of another CPU: what it does between them depends on how fast they come.
            Event::Modify(counter, _) => reach.contains(&counter),
            Event::SetGuestDebug(vcpu, debug) => {
                debugged.retain(|&other| other != vcpu);
                debugged.extend((debug.control != 0).then_some(vcpu));
                false
            }
            // KVM's emulator found the guest's GD by itself, and cleared it.
            Event::MovToDr { vcpu, .. } | Event::MovFromDr { vcpu, .. } => {
                debugged.contains(&vcpu) && step.observed.as_ref().is_some_and(|observed| observed.starts_with("#DB"))
            }
            // It reaches the vCPU without a system call of its thread.
            Event::Init(_) => true,
            _ => false,
        };
        if is_untold {
            return line.number;
        }
    }
    u32::MAX
}

/// The line of the scenario in whose phase it is fails: the last one that has begun. What comes before the first is the
/// world's own.
fn blame(report: &mut Report, trace: &Trace, difference: Difference, unknown: u32) {
    let begun = trace.rows.iter().take_while(|row| row.line <= difference.line);
    let number = begun.filter_map(|row| match row.input {
        Input::Phase(at) => trace.phases[at].parse::<u32>().ok(),
        _ => None,
    });
    let Some(number) = number.last().filter(|&number| number < unknown) else { return };
    if let Some(step) = report.steps.iter_mut().rfind(|step| step.line <= number)
        && step.ok != Some(false)
    {
        step.ok = Some(false);
        step.expected = Some(difference.predicted);
        step.observed = Some(difference.observed);
    }
}
