//! The explorer: every state that a policy can get into within a scope, every event in each, an NMI before every step.
//!
//! Breadth-first, so that what it finds is the shortest; exact, because states are compared whole and no hash stands for
//! one; the same for any number of threads, because states are numbered in the order in which one thread would find them.
//!
//! `scope.rs` says how large a machine and which events, `moves.rs` which of them can happen in a state, `canon.rs` which
//! states are the same but for names, `store.rs` how they are kept, `worker.rs` what a state leads to, `memo.rs` what has
//! been found out of that already, `search.rs` explores, `walk.rs` walks at random where that is too much, `trail.rs` tells
//! a way from the start as a scenario.

mod canon;
mod memo;
mod moves;
mod scope;
mod search;
mod store;
mod trail;
mod walk;
mod worker;

pub use scope::{Kind, Kinds, Nmis, Scope};
pub use search::{Progress, Stop, Verdict, Violation, check};
pub use walk::walk;
