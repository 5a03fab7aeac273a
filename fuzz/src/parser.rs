//! Arbitrary bytes as a scenario file.
//!
//! Behind a NUL byte, if there is one, stands the choice of a policy and a vendor; otherwise the file's own policies
//! are taken, or `linux`.

use arbitrary::Unstructured;
use debugreg_model::scenario::{Line, Scenario, ScenarioError, parse, run};
use debugreg_model::{Policy, Vendor};

use crate::policy::{self, parsed};

/// Parses, prints, parses again, and runs.
///
/// # Panics
///
/// If anything is wrong with what came of it.
pub fn survive(bytes: &[u8]) {
    let (text, choice) = match bytes.iter().rposition(|&byte| byte == 0) {
        Some(at) => (&bytes[..at], Some(&bytes[at + 1..])),
        None => (bytes, None),
    };
    // What is not UTF-8 is refused where files are read.
    let Ok(text) = std::str::from_utf8(text) else { return };
    let scenario = match parse(text) {
        Ok(scenario) => scenario,
        Err(error) => return is_placed(&error, text),
    };
    prints_itself_back(&scenario);
    let (policies, vendor) = match choice {
        Some(choice) => chosen(choice),
        None if scenario.policies.is_empty() => (vec![parsed("linux")], None),
        None => (scenario.policies.iter().map(|name| parsed(name)).collect(), scenario.vendor),
    };
    for policy in policies {
        let plain = run(&scenario, policy, vendor, false);
        let stepped = run(&scenario, policy, vendor, true);
        match (plain, stepped) {
            (Ok(plain), Ok(stepped)) => {
                assert_eq!((plain.ok, plain.cost), (stepped.ok, stepped.cost), "watching changes nothing");
                assert_eq!(plain.steps.len(), scenario.lines.len());
            }
            (Err(plain), Err(stepped)) => {
                assert_eq!(plain, stepped, "watching changes nothing");
                is_placed(&plain, text);
            }
            (plain, stepped) => panic!("watching changes something: {plain:?}, {stepped:?}"),
        }
    }
}

fn chosen(choice: &[u8]) -> (Vec<Policy>, Option<Vendor>) {
    let mut u = Unstructured::new(choice);
    let vendor = if u.arbitrary().unwrap_or(false) { Vendor::Intel } else { Vendor::Amd };
    (policy::any(&mut u).into_iter().collect(), Some(vendor))
}

/// An error says where: in a line that there is, at a character of it or right behind the last. A file as a whole has
/// one mistake, that nothing happens in it.
fn is_placed(error: &ScenarioError, text: &str) {
    let ScenarioError { line, column, ref message } = *error;
    assert!(!message.is_empty() && !message.chars().any(char::is_control), "{error:?}");
    if line == 0 {
        assert_eq!((column, &**message), (0, "there is no event in it"));
        return;
    }
    let found = text.lines().nth(line as usize - 1).unwrap_or_else(|| panic!("{error}: there is no such line"));
    assert!((1..=found.chars().count() + 1).contains(&(column as usize)), "{error}: not in {found:?}");
}

/// What is printed is read as the same scenario: only the places may differ.
fn prints_itself_back(scenario: &Scenario) {
    let printed = scenario.to_string();
    let again = parse(&printed).unwrap_or_else(|error| panic!("{error}, in\n{printed}"));
    assert_eq!(again.to_string(), printed, "printing is not stable");
    assert_eq!(placeless(&again), placeless(scenario), "printed as\n{printed}");
}

/// A scenario without line numbers, and without its names: they are equal if the texts are.
fn placeless(scenario: &Scenario) -> impl PartialEq + std::fmt::Debug {
    let Scenario { title, options, vendor, policies, laws, tasks, vcpus, lines, names: _ } = scenario.clone();
    let lines: Vec<_> = lines
        .into_iter()
        .map(|Line { number: _, column: _, event, interruption, expectation }| (event, interruption, expectation))
        .collect();
    (title, options, vendor, policies, laws, tasks, vcpus, lines)
}
