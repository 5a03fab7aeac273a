//! The fuzz target `trace`, without a fuzzer: random edits of pieces of the trace that the package ships, and random
//! lines.

#[path = "../../../fuzz/src/policy.rs"]
pub mod policy;
#[path = "../../../fuzz/src/trace/mod.rs"]
pub mod trace;

use std::path::Path;

use debugreg_trace::source;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestRunner;

/// The lines of a file that the package ships.
fn shipped(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../python/debugreg/data");
    let text = source::read(&folder.join(name)).expect("a file of the package");
    text.split_inclusive(|&byte| byte == b'\n').map(<[u8]>::to_vec).collect()
}

#[test]
fn pieces_of_a_trace_survive_edits() {
    let lines = shipped("kvm-amd-6.12-phases.txt.gz");
    let steps = shipped("kvm-amd-6.12-phases.steps.gz");
    let piece = |most: usize| (any::<Index>(), 0..most);
    // A few pieces of the trace, one of the steps, then a few places where bytes give way to others.
    let edit = (any::<Index>(), 0..6usize, prop::collection::vec(any::<u8>(), 0..6));
    let edits =
        (prop::collection::vec(piece(60), 1..5), piece(60), prop::collection::vec(edit, 0..6), any::<[u8; 18]>());
    TestRunner::new(ProptestConfig::with_cases(200))
        .run(&edits, |(pieces, (from, count), edits, choice)| {
            let cut = |lines: &[Vec<u8>], from: Index, count: usize| {
                let from = from.index(lines.len());
                lines[from..(from + count).min(lines.len())].concat()
            };
            let mut bytes: Vec<u8> = pieces.iter().flat_map(|&(from, count)| cut(&lines, from, count)).collect();
            for (at, length, new) in edits {
                let start = at.index(bytes.len() + 1);
                bytes.splice(start..(start + length).min(bytes.len()), new);
            }
            bytes.push(0);
            bytes.extend(cut(&steps, from, count));
            bytes.push(0);
            bytes.extend(choice);
            trace::survive(&bytes);
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn chosen_lines_are_survived(choices in prop::collection::vec(any::<u8>(), 0..2000)) {
        trace::survive(&[&[1], choices.as_slice()].concat());
    }

    #[test]
    fn bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        trace::survive(&bytes);
    }
}
