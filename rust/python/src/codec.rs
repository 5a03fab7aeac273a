//! [`Dr6`] and [`Dr7`] as functions of plain integers.

use debugreg::{Dr6, Dr7, Enable, Kind, Length, Slot};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::argument::{Arg, Index};

/// Names of the fields of a slot: enable, type, and length in bytes.
type Fields = (&'static str, &'static str, u64);

/// Return the value, refusing what is not a 64-bit unsigned integer.
#[pyfunction]
#[pyo3(signature = (value, /))]
pub(crate) fn register(value: Arg<u64>) -> u64 {
    value.0
}

/// Return enable, type and length of a slot if it is armed; a negative index counts from the end.
#[pyfunction]
#[pyo3(signature = (value, index, /))]
pub(crate) fn dr7_slot(value: u64, index: Arg<Index>) -> Option<Fields> {
    let slot = index.0.0;
    Dr7(value).is_armed(slot).then(|| fields(Dr7(value), slot))
}

/// Return enable, type and length of all four slots, armed or not.
#[pyfunction]
#[pyo3(signature = (value, /))]
pub(crate) fn dr7_fields(value: u64) -> (Fields, Fields, Fields, Fields) {
    let [a, b, c, d] = Slot::ALL.map(|slot| fields(Dr7(value), slot));
    (a, b, c, d)
}

fn fields(dr7: Dr7, slot: Slot) -> Fields {
    (dr7.enable(slot).name(), dr7.kind(slot).name(), dr7.length(slot).bytes())
}

/// Return the value with one slot's fields replaced.
#[pyfunction]
#[pyo3(signature = (value, slot, r#type, len, enable, /))]
pub(crate) fn dr7_arm(
    value: u64,
    slot: Arg<Slot>,
    r#type: Arg<Kind>,
    len: Arg<Length>,
    enable: Arg<Enable>,
) -> PyResult<u64> {
    admissible(slot.0, r#type.0, len.0)?;
    Ok(Dr7(value).arm(slot.0, enable.0, r#type.0, len.0).0)
}

/// Return the value with one slot's fields cleared.
#[pyfunction]
#[pyo3(signature = (value, slot, /))]
pub(crate) fn dr7_disarm(value: u64, slot: Arg<Slot>) -> u64 {
    Dr7(value).disarm(slot.0).0
}

/// Encode one slot as Linux does: G bit, GE, R/W and LEN, without the fixed bit 10.
///
/// Args:
///     slot: 0 to 3.
///     len: How many bytes to watch: 1, 2, 4 or 8; 1 for an execution breakpoint.
///     type: 'x' execution, 'w' data writes, 'rw' data reads and writes, 'io' I/O ports.
///
/// Returns:
///     The bits to merge into DR7.
///
/// Raises:
///     ValueError: The slot, the length or the type does not exist, or the two do not go together.
///
/// Source:
///     `encode_dr7`, arch/x86/kernel/hw_breakpoint.c (6.17).
///
/// Example:
///     >>> hex(encode_dr7(0, len=8, type="w"))
///     '0x90202'
#[pyfunction]
#[pyo3(signature = (slot, *, len, r#type))]
pub(crate) fn encode_dr7(slot: Arg<Slot>, len: Arg<Length>, r#type: Arg<Kind>) -> PyResult<u64> {
    admissible(slot.0, r#type.0, len.0)?;
    Ok(debugreg::encode_dr7(slot.0, r#type.0, len.0))
}

/// The manual's rule on type and length, as [`Dr7::invalid_slots`] has it.
fn admissible(slot: Slot, kind: Kind, length: Length) -> PyResult<()> {
    if Dr7(0).arm(slot, Enable::Global, kind, length).invalid_slots().next().is_none() {
        return Ok(());
    }
    Err(PyValueError::new_err(format!("len must be 1 with type '{}' (got {})", kind.name(), length.bytes())))
}

/// Return the bits that stand for no slot, by the manual's names.
#[pyfunction]
#[pyo3(signature = (value, /) -> "dict[str, bool]")]
pub(crate) fn dr7_flags(py: Python<'_>, value: u64) -> PyResult<Bound<'_, PyDict>> {
    let is_set = |mask| value & mask != 0;
    dict(py, [("le", is_set(Dr7::LE)), ("ge", is_set(Dr7::GE)), ("rtm", is_set(Dr7::RTM)), ("gd", is_set(Dr7::GD))])
}

/// Return the numbers of the bits that differ from what the hardware fixes.
#[pyfunction]
#[pyo3(signature = (value, /) -> "tuple[int, ...]")]
pub(crate) fn dr7_reserved(py: Python<'_>, value: u64) -> PyResult<Bound<'_, PyTuple>> {
    bit_numbers(py, Dr7(value).reserved())
}

/// Return name and bits of each field; "0" and "1" name the bits that are fixed to that.
#[pyfunction]
pub(crate) fn dr7_layout() -> Vec<(String, u64)> {
    let flags = [("LE", Dr7::LE), ("GE", Dr7::GE), ("RTM", Dr7::RTM), ("GD", Dr7::GD)];
    let fixed = [("0", Dr7::RESERVED_ZERO | Dr7::UPPER), ("1", Dr7::FIXED)];
    let slots = Slot::ALL.into_iter().flat_map(|slot| {
        let with = |enable, kind, length| Dr7(0).arm(slot, enable, kind, length).0;
        [
            (format!("L{}", slot.index()), with(Enable::Local, Kind::Execute, Length::One)),
            (format!("G{}", slot.index()), with(Enable::Global, Kind::Execute, Length::One)),
            (format!("R/W{}", slot.index()), with(Enable::None, Kind::ReadWrite, Length::One)),
            (format!("LEN{}", slot.index()), with(Enable::None, Kind::Execute, Length::Four)),
        ]
    });
    flags.into_iter().chain(fixed).map(|(name, mask)| (name.to_owned(), mask)).chain(slots).collect()
}

/// Return the slots whose condition was met.
#[pyfunction]
#[pyo3(signature = (value, /) -> "tuple[int, ...]")]
pub(crate) fn dr6_hits(py: Python<'_>, value: u64) -> PyResult<Bound<'_, PyTuple>> {
    bit_numbers(py, value & Dr6::TRAPS)
}

/// Return what else happened; true means that it did, whatever the polarity of the bit.
#[pyfunction]
#[pyo3(signature = (value, /) -> "dict[str, bool]")]
pub(crate) fn dr6_flags(py: Python<'_>, value: u64) -> PyResult<Bound<'_, PyDict>> {
    let dr6 = Dr6(value);
    dict(
        py,
        [
            ("bus_lock", dr6.bus_lock()),
            ("bd", dr6.debug_register_access()),
            ("bs", dr6.single_step()),
            ("bt", dr6.task_switch()),
            ("rtm", dr6.transaction()),
        ],
    )
}

/// Return every bit that happened, in positive polarity.
#[pyfunction]
#[pyo3(signature = (value, /))]
pub(crate) fn dr6_events(value: u64) -> u64 {
    Dr6(value).events()
}

/// Return the register in which these events, in positive polarity, happened.
#[pyfunction]
#[pyo3(signature = (events, /))]
pub(crate) fn dr6_from_events(events: Arg<u64>) -> u64 {
    Dr6::from_events(events.0).0
}

/// Return the numbers of the bits that differ from what the hardware fixes.
#[pyfunction]
#[pyo3(signature = (value, /) -> "tuple[int, ...]")]
pub(crate) fn dr6_reserved(py: Python<'_>, value: u64) -> PyResult<Bound<'_, PyTuple>> {
    bit_numbers(py, Dr6(value).reserved())
}

/// Return name and bits of each field; "0" and "1" name the bits that are fixed to that.
#[pyfunction]
pub(crate) fn dr6_layout() -> Vec<(String, u64)> {
    let flags = [("BLD", Dr6::BLD), ("BD", Dr6::BD), ("BS", Dr6::BS), ("BT", Dr6::BT), ("RTM", Dr6::RTM)];
    let fixed = [("0", Dr6::RESERVED_ZERO | Dr6::UPPER), ("1", Dr6::FIXED_ONE)];
    let slots = Slot::ALL.into_iter().map(|slot| (format!("B{}", slot.index()), u64::from(slot.bit())));
    flags.into_iter().chain(fixed).map(|(name, mask)| (name.to_owned(), mask)).chain(slots).collect()
}

fn dict<'py, const N: usize>(py: Python<'py>, items: [(&str, bool); N]) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (name, flag) in items {
        dict.set_item(name, flag)?;
    }
    Ok(dict)
}

fn bit_numbers(py: Python<'_>, bits: u64) -> PyResult<Bound<'_, PyTuple>> {
    PyTuple::new(py, (0..u64::BITS).filter(|n| bits >> n & 1 != 0).collect::<Vec<_>>())
}
