//! Arbitrary bytes as a trace: text, then behind a NUL byte a steps file, then the choice of a policy.

use std::path::Path;

use arbitrary::Unstructured;
use debugreg_model::Options;
use debugreg_trace::{Trace, replay, steps};

use crate::policy;

/// Reads and replays.
///
/// # Panics
///
/// If anything is wrong with what came of it.
pub fn survive(bytes: &[u8]) {
    let mut parts = bytes.splitn(3, |&byte| byte == 0);
    let [text, steps, choice] = [(); 3].map(|()| parts.next());
    let mut trace = Trace::parse("trace.txt", text.unwrap_or_default());
    if let Some(steps) = steps {
        match steps::parse(Path::new("trace.steps"), steps) {
            Ok(steps) => trace.steps = Some(steps),
            Err(error) => assert!(error.to_string().starts_with("trace.steps:"), "{error}"),
        }
    }
    let policy = policy::any(&mut Unstructured::new(choice.unwrap_or_default())).expect("anything is a choice");
    let options = Options { vendor: trace.vendor, ..Options::default() };
    let replayed = replay(&trace, policy, options, true, |_| true).expect("nobody has stopped it");
    assert!(replayed.verify.is_some());
}
