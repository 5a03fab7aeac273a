//! The extension module `debugreg._core`: the crates of this workspace as Python sees them.
//!
//! Nothing is decided here. A binding reads its arguments (`argument`), calls one function of a crate below, and
//! hands the answer back as plain integers, strings and tuples; `python/debugreg` gives them their shape.
#![deny(unsafe_code)]

mod argument;
mod batch;
mod check;
mod codec;
mod emulated;
mod machine;
mod oracle;
mod replay;
mod rows;
mod scenario;
mod user;

/// The compiled half of debugreg. Private: use the package `debugreg`.
#[pyo3::pymodule]
mod _core {
    #[pymodule_export]
    use super::batch::batch;

    #[pymodule_export]
    use super::check::{CheckScope, event_kinds, laws};

    #[pymodule_export]
    use super::codec::{
        dr6_events, dr6_flags, dr6_from_events, dr6_hits, dr6_layout, dr6_reserved, dr7_arm, dr7_disarm, dr7_fields,
        dr7_flags, dr7_layout, dr7_reserved, dr7_slot, encode_dr7, register,
    };

    #[pymodule_export]
    use super::machine::{PyCounter, PyCpu, PyMachine, PyTask, PyVcpu};

    #[pymodule_export]
    use super::emulated::{vm_boot, vm_conform, vm_plugin, vm_run, vm_watch};

    #[pymodule_export]
    use super::oracle::{KernelWorld, kernel_conform, random_scenario};

    #[pymodule_export]
    use super::replay::PyTrace;

    #[pymodule_export]
    use super::rows::{RowRun, row_names};

    #[pymodule_export]
    use super::user::{Turn, audit_policy, exit_reason, register_policy};

    #[pymodule_export]
    use super::scenario::{policies, policy_name, scenario_declares, scenario_format, scenario_run};

    /// How many words a CPU, and a vCPU, keeps for a policy.
    #[pymodule_export]
    const POLICY_WORDS: usize = debugreg_model::policy::WORDS;

    /// DR6 when nothing happened.
    #[pymodule_export]
    const DR6_IDLE: u64 = debugreg::Dr6::IDLE.0;

    /// DR7 after a reset.
    #[pymodule_export]
    const DR7_RESET: u64 = debugreg::Dr7::RESET.0;

    /// The version of the package.
    #[allow(non_upper_case_globals)]
    #[pymodule_export]
    const __version__: &str = env!("CARGO_PKG_VERSION");
}
