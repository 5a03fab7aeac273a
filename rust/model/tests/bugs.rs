//! Every bug of `scenarios/bugs` is there under the policies that have it, and gone where it is fixed.
//!
//! A file holds under its policies, `POLICY+ID=fixed` (`tests/scenarios.rs` runs it); here the delta is switched the other
//! way, and a line has to fail.

use std::path::{Path, PathBuf};

use debugreg_model::scenario::{parse, run};
use debugreg_model::{Delta, Policy, Vendor};

fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scenarios/bugs");
    let entries = std::fs::read_dir(folder).expect("the folder").map(|entry| entry.expect("an entry").path());
    let mut files: Vec<_> =
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "scn")).collect();
    files.sort();
    files
}

/// The id that a file is named by: `Z-3-something.scn` is Z-3.
fn id(path: &Path) -> String {
    let stem = path.file_stem().expect("a name").to_string_lossy();
    stem.splitn(3, '-').take(2).collect::<Vec<_>>().join("-")
}

/// The policy with the file's delta switched the other way; one that has something else against the bug, without that.
fn switched(policy: &str, id: &str) -> String {
    let switch = |part: &str| match part.strip_prefix(id) {
        Some("=fixed") => Some(format!("{id}=on")),
        Some("" | "=on") => Some(format!("{id}=fixed")),
        _ => None,
    };
    if policy.split('+').any(|part| switch(part).is_some()) {
        policy.split('+').map(|part| switch(part).unwrap_or(part.to_owned())).collect::<Vec<_>>().join("+")
    } else {
        policy.split('+').next().unwrap_or_default().to_owned()
    }
}

#[test]
fn a_bug_is_there_where_it_is_not_fixed() {
    let mut missed = Vec::new();
    for path in files() {
        let text = std::fs::read_to_string(&path).expect("UTF-8");
        let scenario = parse(&text).unwrap_or_else(|error| panic!("{}:{error}", path.display()));
        let id = id(&path);
        assert!(scenario.title[0].starts_with(&format!("{id}: ")), "{}: what did a user see?", path.display());
        let vendors = scenario.vendor.map_or(vec![Vendor::Amd, Vendor::Intel], |vendor| vec![vendor]);
        for policy in &scenario.policies {
            let with_bug = switched(policy, &id);
            // A policy without the bug stands in the list to show that it has none.
            if with_bug == *policy {
                continue;
            }
            for &vendor in &vendors {
                let report = run(&scenario, Policy::parse(&with_bug).expect("valid"), Some(vendor), false);
                let fails = report.is_ok_and(|report| report.steps.iter().any(|step| step.ok == Some(false)));
                if !fails {
                    missed.push(format!("{id}: {with_bug} {}", vendor.name()));
                }
            }
        }
    }
    assert!(missed.is_empty(), "these hold although the bug is there:\n{}", missed.join("\n"));
}

/// Bugs of KVM that change a register, but nothing that a scenario can ask for; `docs/bugs.md` says why.
const WITHOUT_SCENARIO: &[Delta] = &[Delta::H04];

#[test]
fn every_delta_of_kvm_has_a_scenario_or_a_reason() {
    let files: Vec<_> = files().iter().map(|path| id(path)).collect();
    for delta in Delta::ALL.iter().filter(|delta| delta.id().starts_with("H-") || delta.id().starts_with("Z-")) {
        let has_one = files.iter().any(|id| id == delta.id());
        assert_ne!(has_one, WITHOUT_SCENARIO.contains(delta), "{}", delta.id());
    }
}
