//! Reader of `*.steps`: what an emulator logged beneath a traced run, one instruction or function entry a line.
//!
//! `CPU PC WHAT`, in order over all CPUs: `W n v` MOV to `DRn`, `R n` MOV from `DRn`, `E` VMRUN, `M name rdi` entry of
//! a kernel function. The CPU and the register are decimal, everything else is hex without `0x`. The k-th `E` is the
//! k-th `kvm_entry` line of the trace, the k-th `M install` its k-th `install` line, likewise uninstall and restore.

use std::path::Path;

use crate::error::TraceError;
use crate::ftrace::{Bare, number};

/// One line of a step file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Line in the file, from 1.
    pub line: u32,
    /// The CPU that executed it.
    pub cpu: u16,
    /// Where: the address of the instruction, or of the function.
    pub pc: u64,
    /// What was executed.
    pub what: What,
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// MOV to a debug register.
    Write {
        /// Which, 0 to 7.
        dr: u8,
        /// What was written.
        value: u64,
    },
    /// MOV from a debug register. What was read is not logged.
    Read {
        /// Which, 0 to 7.
        dr: u8,
    },
    /// VMRUN: the guest was entered.
    VmRun,
    /// A kernel function was entered.
    Mark {
        /// Which.
        name: MarkName,
        /// Its first argument: for install and uninstall the event, else what the function takes.
        rdi: u64,
    },
}

/// The kernel functions whose entry is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MarkName {
    /// `arch_install_hw_breakpoint`
    Install,
    /// `arch_uninstall_hw_breakpoint`
    Uninstall,
    /// `hw_breakpoint_restore`
    Restore,
    /// perf's hook where a task leaves the CPU
    TaskSchedOut,
    /// perf's hook where a task comes onto the CPU
    TaskSchedIn,
    /// `exc_debug_user`: the #DB handler, from user space
    ExcDebugUser,
    /// `noist_exc_debug`: its part on the task's stack
    NoistExcDebug,
    /// `exc_nmi`
    ExcNmi,
    /// Not a function: the driver of the run begins a line of a scenario, whose number is in RDI.
    Line,
    /// One that this reader does not know.
    Other,
}

impl MarkName {
    fn from_word(word: &[u8]) -> Self {
        match word {
            b"install" => Self::Install,
            b"uninstall" => Self::Uninstall,
            b"restore" => Self::Restore,
            b"task_sched_out" => Self::TaskSchedOut,
            b"task_sched_in" => Self::TaskSchedIn,
            b"exc_debug_user" => Self::ExcDebugUser,
            b"noist_exc_debug" => Self::NoistExcDebug,
            b"exc_nmi" => Self::ExcNmi,
            b"line" => Self::Line,
            _ => Self::Other,
        }
    }
}

impl Step {
    /// Whether the host's kernel executed it: its image and its modules have the topmost 2 GiB
    /// (Documentation/arch/x86/x86_64/mm.rst), where the guests of such runs have nothing.
    pub fn is_kernel(&self) -> bool {
        self.pc >= 0xffff_ffff_8000_0000
    }
}

/// Reads a whole step file. Blank lines are allowed.
///
/// A last line without a newline is dropped, readable or not: the emulator was stopped in the middle of it, and half a
/// value looks like a value.
///
/// # Errors
/// [`TraceError::Steps`] for the first line that is not a step. `path` only serves that message.
pub fn parse(path: &Path, bytes: &[u8]) -> Result<Vec<Step>, TraceError> {
    let mut steps = Vec::with_capacity(bytes.len() / 24);
    let (mut rest, mut line) = (bytes, 0);
    while let Some(end) = memchr::memchr(b'\n', rest) {
        line += 1;
        let text = rest[..end].trim_ascii_end();
        rest = &rest[end + 1..];
        if !text.is_empty() {
            steps.push(step(line, text).map_err(|wrong| wrong.at(path, line))?);
        }
    }
    Ok(steps)
}

/// What is wrong with a line, before it is known in which file.
#[derive(Debug)]
struct Wrong<'a> {
    column: usize,
    found: &'a [u8],
    allowed: &'static str,
}

impl Wrong<'_> {
    fn at(&self, path: &Path, line: u32) -> TraceError {
        TraceError::Steps {
            path: path.into(),
            line,
            column: self.column as u32,
            found: self.found.escape_ascii().take(40).map(char::from).collect(),
            allowed: self.allowed,
        }
    }
}

fn step(line: u32, text: &[u8]) -> Result<Step, Wrong<'_>> {
    let mut words = Words { text, at: 0, column: 1 };
    let cpu = words.number(Bare::Decimal, u64::from(u16::MAX), "a CPU number")? as u16;
    let pc = words.hex("an address in hex")?;
    let what = match words.next() {
        b"W" => What::Write { dr: words.register()?, value: words.hex("a value in hex")? },
        b"R" => What::Read { dr: words.register()? },
        b"E" => What::VmRun,
        b"M" => {
            let name = words.next();
            if name.is_empty() {
                return Err(words.wrong(name, "the name of a function"));
            }
            What::Mark { name: MarkName::from_word(name), rdi: words.hex("an argument in hex")? }
        }
        other => return Err(words.wrong(other, "W, R, E or M")),
    };
    match words.next() {
        b"" => Ok(Step { line, cpu, pc, what }),
        more => Err(words.wrong(more, "the end of the line")),
    }
}

/// The words of a line, and where the latest one stood.
struct Words<'a> {
    text: &'a [u8],
    at: usize,
    column: usize,
}

impl<'a> Words<'a> {
    /// The next word, empty at the end of the line.
    fn next(&mut self) -> &'a [u8] {
        let start = self.at + self.text[self.at..].iter().take_while(|&&byte| byte == b' ').count();
        let rest = &self.text[start..];
        let length = memchr::memchr(b' ', rest).unwrap_or(rest.len());
        (self.at, self.column) = (start + length, start + 1);
        &rest[..length]
    }

    fn wrong(&self, found: &'a [u8], allowed: &'static str) -> Wrong<'a> {
        Wrong { column: self.column, found, allowed }
    }

    fn number(&mut self, bare: Bare, most: u64, allowed: &'static str) -> Result<u64, Wrong<'a>> {
        let word = self.next();
        // No sign and no 0x: the emulator prints neither, so either means that this is some other file.
        let plain = word.iter().all(u8::is_ascii_hexdigit);
        number(word, bare).filter(|&value| plain && value <= most).ok_or_else(|| self.wrong(word, allowed))
    }

    fn hex(&mut self, allowed: &'static str) -> Result<u64, Wrong<'a>> {
        self.number(Bare::Hex, u64::MAX, allowed)
    }

    fn register(&mut self) -> Result<u8, Wrong<'a>> {
        Ok(self.number(Bare::Decimal, 7, "a debug register, 0 to 7")? as u8)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<Vec<Step>, TraceError> {
        parse(Path::new("x.steps"), text.as_bytes())
    }

    #[test]
    fn each_kind_of_line_is_read() {
        let steps = read(
            "0 ffffffff81c83ee7 W 7 400\n\
             1 1009 R 6\n\
             0 ffffffffc036739d E\n\
             0 ffffffff8104ce40 M install ffff8880042723e0\n\
             0 ffffffff81c80a50 M noist_exc_debug ffffc9000041bf58\n\
             0 ffffffff81c80a50 M something_new 0\n",
        )
        .unwrap();
        assert_eq!(
            steps.iter().map(|step| step.what).collect::<Vec<_>>(),
            [
                What::Write { dr: 7, value: 0x400 },
                What::Read { dr: 6 },
                What::VmRun,
                What::Mark { name: MarkName::Install, rdi: 0xffff_8880_0427_23e0 },
                What::Mark { name: MarkName::NoistExcDebug, rdi: 0xffff_c900_0041_bf58 },
                What::Mark { name: MarkName::Other, rdi: 0 },
            ]
        );
        assert_eq!(steps[1], Step { line: 2, cpu: 1, pc: 0x1009, what: What::Read { dr: 6 } });
        assert!(steps[0].is_kernel() && !steps[1].is_kernel());
    }

    #[test]
    fn every_name_of_the_log_is_known() {
        let names = "install uninstall restore task_sched_out task_sched_in exc_debug_user noist_exc_debug exc_nmi \
                     line";
        for name in names.split(' ') {
            assert_ne!(MarkName::from_word(name.as_bytes()), MarkName::Other, "{name}");
        }
    }

    #[test]
    fn a_wrong_word_is_named_with_its_place_and_what_may_stand_there() {
        let cases = [
            ("0 ffff E\n0 ffff Q\n", 2, 8, "Q", "W, R, E or M"),
            ("x ffff E\n", 1, 1, "x", "a CPU number"),
            ("65536 ffff E\n", 1, 1, "65536", "a CPU number"),
            ("0 gggg E\n", 1, 3, "gggg", "an address in hex"),
            ("0 0xff E\n", 1, 3, "0xff", "an address in hex"),
            ("0\n", 1, 2, "", "an address in hex"),
            ("0 ffff W 8 0\n", 1, 10, "8", "a debug register, 0 to 7"),
            ("0 ffff W 7\n", 1, 11, "", "a value in hex"),
            ("0 ffff W 7 -1\n", 1, 12, "-1", "a value in hex"),
            ("0 ffff W 7 10000000000000000\n", 1, 12, "10000000000000000", "a value in hex"),
            ("0 ffff M\n", 1, 9, "", "the name of a function"),
            ("0 ffff M install\n", 1, 17, "", "an argument in hex"),
            ("0 ffff E 1\n", 1, 10, "1", "the end of the line"),
        ];
        for (text, line, column, found, allowed) in cases {
            let path = "x.steps".into();
            assert_eq!(
                read(text),
                Err(TraceError::Steps { path, line, column, found: found.into(), allowed }),
                "{text}"
            );
        }
    }

    #[test]
    fn a_last_line_without_newline_is_not_believed() {
        assert_eq!(read("0 ffff E\n0 ffff W 7 4").unwrap().len(), 1);
        assert_eq!(read("0 ffff E\n0 ff").unwrap().len(), 1);
        assert_eq!(read("").unwrap(), []);
    }

    #[test]
    fn carriage_returns_and_blank_lines_do_no_harm() {
        assert_eq!(read("0 ffff E\r\n\r\n1 ffff E\r\n").unwrap().len(), 2);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(Path::new("x"), &bytes);
        }

        #[test]
        fn what_is_printed_is_read_back(cpu: u16, pc: u64, dr in 0u8..8, value: u64) {
            let steps = read(&format!("{cpu} {pc:x} W {dr} {value:x}\n")).unwrap();
            prop_assert_eq!(&steps, &[Step { line: 1, cpu, pc, what: What::Write { dr, value } }]);
        }
    }
}
