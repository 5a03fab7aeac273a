//! Where there is no such world.

use debugreg_model::scenario::Scenario;

use crate::report::Seen;
use crate::{Error, Going, Likeness};

/// The running kernel, which is not Linux on x86-64.
#[derive(Debug)]
pub struct World {
    /// The model of it.
    pub(crate) likeness: Likeness,
}

impl World {
    /// Never.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`], always.
    pub fn new(_: Likeness, _: &mut Going<'_>) -> Result<World, Error> {
        Err(Error::Unavailable("the world 'kernel' needs Linux on x86-64".to_owned()))
    }

    pub(crate) fn perform(&mut self, _: &Scenario, _: bool, _: &mut Going<'_>) -> Result<Vec<Seen>, Error> {
        unreachable!("there is no such world")
    }
}

/// Never.
///
/// # Errors
///
/// [`Error::Unavailable`], always.
pub fn boot(_: &[(String, Vec<u8>)]) -> Result<(), Error> {
    Err(Error::Unavailable("only Linux on x86-64 boots".to_owned()))
}
