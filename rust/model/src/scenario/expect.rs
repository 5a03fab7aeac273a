//! What a line should come to.

use super::ScenarioError;
use super::lex::{Word, Words, is_name, parse_number};
use super::line::counter_of;
use super::names::{Names, is_errno};
use crate::{CounterId, Errno, Holder, Outcome, Vector};

/// The right side of `=>`.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the fields are named as in the language")]
pub enum Expectation {
    /// `ok`.
    Ok,
    /// `nothing`.
    Nothing,
    /// A name that the outcome is bound to.
    Bind(CounterId),
    /// An errno.
    Errno(String),
    /// `refused`: any errno.
    Refused,
    /// A number.
    Value(u64),
    /// `hit NAME...`; NAME may be `kgdb`.
    Hit { counters: Vec<CounterId>, kgdb: bool },
    /// `endless`: the same #DB for ever.
    Endless,
    /// `sigtrap [dr6=V]`.
    Sigtrap(Option<u64>),
    /// `#XX [dr6=V] [fault]`.
    Exception { vector: Vector, dr6: Option<u64>, fault: bool },
    /// `exit debug [dr6=V] [dr7=V]`.
    ExitDebug { dr6: Option<u64>, dr7: Option<u64> },
    /// `exit nested [dr6=V] [dr7=V]`.
    ExitNested { dr6: Option<u64>, dr7: Option<u64> },
    /// `exit fail_entry`.
    ExitFailEntry,
    /// `dr0=V ... dr7=V`: fields that are not listed are free.
    Registers(Vec<(u8, u64)>),
    /// `s0=NAME ...`: NAME, `kgdb` or `none`.
    Slots(Vec<(usize, Holder)>),
}

const ALLOWED: &str = "ok, nothing, refused, endless, a new name, an errno, a number, hit NAME.., sigtrap [dr6=V], #DB [dr6=V] [fault], \
                       #UD, #GP, exit debug [dr6=V] [dr7=V], exit nested [dr6=V] [dr7=V], exit fail_entry, dr0=V.. or s0=NAME..";

pub(super) fn parse(words: &mut Words<'_>, names: &mut Names, may_bind: bool) -> Result<Expectation, ScenarioError> {
    let word = words.expect("what it should come to")?;
    let expectation = match word.text {
        "ok" => Expectation::Ok,
        "nothing" => Expectation::Nothing,
        "refused" => Expectation::Refused,
        "endless" => Expectation::Endless,
        "hit" => {
            let (mut counters, mut kgdb) = (Vec::new(), false);
            let mut next = Some(words.expect("the name of a counter")?);
            while let Some(word) = next {
                if word.text == "kgdb" {
                    kgdb = true;
                } else {
                    counters.push(counter_of(word, names)?);
                }
                next = words.next();
            }
            Expectation::Hit { counters, kgdb }
        }
        "sigtrap" => {
            let [dr6] = fields(words, ["dr6"])?;
            Expectation::Sigtrap(dr6)
        }
        "exit" => {
            let reason = words.expect("the reason of the exit")?;
            match reason.text {
                "debug" => {
                    let [dr6, dr7] = fields(words, ["dr6", "dr7"])?;
                    Expectation::ExitDebug { dr6, dr7 }
                }
                "nested" => {
                    let [dr6, dr7] = fields(words, ["dr6", "dr7"])?;
                    Expectation::ExitNested { dr6, dr7 }
                }
                "fail_entry" => Expectation::ExitFailEntry,
                text => {
                    return Err(reason.error(format!("found exit '{text}', allowed are debug, nested and fail_entry")));
                }
            }
        }
        "#DB" | "#UD" | "#GP" => exception(word, words)?,
        text if is_errno(text) => Expectation::Errno(text.to_owned()),
        text if parse_number(text).is_some() => Expectation::Value(word.number("the outcome")?),
        text if text.contains('=') => state(word, words, names)?,
        text if is_name(text) && may_bind => Expectation::Bind(names.add_counter(word)?),
        text if is_name(text) => {
            return Err(
                word.error(format!("found '{text}', but only a breakpoint can be named: allowed are {ALLOWED}"))
            );
        }
        text => return Err(word.error(format!("found '{text}', allowed are {ALLOWED}"))),
    };
    words.finish("the expectation")?;
    Ok(expectation)
}

fn exception(word: Word<'_>, words: &mut Words<'_>) -> Result<Expectation, ScenarioError> {
    let vector = match word.text {
        "#DB" => Vector::Debug,
        "#UD" => Vector::InvalidOpcode,
        _ => Vector::GeneralProtection,
    };
    let (mut dr6, mut fault) = (None, false);
    while let Some(word) = words.next() {
        match word.text.split_once('=') {
            None if word.text == "fault" => fault = true,
            Some(("dr6", _)) if dr6.is_none() => dr6 = Some(value(word)?),
            _ => return Err(word.error(format!("found '{}', allowed are dr6=V and fault", word.text))),
        }
    }
    Ok(Expectation::Exception { vector, dr6, fault })
}

/// The value of a `key=value` word.
fn value(word: Word<'_>) -> Result<u64, ScenarioError> {
    let (key, text) = word.text.split_once('=').unwrap_or((word.text, ""));
    let column = word.column + key.chars().count() as u32 + 1;
    Word { text, column, ..word }.number(key)
}

fn fields<const N: usize>(words: &mut Words<'_>, keys: [&str; N]) -> Result<[Option<u64>; N], ScenarioError> {
    let mut found = [None; N];
    while let Some(word) = words.next() {
        let at = word.text.split_once('=').and_then(|(key, _)| keys.iter().position(|&known| known == key));
        match at {
            Some(at) if found[at].is_none() => found[at] = Some(value(word)?),
            _ => return Err(word.error(format!("found '{}', allowed are {}=V", word.text, keys.join("=V, ")))),
        }
    }
    Ok(found)
}

/// `dr0=V ...` or `s0=NAME ...`.
fn state(first: Word<'_>, words: &mut Words<'_>, names: &Names) -> Result<Expectation, ScenarioError> {
    let (mut registers, mut slots) = (Vec::new(), Vec::new());
    let mut next = Some(first);
    while let Some(word) = next {
        let (key, text) = word.text.split_once('=').unwrap_or_default();
        let index = key.get(1..).and_then(|rest| rest.strip_prefix('r').or(Some(rest))).and_then(parse_number);
        match (key.as_bytes().first(), index) {
            (Some(b'd'), Some(n @ (0..=3 | 6 | 7))) if key.starts_with("dr") => registers.push((n as u8, value(word)?)),
            (Some(b's'), Some(n @ 0..=3)) if key.len() == 2 => {
                let column = word.column + 3;
                let holder = match text {
                    "none" => Holder::Nobody,
                    "kgdb" => Holder::Kgdb,
                    _ => Holder::Counter(counter_of(Word { text, column, ..word }, names)?),
                };
                slots.push((n as usize, holder));
            }
            _ => {
                return Err(word.error(format!(
                    "found '{}', allowed are dr0=V to dr3=V, dr6=V, dr7=V, s0=NAME to s3=NAME",
                    word.text
                )));
            }
        }
        next = words.next();
    }
    match (registers.is_empty(), slots.is_empty()) {
        (false, true) => Ok(Expectation::Registers(registers)),
        (true, false) => Ok(Expectation::Slots(slots)),
        _ => Err(first.error("registers and slots cannot be mixed in one expectation")),
    }
}

impl Expectation {
    /// Whether an outcome is what was expected. `symbol` gives the symbol of a counter, if it has one.
    pub fn holds(&self, outcome: &Outcome, symbol: impl Fn(CounterId) -> Option<CounterId>) -> bool {
        match (self, outcome) {
            (Expectation::Ok, Outcome::Ok)
            | (Expectation::Bind(_), Outcome::Bound(_))
            | (Expectation::Refused, Outcome::Refused(_))
            | (Expectation::Endless, Outcome::Endless)
            | (Expectation::ExitFailEntry, Outcome::ExitFailEntry) => true,
            (Expectation::Nothing, Outcome::Hits { counters, kgdb, sigtrap }) => {
                counters.is_empty() && !kgdb && sigtrap.is_none()
            }
            (Expectation::Errno(name), Outcome::Refused(refusal)) => {
                refusal.errno.is_some() && Errno::from_name(name) == refusal.errno
            }
            (Expectation::Value(value), Outcome::Value(observed)) => value == observed,
            (Expectation::Hit { counters: expected, kgdb }, Outcome::Hits { counters, kgdb: entered, .. }) => {
                // Which slot comes first is not the scenario's business.
                let key = |id: &CounterId| id.0;
                let mut hit: Vec<_> = counters.iter().filter_map(|&id| symbol(id)).collect();
                let mut expected = expected.clone();
                hit.sort_by_key(key);
                expected.sort_by_key(key);
                hit.len() == counters.len() && hit == expected && kgdb == entered
            }
            (Expectation::Sigtrap(dr6), Outcome::Hits { sigtrap: Some(observed), .. }) => free(*dr6, *observed),
            (
                Expectation::Exception { vector, dr6, fault },
                Outcome::Exception { vector: found, dr6: observed, fault: is_fault },
            ) => vector == found && free(*dr6, *observed) && (!fault || *is_fault),
            (Expectation::ExitDebug { dr6, dr7 }, Outcome::ExitDebug { dr6: has6, dr7: has7 })
            | (Expectation::ExitNested { dr6, dr7 }, Outcome::ExitNested { dr6: has6, dr7: has7 }) => {
                free(*dr6, *has6) && free(*dr7, *has7)
            }
            (Expectation::Registers(fields), Outcome::Registers(registers)) => fields
                .iter()
                .all(|&(number, value)| debugreg::Dr::from_number(number).is_some_and(|dr| registers.get(dr) == value)),
            (Expectation::Slots(fields), Outcome::Slots(slots)) => {
                fields.iter().all(|&(slot, expected)| match (expected, slots[slot]) {
                    (Holder::Counter(name), Holder::Counter(id)) => symbol(id) == Some(name),
                    (expected, observed) => expected == observed,
                })
            }
            _ => false,
        }
    }
}

fn free(expected: Option<u64>, observed: u64) -> bool {
    expected.is_none_or(|expected| expected == observed)
}
