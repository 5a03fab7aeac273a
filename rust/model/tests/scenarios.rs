//! Every scenario of the repository holds in the model, and prints itself back.

use std::path::{Path, PathBuf};

use debugreg_model::policy::{HostHalf, NAMED};
use debugreg_model::scenario::{Scenario, parse, run};
use debugreg_model::{Policy, Vendor};

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder of scenarios") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "scn") {
            found.push(path);
        }
    }
}

fn all() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scenarios");
    let mut found = Vec::new();
    files(&root, &mut found);
    found.sort();
    assert!(!found.is_empty());
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).expect("UTF-8");
        (path.strip_prefix(&root).expect("below the root").to_owned(), text)
    };
    found.into_iter().map(read).collect()
}

/// The policies under which a file must hold: its own, or any of those that know counters of a CPU.
fn policies(scenario: &Scenario) -> Vec<String> {
    if scenario.policies.is_empty() {
        NAMED
            .iter()
            .filter(|named| named.host == HostHalf::Perf && named.kvm.is_general())
            .map(|named| named.name.to_owned())
            .collect()
    } else {
        scenario.policies.clone()
    }
}

/// What is wrong with a file under a policy, line by line.
fn failures(scenario: &Scenario, name: &str, vendor: Vendor) -> Vec<String> {
    let policy = Policy::parse(name).expect("checked by the parser");
    match run(scenario, policy, Some(vendor), false) {
        Err(error) => vec![error.to_string()],
        Ok(report) => {
            let wrong = report.steps.iter().filter(|step| step.ok == Some(false));
            let wrong = wrong.map(|step| {
                let expected = step.expected.as_deref().unwrap_or_default();
                format!("line {}: {} => {}, expected {expected}", step.line, step.event, step.observed)
            });
            let mut wrong: Vec<_> = wrong.collect();
            if wrong.is_empty() && !report.ok {
                wrong.push("nothing is expected".to_owned());
            }
            wrong
        }
    }
}

#[test]
fn every_scenario_holds_under_its_policies_on_its_vendors() {
    let mut wrong = Vec::new();
    for (path, text) in all() {
        let scenario = parse(&text).unwrap_or_else(|error| panic!("{}:{error}", path.display()));
        let vendors = scenario.vendor.map_or(vec![Vendor::Amd, Vendor::Intel], |vendor| vec![vendor]);
        for name in policies(&scenario) {
            for &vendor in &vendors {
                let failures = failures(&scenario, &name, vendor);
                wrong.extend(
                    failures.into_iter().map(|what| format!("{} {name} {}: {what}", path.display(), vendor.name())),
                );
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_scenario_prints_itself_back() {
    for (path, text) in all() {
        let scenario = parse(&text).expect("valid");
        let printed = scenario.to_string();
        let again = parse(&printed).unwrap_or_else(|error| panic!("{}: {error}\n{printed}", path.display()));
        assert_eq!(again.to_string(), printed, "{}", path.display());
        let events = |lines: &[debugreg_model::scenario::Line]| {
            lines.iter().map(|l| (l.event.clone(), l.interruption.clone(), l.expectation.clone())).collect::<Vec<_>>()
        };
        assert_eq!(events(&again.lines), events(&scenario.lines), "{}", path.display());
    }
}
