//! Every scenario of the repository holds in the model, and prints itself back.

use std::path::{Path, PathBuf};

use debugreg_model::Policy;
use debugreg_model::scenario::{parse, run};

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
    let mut found = Vec::new();
    files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scenarios"), &mut found);
    found.sort();
    assert!(!found.is_empty());
    found.into_iter().map(|path| (path.clone(), std::fs::read_to_string(&path).expect("UTF-8"))).collect()
}

#[test]
fn every_scenario_holds_under_its_policies() {
    let mut wrong = Vec::new();
    for (path, text) in all() {
        let scenario = parse(&text).unwrap_or_else(|error| panic!("{}:{error}", path.display()));
        let policies = if scenario.policies.is_empty() { vec!["linux".to_owned()] } else { scenario.policies.clone() };
        for name in policies {
            let policy = Policy::parse(&name).expect("checked by the parser");
            let report = run(&scenario, policy, None, false).unwrap_or_else(|e| panic!("{}:{e}", path.display()));
            for step in report.steps.iter().filter(|step| step.ok == Some(false)) {
                let (expected, observed) = (step.expected.as_deref().unwrap_or("nothing"), &step.observed);
                let place = format!("{}:{} under {name}", path.display(), step.line);
                wrong.push(format!("{place}: {} => {observed}, expected {expected}", step.event));
            }
            if !report.ok && wrong.is_empty() {
                wrong.push(format!("{} under {name} expects nothing", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
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
