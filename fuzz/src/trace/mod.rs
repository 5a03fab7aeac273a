//! Arbitrary bytes as a trace file.
//!
//! Either the file itself, packed or not; behind a NUL byte may stand a steps file, and behind another one the choice of
//! a policy. Or, if the first byte is 1, what is behind it chooses lines of a trace ([`lines`]), which get deeper.

mod lines;

use std::path::Path;

use arbitrary::Unstructured;
use debugreg_model::{Options, Policy};
use debugreg_trace::ftrace::is_trace;
use debugreg_trace::{Trace, replay, source, steps};

use crate::policy;

/// Reads and replays.
///
/// # Panics
///
/// If anything is wrong with what came of it.
pub fn survive(bytes: &[u8]) {
    match bytes.split_first() {
        Some((1, choices)) => {
            let mut u = Unstructured::new(choices);
            let policy = policy::any(&mut u).expect("what is missing is zero");
            let (text, steps) = lines::any(&mut u).expect("what is missing is zero");
            if let Some(trace) = read(text.into_bytes(), Some(steps.as_bytes())) {
                assert_eq!(trace.counts.unreadable, 0, "line {:?}", trace.counts.first_unreadable);
                replayed(&trace, policy);
            }
        }
        _ if bytes.starts_with(&[0x1f, 0x8b]) => drop(read(bytes.to_vec(), None)),
        _ => {
            let mut parts = bytes.splitn(3, |&byte| byte == 0);
            let [text, steps, choice] = [(); 3].map(|()| parts.next());
            let mut u = Unstructured::new(choice.unwrap_or_default());
            let policy = policy::any(&mut u).expect("what is missing is zero");
            if let Some(trace) = read(text.unwrap_or_default().to_vec(), steps) {
                replayed(&trace, policy);
            }
        }
    }
}

fn read(raw: Vec<u8>, beside: Option<&[u8]>) -> Option<Trace> {
    let text = match source::text(Path::new("trace.txt"), raw) {
        Ok(text) => text,
        Err(error) => {
            is_told(&error.to_string(), "trace.txt: ");
            return None;
        }
    };
    if !is_trace(&text) {
        return None;
    }
    let mut trace = Trace::parse("trace.txt", &text);
    let lines = text.split(|&byte| byte == b'\n').count();
    assert!(trace.rows.len() + trace.truth.len() <= lines, "more rows than lines");
    if let Some(beside) = beside {
        match steps::parse(Path::new("trace.steps"), beside) {
            Ok(steps) => trace.lay_beside(&steps),
            Err(error) => is_told(&error.to_string(), "trace.steps:"),
        }
    }
    Some(trace)
}

fn replayed(trace: &Trace, policy: Policy) {
    let options = Options { vendor: trace.vendor, ..Options::default() };
    let replayed = replay(trace, policy, options, true, |_| true).expect("nobody has stopped it");
    assert!(replayed.verify.is_some());
}

/// An error is a line that names the file.
fn is_told(error: &str, begin: &str) {
    assert!(error.starts_with(begin) && !error.contains(char::is_control), "{error:?}");
}
