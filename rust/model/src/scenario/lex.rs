//! Words of a line, with their columns.

use super::ScenarioError;

/// A word and where it starts.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct Word<'a> {
    pub(super) text: &'a str,
    pub(super) line: u32,
    pub(super) column: u32,
}

impl Word<'_> {
    pub(super) fn error(&self, message: impl Into<String>) -> ScenarioError {
        // What was found may be anything: a terminal sees no control character of it.
        let escaped = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
        let message = message.into().chars().map(escaped).collect();
        ScenarioError { line: self.line, column: self.column, message }
    }

    /// A number: decimal or 0x, below 2^64.
    pub(super) fn number(&self, what: &str) -> Result<u64, ScenarioError> {
        parse_number(self.text).ok_or_else(|| {
            self.error(format!("{what}: found '{}', allowed is a number below 2^64, decimal or 0x", self.text))
        })
    }
}

pub(super) fn parse_number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) if !hex.is_empty() && hex.bytes().all(|b| b.is_ascii_hexdigit()) => u64::from_str_radix(hex, 16).ok(),
        None if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => text.parse().ok(),
        _ => None,
    }
}

/// Whether a text can be a name.
pub(super) fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// An exception as an expectation names it, so that its `#` starts no comment.
fn is_exception(text: &str) -> bool {
    text.len() == 3 && text.starts_with('#') && text[1..].bytes().all(|b| b.is_ascii_uppercase())
}

/// The words of a line up to its comment.
pub(super) fn words(text: &str, line: u32) -> Vec<Word<'_>> {
    let mut words: Vec<Word<'_>> = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start();
        let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
        let word = &rest[..end];
        let expected = words.last().is_some_and(|last| last.text == "=>");
        if word.is_empty() || word.starts_with('#') && !(expected && is_exception(word)) {
            return words;
        }
        // Columns count characters, as an editor does.
        let before = text.len() - rest.len();
        let column = text[..before].chars().count() as u32 + 1;
        words.push(Word { text: word, line, column });
        rest = &rest[end..];
    }
}

/// The words of one line, read from left to right.
#[derive(Debug)]
pub(super) struct Words<'a> {
    all: &'a [Word<'a>],
    at: usize,
    end: Word<'a>,
}

impl<'a> Words<'a> {
    /// `end` stands for what is missing after the last word.
    pub(super) fn new(words: &'a [Word<'a>]) -> Words<'a> {
        let last = words.last().expect("a line that is read has a word");
        let column = last.column + last.text.chars().count() as u32;
        Words { all: words, at: 0, end: Word { text: "", line: last.line, column } }
    }

    pub(super) fn peek(&self) -> Option<Word<'a>> {
        self.all.get(self.at).copied()
    }

    pub(super) fn next(&mut self) -> Option<Word<'a>> {
        let word = self.peek()?;
        self.at += 1;
        Some(word)
    }

    /// The next word, which must be there.
    pub(super) fn expect(&mut self, what: &str) -> Result<Word<'a>, ScenarioError> {
        self.next().ok_or_else(|| self.end.error(format!("the line ends here, but {what} is missing")))
    }

    /// No more words.
    pub(super) fn finish(&self, after: &str) -> Result<(), ScenarioError> {
        match self.peek() {
            None => Ok(()),
            Some(word) => {
                Err(word.error(format!("found '{}' after {after}, allowed is the end of the line", word.text)))
            }
        }
    }

    pub(super) fn error(&self, message: impl Into<String>) -> ScenarioError {
        self.peek().unwrap_or(self.end).error(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_end_a_line_and_exceptions_do_not() {
        let texts = |text| words(text, 1).into_iter().map(|w| w.text).collect::<Vec<_>>();
        assert_eq!(texts("a b # c"), ["a", "b"]);
        assert_eq!(texts("v0 store 1 1 => #DB dr6=1 # why"), ["v0", "store", "1", "1", "=>", "#DB", "dr6=1"]);
        assert_eq!(texts("v0 store 1 1 #DB"), ["v0", "store", "1", "1"]);
        assert!(texts("   ").is_empty());
    }

    #[test]
    fn columns_are_characters_from_one() {
        let columns: Vec<_> = words("\tä bb  c", 7).into_iter().map(|w| w.column).collect();
        assert_eq!(columns, [2, 4, 8]);
    }

    #[test]
    fn numbers_are_decimal_or_hex_and_fit_64_bits() {
        assert_eq!(parse_number("0xFF"), Some(255));
        assert_eq!(parse_number("18446744073709551615"), Some(u64::MAX));
        for bad in ["", "0x", "-1", "1_000", "0x1ffffffffffffffff", "+1", "ff", "0x+1"] {
            assert_eq!(parse_number(bad), None, "{bad}");
        }
    }
}
