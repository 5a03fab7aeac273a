//! What Python may pass for a slot, a type, a length or a register, and what is said when it does not fit.

use debugreg::{Enable, Kind, Length, Slot};
use pyo3::exceptions::{PyIndexError, PyOverflowError, PyTypeError, PyValueError};
use pyo3::inspect::PyStaticExpr;
use pyo3::prelude::*;
use pyo3::types::PyBool;

/// A value that Python passes under one name, read by [`Argument::read`].
#[derive(Copy, Clone)]
pub(crate) struct Arg<T>(pub(crate) T);

/// A type that arguments can have.
pub(crate) trait Argument: Sized {
    /// What a type checker is told.
    const HINT: PyStaticExpr;

    /// The value, or an exception that names the argument, what was found, and what is allowed.
    fn read(obj: &Bound<'_, PyAny>) -> PyResult<Self>;
}

impl<T: Argument> FromPyObject<'_, '_> for Arg<T> {
    type Error = PyErr;

    const INPUT_TYPE: PyStaticExpr = T::HINT;

    fn extract(obj: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        T::read(&obj).map(Arg)
    }
}

/// A register: any 64 bits, since what is reserved can be asked of the value.
impl Argument for u64 {
    const HINT: PyStaticExpr = <u64 as FromPyObject>::INPUT_TYPE;

    fn read(obj: &Bound<'_, PyAny>) -> PyResult<Self> {
        integer("value", "from 0 to 0xffffffffffffffff", obj)
    }
}

impl Argument for Slot {
    const HINT: PyStaticExpr = <u64 as FromPyObject>::INPUT_TYPE;

    fn read(obj: &Bound<'_, PyAny>) -> PyResult<Self> {
        const ALLOWED: &str = "0, 1, 2 or 3";
        let n: u64 = integer("slot", ALLOWED, obj)?;
        usize::try_from(n).ok().and_then(Slot::new).ok_or_else(|| refused("slot", ALLOWED, obj))
    }
}

/// A slot as the index of a sequence of four: negative ones count from the end.
#[derive(Copy, Clone)]
pub(crate) struct Index(pub(crate) Slot);

impl Argument for Index {
    const HINT: PyStaticExpr = <isize as FromPyObject>::INPUT_TYPE;

    fn read(obj: &Bound<'_, PyAny>) -> PyResult<Self> {
        let index = match obj.extract::<isize>() {
            Err(error) if !error.is_instance_of::<PyOverflowError>(obj.py()) => return Err(error),
            Ok(index @ 0..) => Some(index),
            Ok(index) => index.checked_add(4),
            Err(_) => None,
        };
        let slot = index.and_then(|index| usize::try_from(index).ok()).and_then(Slot::new);
        slot.map(Index).ok_or_else(|| PyIndexError::new_err(format!("DR7 has slots 0 to 3 (got {})", shown(obj))))
    }
}

impl Argument for Length {
    const HINT: PyStaticExpr = <u64 as FromPyObject>::INPUT_TYPE;

    fn read(obj: &Bound<'_, PyAny>) -> PyResult<Self> {
        const ALLOWED: &str = "1, 2, 4 or 8";
        Length::from_bytes(integer("len", ALLOWED, obj)?).ok_or_else(|| refused("len", ALLOWED, obj))
    }
}

impl Argument for Kind {
    const HINT: PyStaticExpr = <String as FromPyObject>::INPUT_TYPE;

    fn read(obj: &Bound<'_, PyAny>) -> PyResult<Self> {
        name("type", Kind::ALL, Kind::name, obj)
    }
}

impl Argument for Enable {
    const HINT: PyStaticExpr = <String as FromPyObject>::INPUT_TYPE;

    fn read(obj: &Bound<'_, PyAny>) -> PyResult<Self> {
        name("enable", Enable::ALL, Enable::name, obj)
    }
}

/// An unsigned integer, or whatever has an `__index__` (NumPy's integers do); a bool is a slip, not a number.
fn integer(argument: &str, allowed: &str, obj: &Bound<'_, PyAny>) -> PyResult<u64> {
    if obj.is_instance_of::<PyBool>() {
        return Err(mistyped(argument, "an int", obj));
    }
    obj.extract().map_err(|error: PyErr| {
        if error.is_instance_of::<PyOverflowError>(obj.py()) {
            refused(argument, allowed, obj)
        } else if error.is_instance_of::<PyTypeError>(obj.py()) {
            mistyped(argument, "an int", obj)
        } else {
            error
        }
    })
}

/// The member of `all` that has the name that was passed.
fn name<T: Copy>(argument: &str, all: [T; 4], name_of: fn(T) -> &'static str, obj: &Bound<'_, PyAny>) -> PyResult<T> {
    let Ok(found) = obj.extract::<String>() else { return Err(mistyped(argument, "a str", obj)) };
    all.into_iter().find(|&member| name_of(member) == found).ok_or_else(|| {
        let [a, b, c, d] = all.map(name_of);
        refused(argument, &format!("'{a}', '{b}', '{c}' or '{d}'"), obj)
    })
}

fn refused(argument: &str, allowed: &str, obj: &Bound<'_, PyAny>) -> PyErr {
    PyValueError::new_err(format!("{argument} must be {allowed} (got {})", shown(obj)))
}

fn mistyped(argument: &str, wanted: &str, obj: &Bound<'_, PyAny>) -> PyErr {
    PyTypeError::new_err(format!("{argument} must be {wanted} (got {})", shown(obj)))
}

/// The value as one would type it, cut to fit a line.
fn shown(obj: &Bound<'_, PyAny>) -> String {
    const WIDTH: usize = 40;
    // An int of thousands of digits has no repr.
    let text = obj.repr().map_or_else(|_| format!("{} too long to print", obj.get_type()), |repr| repr.to_string());
    if text.chars().count() <= WIDTH { text } else { text.chars().take(WIDTH).chain("...".chars()).collect() }
}
