//! Many operations in one call, for bench/: what one costs in Rust, where no call of Python stands between two.

use std::hint::black_box;

use debugreg::{Kind, Length, Slot};
use debugreg_model::{Attr, Capabilities, CounterId, CpuId, Event, ExitReason, Machine, Misuse, Options, VcpuId};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::machine::{CostFields, cost_fields, policy_of};

const CPU: CpuId = CpuId(0);
const COUNTER: CounterId = CounterId(0);
const VCPU: VcpuId = VcpuId(0);

/// What is repeated.
enum Operation<'a> {
    Encode,
    Skip,
    /// What the methods of Python's handles do.
    Events(&'a [Event; 2]),
}

/// Perform an operation many times, on a machine of its own under the policy 'linux', and return what it cost.
///
/// Args:
///     what: 'encode' (what DR7 gets for a slot), 'skip' (the skip test), 'install' (a counter disabled and enabled),
///         'switch' (from a task with a breakpoint to another and back), 'switch-4' (from one with four),
///         'switch-nothing' (nothing set), 'entry' (VM entry and exit, with a breakpoint of the host), 'entry-nothing'.
///     count: How often.
///
/// Raises:
///     ValueError: Nothing is called so.
#[pyfunction]
#[pyo3(signature = (what, count, /))]
pub(crate) fn batch(py: Python<'_>, what: &str, count: u64) -> PyResult<CostFields> {
    let mut machine = Machine::new(Options::default(), policy_of("linux")?);
    let [one, other] = [(); 2].map(|()| machine.add_task(CPU, Capabilities::Root));
    machine.add_vcpu(one);

    let toggle = [Event::Disable(COUNTER), Event::Enable(COUNTER)];
    let switch = [Event::SchedSwitch(CPU, other), Event::SchedSwitch(CPU, one)];
    let guest = [Event::VmEntry(VCPU), Event::VmExit(VCPU, ExitReason::Other("io"))];
    let (breakpoints, operation) = match what {
        "encode" => (0, Operation::Encode),
        "skip" => (1, Operation::Skip),
        "install" => (1, Operation::Events(&toggle)),
        "switch" => (1, Operation::Events(&switch)),
        "switch-4" => (4, Operation::Events(&switch)),
        "switch-nothing" => (0, Operation::Events(&switch)),
        "entry" => (1, Operation::Events(&guest)),
        "entry-nothing" => (0, Operation::Events(&guest)),
        _ => return Err(PyValueError::new_err(format!("nothing is called {what:?}"))),
    };
    let opens = (0..breakpoints).map(|at| Event::PerfEventOpen {
        by: one,
        attr: Attr::write(0x1000 + 8 * at, 8),
        task: Some(one),
        cpu: None,
        group: None,
    });
    py.detach(|| {
        for open in opens {
            machine.apply(&open, &mut ())?;
        }
        let before = machine.cost();
        repeat(&mut machine, &operation, count)?;
        Ok(machine.cost() - before)
    })
    .map(cost_fields)
    .map_err(|misuse: Misuse| PyValueError::new_err(misuse.to_string()))
}

/// Nothing of what is repeated is known to the compiler, and nothing of it is left out.
fn repeat(machine: &mut Machine, operation: &Operation<'_>, count: u64) -> Result<(), Misuse> {
    match *operation {
        Operation::Encode => {
            for _ in 0..count {
                let (slot, kind, length) = black_box((Slot::ALL[0], Kind::Write, Length::Eight));
                black_box(debugreg::encode_dr7(slot, kind, length));
            }
        }
        Operation::Skip => {
            for _ in 0..count {
                black_box(black_box(&*machine).breakpoints_active(CPU));
            }
        }
        Operation::Events(events) => {
            for _ in 0..count {
                for event in black_box(events) {
                    machine.apply(event, &mut ())?;
                }
            }
        }
    }
    Ok(())
}
