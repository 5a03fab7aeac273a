//! The events of `debugreg-model`, performed on the kernel that is running.
//!
//! A [`World`] has one process per task of a scenario, each an agent (`agent.rs`) that does what the driver says:
//! `perf_event_open`, ptrace, fork, execve, an access to memory. [`run`] performs a scenario and says line by line what
//! was observed, in the words of the model; [`conform()`] looks for scenarios in which the two differ.
//!
//! A vCPU is one of /dev/kvm (`guest`), and its guest performs an event after the other. What cannot be observed from user
//! space (register contents, kgdb) is unobserved, and said to be.

// Processes, mappings and machine code; each block says why it is sound.
#![deny(unsafe_code)]
#![allow(clippy::cast_sign_loss, clippy::cast_possible_wrap, reason = "arguments of system calls are words")]

mod conform;
mod emulated;
mod generate;
mod likeness;
mod moves;
mod rehearse;
mod report;
mod traced;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod agent;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod attr;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod boot;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod channel;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod guest;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod perform;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod ring;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod tasks;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod world;
#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
#[path = "elsewhere.rs"]
mod world;

use debugreg_model::scenario::ScenarioError;
use thiserror::Error;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub use boot::boot;
pub use conform::{Conformance, Difference, Here, Kernel, Progress, conform};
pub use emulated::{STEPS_PLUGIN, watch};
pub use generate::{generate, guests::generate_guests};
pub use likeness::Likeness;
pub use moves::compare_moves;
pub use report::{Report, StepReport, run};
pub use traced::{compare_trace, wants_trace};
pub use world::World;
#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
pub use world::boot;

/// Asked now and then whether to go on.
pub type Going<'a> = dyn FnMut() -> bool + 'a;

/// Why something could not be performed.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// This machine, or this user, cannot have the world; what is missing.
    #[error("{0}")]
    Unavailable(String),
    /// An agent did not do what it always does: the world is in an unknown state, and must be dropped.
    #[error("the world broke down: {0}")]
    Lost(String),
    /// A mistake in the scenario.
    #[error(transparent)]
    Scenario(#[from] ScenarioError),
    /// The caller said so.
    #[error("interrupted")]
    Interrupted,
}
