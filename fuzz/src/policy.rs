//! A policy that an input chooses: any name, and any of the deltas that concern it.

use arbitrary::{Result, Unstructured};
use debugreg_model::Policy;
use debugreg_model::policy::NAMED;

/// Any policy; half of them as they are by nature.
pub fn any(u: &mut Unstructured<'_>) -> Result<Policy> {
    let mut text = u.choose(&NAMED)?.name.to_owned();
    if u.arbitrary()? {
        for delta in parsed(&text).concerned() {
            let state = *u.choose(&["", "", "on", "fixed"])?;
            if !state.is_empty() {
                text += &format!("+{}={state}", delta.id());
            }
        }
    }
    Ok(parsed(&text))
}

/// A policy whose text has been checked.
pub fn parsed(text: &str) -> Policy {
    Policy::parse(text).unwrap_or_else(|error| panic!("{error}"))
}
