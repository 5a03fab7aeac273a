//! Events as rows of an array, without a call of Python for each.

use std::sync::{Mutex, PoisonError};

use debugreg_model::Machine;
use debugreg_model::rows::{ROW, RowError, RowKind, RowOutcome};
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::machine::{CostFields, PyMachine, cost_fields};

/// Names and descriptions, by number.
type Names = Vec<(&'static str, &'static str)>;

/// The events that a row can be, and the outcomes, each by its number: its name and what it says.
#[pyfunction]
pub(crate) fn row_names() -> (Names, Names) {
    let events = RowKind::ALL.iter().map(|kind| (kind.name(), kind.line()));
    let outcomes = RowOutcome::ALL.iter().map(|outcome| (outcome.name(), outcome.line()));
    (events.collect(), outcomes.collect())
}

/// Rows that are being performed, on a copy of the machine: all of them are, or none.
#[pyclass(frozen, module = "debugreg._core")]
pub(crate) struct RowRun {
    of: Py<PyMachine>,
    /// Its clock at the start.
    since: u64,
    work: Mutex<Work>,
}

struct Work {
    machine: Machine,
    /// Rows so far.
    done: usize,
    block: Vec<u8>,
}

#[pymethods]
impl RowRun {
    #[new]
    #[pyo3(signature = (machine, /) -> "Self")]
    fn new(machine: &Bound<'_, PyMachine>) -> PyResult<Self> {
        let copy = machine.get().lock(machine.py())?.machine.clone();
        Ok(RowRun {
            of: machine.clone().unbind(),
            since: copy.clock(),
            work: Mutex::new(Work { machine: copy, done: 0, block: Vec::new() }),
        })
    }

    /// Perform the rows of a buffer; return the rows of their outcomes, if they are wanted.
    ///
    /// Raises:
    ///     ValueError: A row makes no sense; it says which and why.
    #[pyo3(signature = (rows, outcomes, /))]
    fn run<'py>(
        &self,
        py: Python<'py>,
        rows: &Bound<'py, PyAny>,
        outcomes: bool,
    ) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let rows = PyBuffer::<u8>::get(rows)?;
        if !rows.len_bytes().is_multiple_of(ROW) {
            return Err(PyValueError::new_err(format!("a row has {ROW} bytes (got {} bytes)", rows.len_bytes())));
        }
        let mut work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        let Work { machine, done, block } = &mut *work;
        block.resize(rows.len_bytes(), 0);
        rows.copy_to_slice(py, block)?;
        let (block, _) = block.as_chunks::<ROW>();
        let mut shown = outcomes.then(|| Vec::with_capacity(block.len()));
        let performed = py.detach(|| machine.run_rows(block, shown.as_mut()));
        if let Err((at, error)) = performed {
            let why = match error {
                RowError::Misuse(misuse) => {
                    let mut live = self.of.get().lock(py)?;
                    // In the names of the session, of the machine as the row found it.
                    std::mem::swap(&mut live.machine, machine);
                    let why = live.explain(&misuse);
                    std::mem::swap(&mut live.machine, machine);
                    why
                }
                RowError::Unknown(..) => error.to_string(),
            };
            return Err(PyValueError::new_err(format!("row {}: {why}", *done + at)));
        }
        *done += block.len();
        crate::user::raise_failure()?;
        Ok(shown.map(|rows| PyBytes::new(py, rows.as_flattened())))
    }

    /// Have the machine as it is after the rows, once; return what they have cost.
    ///
    /// Raises:
    ///     RuntimeError: Somebody else has used the machine meanwhile.
    fn commit(&self, py: Python<'_>) -> PyResult<CostFields> {
        let mut work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        let mut live = self.of.get().lock(py)?;
        if live.machine.clock() != self.since {
            return Err(PyRuntimeError::new_err(
                "another thread has used the machine meanwhile: nothing was performed",
            ));
        }
        let cost = work.machine.cost() - live.machine.cost();
        std::mem::swap(&mut live.machine, &mut work.machine);
        Ok(cost_fields(cost))
    }
}
