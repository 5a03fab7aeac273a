//! Every malformed scenario of the repository is refused at the place, and in the words, that its table says.
//!
//! `tests/test_malformed.py` checks the same table through the command line. A file that is not UTF-8 never reaches
//! this crate.

use std::path::Path;

use debugreg_model::Policy;
use debugreg_model::scenario::{ScenarioError, parse, run};

/// The mistake of a file, at whatever stage it shows.
fn mistake(text: &str) -> Option<ScenarioError> {
    let scenario = match parse(text) {
        Ok(scenario) => scenario,
        Err(error) => return Some(error),
    };
    let name = scenario.policies.first().map_or("linux", |name| name);
    run(&scenario, Policy::parse(name).expect("checked by the parser"), None, false).err()
}

#[test]
fn every_mistake_is_found_where_it_stands() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/malformed");
    let table = std::fs::read_to_string(folder.join("expected.txt")).expect("the table");
    let (mut listed, mut wrong) = (0, Vec::new());
    for row in table.lines().filter(|row| !row.starts_with('#')) {
        let (file, rest) = row.split_once(' ').expect("a file");
        let (place, part) = rest.trim_start().split_once(' ').expect("a place and a part of the message");
        let part = part.trim_start();
        listed += 1;
        let bytes = std::fs::read(folder.join(file)).expect(file);
        let Ok(text) = String::from_utf8(bytes) else {
            assert_eq!(part, "UTF-8", "{file}");
            continue;
        };
        match mistake(&text) {
            None => wrong.push(format!("{file}: no mistake found, expected {place}: {part}")),
            Some(error) => {
                let found = format!("{}:{}", error.line, error.column);
                if (place != "-" && place != found) || !error.message.contains(part) {
                    wrong.push(format!("{file}: found {error}, expected {place}: {part}"));
                }
                if error.message.chars().any(char::is_control) {
                    wrong.push(format!("{file}: control characters in {:?}", error.message));
                }
            }
        }
    }
    let scenarios = std::fs::read_dir(&folder).expect("the folder").filter(|entry| {
        entry.as_ref().expect("an entry").path().extension().is_some_and(|extension| extension == "scn")
    });
    assert_eq!(scenarios.count(), listed, "every file is in the table");
    assert!(listed >= 25);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
