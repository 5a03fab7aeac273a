//! Readers of recorded runs.
//!
//! A *trace* is what a Linux kernel printed while it ran: who was on which CPU, when a guest was entered and left,
//! which breakpoints were asked for. [`ftrace`] turns its lines into [`Event`](ftrace::Event)s. A *step file* is what
//! an emulator logged beneath the same run: every MOV to and from a debug register. [`steps`] reads it. [`source`]
//! fetches either from a file, packed or not.
//!
//! The readers know no policy: a line becomes an event or is counted as unreadable. [`replay()`] performs the events on
//! the model under a policy, [`observe`] asks after each whether what is armed is what is owed, and [`verify`] compares
//! with what the kernel did.
//!
//! ```
//! use debugreg_trace::ftrace::{Event, Lines};
//!
//! let text = b"             vmm-1       [000] d..1.     6.959087: kvm_entry: vcpu 0, rip 0x1000\n";
//! let record = Lines::new(text).next().unwrap();
//! assert_eq!((record.cpu, record.pid, record.time_ns), (0, 1, Some(6_959_087_000)));
//! assert_eq!(record.event, Event::KvmEntry { vcpu: 0, rip: Some(0x1000) });
//! ```
#![forbid(unsafe_code)]

pub mod error;
pub mod ftrace;
mod guest;
pub mod input;
mod late;
mod movs;
pub mod observe;
mod predict;
pub mod replay;
pub mod source;
pub mod steps;
mod strangers;
pub mod tie;
mod truth;
pub mod verify;

pub use error::TraceError;
pub use input::Trace;
pub use replay::{PhaseCost, Replay, replay};
pub use verify::{Difference, Score, Verify};
