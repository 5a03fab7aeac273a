//! Numbers and named values, as the kernel's many `printf`s spell them.

/// What digits without `0x` mean in the text at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bare {
    /// As in `name: value` of system calls, and in `%lx` without a prefix.
    Hex,
    /// As in `name=value` of tracepoints and probes.
    Decimal,
}

/// The verdict what is hex, for every number in every trace.
///
/// `0x` says so itself, and a sign means decimal. Of bare digits the shape of the list decides:
///
/// * `name: value` is written by `kernel/trace/trace_syscalls.c`. Old kernels (the recorded 6.12 too) print `%lx` for
///   all: `pid: 8e` is task 142. New ones print `0x%lx` from ten on and `%lu` below, where both readings agree. So bare
///   is hex, always.
/// * `name=value` is written by tracepoints (`%d`, `%u`) and by `trace_probe.c` (`%u`, `%d`, or `0x%x`). So bare is
///   decimal.
///
/// `None` if it is not a number, or not one of 64 bits. A negative number is given in two's complement.
pub(crate) fn number(text: &[u8], bare: Bare) -> Option<u64> {
    match text {
        [b'0', b'x' | b'X', digits @ ..] => hex(digits),
        [b'-', digits @ ..] => decimal(digits).map(u64::wrapping_neg),
        digits if bare == Bare::Hex => hex(digits),
        digits => decimal(digits),
    }
}

fn hex(digits: &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for &digit in digits {
        let digit = char::from(digit).to_digit(16)?;
        if value >> 60 != 0 {
            return None;
        }
        value = value << 4 | u64::from(digit);
    }
    (!digits.is_empty()).then_some(value)
}

fn decimal(digits: &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for &digit in digits {
        let digit = digit.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value = value.checked_mul(10)?.checked_add(u64::from(digit))?;
    }
    (!digits.is_empty()).then_some(value)
}

/// An `int` of the kernel. -1 arrives with 32 ones or with 64, depending on how user space loaded the register.
pub(super) fn int(value: u64) -> i32 {
    (value as u32).cast_signed()
}

/// How many bytes at the front satisfy `is`.
pub(super) fn span(text: &[u8], is: impl Fn(u8) -> bool) -> usize {
    text.iter().position(|&byte| !is(byte)).unwrap_or(text.len())
}

/// Splits off the decimal number at the front.
pub(super) fn leading_number(text: &[u8]) -> Option<(u64, &[u8])> {
    let (digits, rest) = text.split_at(span(text, |byte| byte.is_ascii_digit()));
    Some((decimal(digits)?, rest))
}

/// A named value of a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Field<'a> {
    pub(super) name: &'a [u8],
    pub(super) text: &'a [u8],
    bare: Bare,
}

impl Field<'_> {
    /// The value, `None` if it is no number. A probe prints `(fault)` where it could not read the caller's memory.
    pub(super) fn value(&self) -> Option<u64> {
        number(self.text, self.bare)
    }
}

/// The named values of a payload, whatever stands between them: `(function+0x4/0x110) addr=0x10 len=8`, `fd: 4, cmd:
/// ae01`, `addr = 0x10`, `(long request: 6, long pid: 0x5ee4)`.
#[derive(Debug, Clone)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Field<'a>;

    fn next(&mut self) -> Option<Field<'a>> {
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        loop {
            let rest = &self.0[span(self.0, |byte| !is_word(byte))..];
            if rest.is_empty() {
                self.0 = rest;
                return None;
            }
            let (name, rest) = rest.split_at(span(rest, is_word));
            let after = rest.trim_ascii_start();
            let bare = match after.first() {
                Some(b'=') => Bare::Decimal,
                Some(b':') => Bare::Hex,
                _ => {
                    self.0 = rest;
                    continue;
                }
            };
            let value = after[1..].trim_ascii_start();
            let closed = |with| memchr::memchr(with, &value[1..]).map_or(value.len(), |end| end + 2);
            let length = match value.first() {
                // What a bracket or a quote holds is one value: no name in it is a name.
                Some(b'(') => closed(b')'),
                Some(b'{') => closed(b'}'),
                Some(b'"') => closed(b'"'),
                _ => span(value, |byte| !byte.is_ascii_whitespace() && byte != b',' && byte != b')'),
            };
            let (text, rest) = value.split_at(length);
            self.0 = rest;
            return Some(Field { name, text, bare });
        }
    }
}

/// The last ` name=` whose value is a number with `then` behind it, and where the two are: value, start of the name,
/// rest of the text behind the value.
///
/// From the right, and checked on both sides, because a command name may hold anything that 15 bytes allow: `
/// prev_pid=1` is one, and ` prev_pid=1 prev_prio=` no longer is.
///
/// `key` opens with the space and closes with the sign. The tracefs option `fields` prints `0x5ede (24286)`; the
/// parenthesis is skipped.
pub(super) fn last_field<'a>(text: &'a [u8], key: &[u8], then: &[u8]) -> Option<(u64, usize, &'a [u8])> {
    for sign in memchr::memrchr_iter(b'=', text) {
        if !text[..=sign].ends_with(key) {
            continue;
        }
        let value = &text[sign + 1..];
        let (digits, rest) = value.split_at(span(value, |byte| !byte.is_ascii_whitespace()));
        let Some(value) = number(digits, Bare::Decimal) else { continue };
        let rest = skip_parenthesis(rest);
        if rest.starts_with(then) {
            return Some((value, sign + 1 - key.len(), rest));
        }
    }
    None
}

/// Behind ` (24286)`, if that is there.
pub(super) fn skip_parenthesis(text: &[u8]) -> &[u8] {
    match text.strip_prefix(b" (").and_then(|inner| Some((inner, memchr::memchr(b')', inner)?))) {
        Some((inner, end)) => &inner[end + 1..],
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shape_of_the_list_decides_what_bare_digits_are() {
        assert_eq!(number(b"8e", Bare::Hex), Some(142));
        assert_eq!(number(b"10", Bare::Hex), Some(16));
        assert_eq!(number(b"10", Bare::Decimal), Some(10));
        assert_eq!(number(b"8e", Bare::Decimal), None);
        for bare in [Bare::Hex, Bare::Decimal] {
            assert_eq!(number(b"0x10", bare), Some(16));
            assert_eq!(number(b"-10", bare), Some(10u64.wrapping_neg()));
            for digit in 0..10u8 {
                assert_eq!(number(&[b'0' + digit], bare), Some(u64::from(digit)));
            }
        }
    }

    #[test]
    fn numbers_end_at_64_bits() {
        assert_eq!(number(b"ffffffffffffffff", Bare::Hex), Some(u64::MAX));
        assert_eq!(number(b"00000000000000000001", Bare::Hex), Some(1));
        assert_eq!(number(b"10000000000000000", Bare::Hex), None);
        assert_eq!(number(b"18446744073709551615", Bare::Decimal), Some(u64::MAX));
        assert_eq!(number(b"18446744073709551616", Bare::Decimal), None);
        for nothing in [&b""[..], b"-", b"0x", b"(fault)", b"+1", b"--1", b"1 "] {
            assert_eq!(number(nothing, Bare::Hex), None, "{nothing:?}");
        }
    }

    #[test]
    fn minus_one_has_two_spellings() {
        assert_eq!(int(0xffff_ffff), -1);
        assert_eq!(int(u64::MAX), -1);
    }

    #[test]
    fn fields_are_found_by_name_however_they_are_spaced() {
        for text in [
            "(f+0x4/0x110) addr=0x10 len=8",
            "(f+0x4/0x110 [kvm])  addr = 0x10,len =8",
            "(ffffffff8104ce44) addr=16 len=0x8",
            "addr: 0x10, len: 8)",
            "(unsigned long addr: 10, int len: 8)",
            "addr=16 note=(len=9) text=\"len=7\" set={len=6} len=8",
        ] {
            for (name, expected) in [(&b"addr"[..], Some(16)), (b"len", Some(8))] {
                let mut values = Fields(text.as_bytes()).filter(|field| field.name == name).map(|field| field.value());
                assert_eq!((values.next(), values.next()), (Some(expected), None), "{text}");
            }
        }
        assert_eq!(Fields(b"type=(fault) x=").map(|field| field.value()).collect::<Vec<_>>(), [None, None]);
        assert_eq!(Fields(b"(hw_breakpoint_restore+0x4/0x80)").count(), 0);
    }

    #[test]
    fn the_last_field_is_the_kernels_not_the_command_names() {
        let text = b"comm= pid=7 pid=9 prio=120";
        assert_eq!(last_field(text, b" pid=", b" prio="), Some((9, 11, &b" prio=120"[..])));
        let text = b"pid=9 prio=1 child_comm= pid=7 child_pid=3 (3)";
        assert_eq!(last_field(text, b" child_pid=", b""), Some((3, 30, &b""[..])));
        assert_eq!(last_field(text, b" absent=", b""), None);
    }
}
