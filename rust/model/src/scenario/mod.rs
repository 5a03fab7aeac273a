//! The scenario language: one event per line, with what it should come to.
//!
//! [`parse`] reads a file, [`Scenario`] prints itself back, [`run`] performs it under a policy, and a [`Session`] performs
//! single lines on a live machine.

mod expect;
mod lex;
mod line;
mod names;
mod parse;
mod run;
mod session;
mod show;
mod told;

use thiserror::Error;

pub use expect::Expectation;
pub use names::Names;
pub use parse::{At, Line, Scenario, TaskDeclaration, VcpuDeclaration, parse};
pub use run::{Performed, Report, StepReport, run};
pub use session::Session;
pub use show::{show_event, show_outcome, show_step};
pub(crate) use told::Told;

/// A mistake in a scenario: where, what was found, what was allowed.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{line}:{column}: {message}")]
pub struct ScenarioError {
    /// Line, from 1; 0 if it is the file as a whole.
    pub line: u32,
    /// Column, from 1.
    pub column: u32,
    /// What was found and what is allowed.
    pub message: String,
}
