//! The fuzz targets `parser` and `events`, without a fuzzer: random edits of the repository's scenarios, and random
//! bytes as events.

#[path = "../../../fuzz/src/events/mod.rs"]
pub mod events;
#[path = "../../../fuzz/src/parser.rs"]
pub mod parser;
#[path = "../../../fuzz/src/policy.rs"]
pub mod policy;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use arbitrary::{Arbitrary, Unstructured};
use debugreg_model::Delta;
use debugreg_model::policy::NAMED;
use debugreg_model::scenario::{parse, show_event};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use crate::events::{KINDS, Walk};

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

/// The seeds of the target `parser`.
fn seeds() -> Vec<Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut found = Vec::new();
    files(&root.join("scenarios"), &mut found);
    files(&root.join("tests/malformed"), &mut found);
    found.sort();
    found.iter().map(|path| std::fs::read(path).expect("a file")).collect()
}

/// The words of the target `parser`: a line of its dictionary is `"word"`.
fn words() -> Vec<String> {
    let dictionary = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/parser.dict");
    let text = std::fs::read_to_string(dictionary).expect("the dictionary");
    let words = text.lines().filter_map(|line| line.strip_prefix('"')?.strip_suffix('"'));
    words.map(str::to_owned).collect()
}

#[test]
fn the_dictionary_has_every_policy_and_delta_and_every_event() {
    let words = words();
    let mut wanted: BTreeSet<_> = NAMED.iter().map(|named| named.name.to_owned()).collect();
    wanted.extend(Delta::ALL.iter().map(|delta| delta.id().to_owned()));
    for Walk(scenario) in some_walks(100) {
        let events = scenario.lines.iter().map(|line| show_event(&line.event, &scenario.names));
        wanted.extend(events.map(|event| event.split(' ').nth(1).expect("an event").to_owned()));
    }
    let missing: Vec<_> = wanted.iter().filter(|word| !words.contains(word)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

fn walks() -> impl Strategy<Value = Walk> {
    let walk = |bytes: &[u8]| Walk::arbitrary_take_rest(Unstructured::new(bytes));
    prop::collection::vec(any::<u8>(), 0..1500).prop_map(move |bytes| walk(&bytes).expect("what is missing is zero"))
}

/// The same walks each time.
fn some_walks(count: usize) -> impl Iterator<Item = Walk> {
    let mut runner = TestRunner::deterministic();
    std::iter::repeat_with(move || walks().new_tree(&mut runner).expect("bytes").current()).take(count)
}

#[test]
fn scenarios_survive_edits() {
    let (seeds, words) = (seeds(), words());
    // Up to six times: some bytes at a place give way to a word, or to a piece of another file.
    let piece = || (any::<Index>(), any::<Index>(), any::<Index>(), 0..8usize, any::<bool>());
    let edits = (any::<Index>(), prop::collection::vec(piece(), 0..6), prop::option::of(any::<[u8; 24]>()));
    TestRunner::new(ProptestConfig::with_cases(400))
        .run(&edits, |(seed, edits, choice)| {
            let mut text = seed.get(&seeds).clone();
            for (at, from, what, length, is_word) in edits {
                let start = at.index(text.len() + 1);
                let end = (start + length).min(text.len());
                let new = if is_word {
                    [b" ", what.get(&words).as_bytes(), b" "].concat()
                } else {
                    let other = from.get(&seeds);
                    let lines: Vec<_> = other.split_inclusive(|&byte| byte == b'\n').collect();
                    if lines.is_empty() { Vec::new() } else { what.get(&lines).to_vec() }
                };
                text.splice(start..end, new);
            }
            if let Some(choice) = choice {
                text.push(0);
                text.extend(choice);
            }
            parser::survive(&text);
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn machines_survive_events(walk in walks()) {
        events::survive(&walk);
    }
}

/// A kind of event that never comes to anything proves nothing.
#[test]
fn every_kind_of_event_is_survived() {
    let (mut reached, mut interruptions) = (BTreeSet::new(), 0);
    for walk in some_walks(600) {
        let (kinds, happened) = events::survive(&walk);
        reached.extend(kinds);
        interruptions += happened;
    }
    let missing: Vec<_> = KINDS.iter().filter(|kind| !reached.contains(*kind)).collect();
    assert!(missing.is_empty(), "{missing:?} came to nothing");
    assert!(interruptions > 50, "only {interruptions} interruptions took place");
}

/// What a fuzzer shows of an input can be pasted into a file.
#[test]
fn a_walk_prints_itself_as_a_scenario() {
    for walk in some_walks(100) {
        let text = format!("{walk:?}");
        let again = parse(text.trim_start()).unwrap_or_else(|error| panic!("{error}, in\n{text}"));
        assert_eq!(again.to_string(), text.trim_start());
    }
}
