//! A policy that an input chooses: any name, and any of the deltas that concern it.

use arbitrary::{Result, Unstructured};
use debugreg_model::Policy;
use debugreg_model::policy::NAMED;

/// Any policy; half of them as they are by nature.
///
/// # Errors
///
/// None: an input that has ended chooses the first of everything.
pub fn any(u: &mut Unstructured<'_>) -> Result<Policy> {
    let mut parts = vec![u.choose(NAMED)?.name.to_owned()];
    if u.arbitrary()? {
        let (switched, on): (u64, u64) = u.arbitrary()?;
        for delta in parsed(&parts[0]).concerned() {
            let bit = 1 << delta as u8;
            if switched & bit != 0 {
                parts.push(format!("{}={}", delta.id(), if on & bit != 0 { "on" } else { "fixed" }));
            }
        }
    }
    Ok(parsed(&parts.join("+")))
}

/// A policy.
///
/// # Panics
///
/// If there is none of that text: it should have been checked.
pub fn parsed(text: &str) -> Policy {
    Policy::parse(text).unwrap_or_else(|error| panic!("{error}"))
}
