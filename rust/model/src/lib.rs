//! Who wants the debug registers, and who decides.
//!
//! A [`Machine`] is CPUs, tasks, perf counters, tracers and vCPUs as one value. An [`Event`] goes in, an [`Outcome`]
//! comes out, a [`Probe`] sees every step in between. One breakpoint's way: `perf.rs` (is it allowed), `context.rs` (when
//! is it in a register), `debugreg::bank` (in which one, step by step), `policy/` (what a guest's entry and exit do to
//! it), `hit.rs` (who hears of the access).

#![forbid(unsafe_code)]

mod constraints;
mod context;
mod counter;
mod event;
pub mod explore;
mod guest;
mod histogram;
mod hit;
mod id;
mod kernel;
mod kgdb;
pub mod laws;
mod machine;
pub mod mutant;
mod owed;
mod part;
mod perf;
pub mod policy;
mod ptrace;
pub mod rows;
pub mod scenario;
mod step;
mod task;
mod tcg;
mod thread;
mod vcpu;

pub use counter::{Attr, BpType, Changes, Counter, Origin, State, TASK_SIZE_MAX};
pub use debugreg::Cost;
pub use event::{
    DrAccess, Errno, Event, ExitReason, GuestDebug, Holder, Insn, Kgdb, Misuse, Nmi, Outcome, Refusal, Scope, Vector,
};
pub use id::{ContextId, CounterId, CpuId, TaskId, VcpuId};
pub use machine::{Cpu, Machine, Options, Processor, Vendor};
pub use policy::{Delta, Policy};
pub use step::{Field, Kvm, Mark, On, Probe, Step};
pub use task::{Capabilities, Life, Task};
pub use vcpu::{DebugExit, Exit, Nested, Vcpu, Vmcs};
