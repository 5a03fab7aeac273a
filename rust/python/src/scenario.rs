//! Scenarios: what a file declares, and what comes of it under a policy.

use debugreg_model::Vendor;
use debugreg_model::scenario::{self, Report, ScenarioError};
use debugreg_model::{Delta, policy};
use pyo3::prelude::*;

use crate::machine::{CostFields, cost_fields, policy_of, vendor_of};
use crate::user;

/// A mistake in a file: line, column, message.
type Mistake = (u32, u32, String);

/// Line, event, expected, observed, ok, why it was refused, steps.
type Step = (u32, String, Option<String>, String, Option<bool>, Option<String>, Vec<String>);

fn mistake(error: ScenarioError) -> Mistake {
    (error.line, error.column, error.message)
}

/// Read a scenario and return its policies and its vendor, or the first mistake.
#[pyfunction]
#[pyo3(signature = (text, /))]
#[allow(clippy::type_complexity, reason = "a pair, one half of which is None")]
pub(crate) fn scenario_declares(text: &str) -> (Option<(Vec<String>, Option<&'static str>)>, Option<Mistake>) {
    match scenario::parse(text) {
        Ok(scenario) => (Some((scenario.policies, scenario.vendor.map(Vendor::name))), None),
        Err(error) => (None, Some(mistake(error))),
    }
}

/// Read a scenario and print it in the language's own spelling.
#[pyfunction]
#[pyo3(signature = (text, /))]
pub(crate) fn scenario_format(text: &str) -> (Option<String>, Option<Mistake>) {
    match scenario::parse(text) {
        Ok(scenario) => (Some(scenario.to_string()), None),
        Err(error) => (None, Some(mistake(error))),
    }
}

/// Run a scenario and return whether it holds, its steps and its cost; or the first mistake.
#[pyfunction]
#[pyo3(signature = (text, policy, vendor, with_steps, /))]
#[allow(clippy::type_complexity, reason = "a pair, one half of which is None")]
pub(crate) fn scenario_run(
    text: &str,
    policy: &str,
    vendor: Option<&str>,
    with_steps: bool,
) -> PyResult<(Option<(bool, Vec<Step>, CostFields)>, Option<Mistake>)> {
    let policy = policy_of(policy)?;
    let vendor = vendor.map(vendor_of).transpose()?;
    let report = scenario::parse(text).and_then(|parsed| scenario::run(&parsed, policy, vendor, with_steps));
    user::raise_failure()?;
    Ok(match report {
        Ok(Report { ok, steps, cost }) => {
            let steps = steps.into_iter();
            let steps = steps.map(|s| (s.line, s.event, s.expected, s.observed, s.ok, s.refusal, s.trace)).collect();
            (Some((ok, steps, cost_fields(cost))), None)
        }
        Err(error) => (None, Some(mistake(error))),
    })
}

/// Check the name of a policy and return it as it prints.
#[pyfunction]
#[pyo3(signature = (text, /))]
pub(crate) fn policy_name(text: &str) -> PyResult<String> {
    policy_of(text).map(|policy| policy.to_string())
}

/// List the policies: name, host half, KVM half, a line, and its deltas as id, state and line.
#[pyfunction]
#[allow(clippy::type_complexity, reason = "a row of a table")]
pub(crate) fn policies() -> PyResult<Vec<(&'static str, &'static str, &'static str, &'static str, Vec<DeltaRow>)>> {
    let row = |named: &policy::Named| {
        let policy = policy_of(named.name)?;
        let state = |delta| if policy.has(delta) { "on" } else { "fixed" };
        let deltas = policy.concerned().into_iter().map(|delta: Delta| (delta.id(), state(delta), delta.line()));
        Ok((named.name, named.host.name(), named.kvm.name(), named.line, deltas.collect()))
    };
    policy::NAMED.iter().map(row).collect()
}

/// Id, state, line.
type DeltaRow = (&'static str, &'static str, &'static str);
