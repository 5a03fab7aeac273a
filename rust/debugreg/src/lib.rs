//! x86 debug registers as values, and the switching of one CPU's four slots.
//!
//! * [`Dr6`] and [`Dr7`] know every field of the two registers, inverted and reserved bits included.
//! * [`Breakpoint`] is an address, a [`Kind`] and a [`Length`]; [`trip`] says which armed slots an access trips.
//! * [`bank`] holds the transitions (install, uninstall, the skip test, refresh, ...), written once over the
//!   [`Steps`] that they are made of, so that the same code runs in a model, under a probe, and on the hardware.
//!
//! What it leaves out: tasks, virtual CPUs and everything that decides *who* gets a slot.
//!
//! # Examples
//!
//! ```
//! use debugreg::{Dr7, Kind, Length, Slot, encode_dr7};
//!
//! let dr7 = Dr7(0x000d_0402);
//! assert_eq!(dr7.kind(Slot::ZERO), Kind::Write);
//! assert_eq!(dr7.length(Slot::ZERO), Length::Four);
//! assert_eq!(encode_dr7(Slot::ZERO, Kind::Write, Length::Eight), 0x0009_0202);
//! ```
#![no_std]
#![cfg_attr(not(feature = "hardware"), forbid(unsafe_code))]

pub mod announce;
pub mod bank;
mod breakpoint;
mod dr6;
mod dr7;
#[cfg(all(feature = "hardware", target_arch = "x86_64"))]
pub mod hardware;
mod step;
pub mod trip;

pub use bank::{Bank, Owner, Registers};
pub use breakpoint::{Breakpoint, Kind, Length, Slot};
pub use dr6::Dr6;
pub use dr7::{Dr7, Enable, encode_dr7, encode_slot};
pub use step::{Cost, Dr, Steps, Word};
