//! Reader of kernel traces in text form, line by line.
//!
//! Reads what `/sys/kernel/tracing/trace` prints with any of its options that keep the CPU in the line, and what
//! `trace-cmd report` and `perf script` make of the same events. Lines are told apart by their shape; no kernel version
//! and no tool is asked for, and the kinds may be mixed. What is left out: stack traces, the function graph, `perf
//! script` without `-a` (no CPU in the line), the tracefs option `nocontext-info` (no CPU either).
//!
//! A line is one of five things, and each is counted: an event ([`Record`]), an event that we have no word for
//! ([`Event::Other`]), a comment, a report of lost events, or unreadable. Nothing is dropped silently, and nothing is
//! guessed: an event that lacks a field it cannot be understood without is unreadable.
//!
//! Source of the shapes: Linux v6.18 `kernel/trace/trace_output.c`, `trace_syscalls.c`, `trace_probe.c`,
//! `include/trace/events`, `arch/x86/kvm/trace.h`; libtraceevent `plugins/plugin_{sched_switch,kvm}.c`;
//! `tools/perf/builtin-script.c`.

mod event;
mod fields;
mod kvm;
mod line;
mod probe;
mod sched;
mod syscall;

pub use event::{BpAttr, Event, ExitReason, PrevState};
pub(crate) use fields::{Bare, number};

use line::{Head, Separator};

/// One line that is an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// Line in the file, from 1, comments included.
    pub line: u32,
    /// The CPU that printed it.
    pub cpu: u16,
    /// The task that was running there, 0 for idle.
    pub pid: i32,
    /// When, in nanoseconds of the trace's own clock. `None` if the clock was a counter without a unit.
    pub time_ns: Option<u64>,
    /// What happened.
    pub event: Event<'a>,
}

/// What was seen beside the records. Lines are counted, except where said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// `#` lines, and the lines with which trace-cmd opens a report.
    pub comments: u32,
    /// Readable events without a word of ours; they are yielded as [`Event::Other`].
    pub unknown_events: u32,
    /// Lines that could not be read, a truncated last line not among them.
    pub unreadable: u32,
    /// The first such line, from 1: the one to show.
    pub first_unreadable: Option<u32>,
    /// Events that the kernel or the recording tool had to drop.
    pub lost: Lost,
    /// The last line has no newline and could not be read: the file was cut there.
    pub truncated_last_line: bool,
    /// From the header: events that are in the file.
    pub entries_in_buffer: Option<u64>,
    /// From the header: events that happened. More than are in the file means that its beginning was overwritten.
    pub entries_written: Option<u64>,
}

/// Reports of lost events. It changes while the lines are read, so it also tells *where* something is missing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lost {
    /// Lines that report a loss.
    pub lines: u32,
    /// Of those, the ones that do not say how many events.
    pub uncounted_lines: u32,
    /// Events lost, as far as the lines say.
    pub events: u64,
}

/// The events of a trace, in the order of its lines.
///
/// ```
/// use debugreg_trace::ftrace::{Event, Lines};
///
/// let mut lines = Lines::new(b"# tracer: nop\n          <idle>-0       [001] d..2.     6.625283: frobnicate: x=1\nwhat?\n");
/// let events: Vec<_> = lines.by_ref().map(|record| record.event).collect();
/// assert_eq!(events, [Event::Other("frobnicate")]);
/// assert_eq!((lines.counts().comments, lines.counts().unknown_events, lines.counts().unreadable), (1, 1, 1));
/// ```
#[derive(Debug, Clone)]
pub struct Lines<'a> {
    rest: &'a [u8],
    line: u32,
    counts: Counts,
}

impl<'a> Lines<'a> {
    /// Starts at the first line.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, line: 0, counts: Counts::default() }
    }

    /// What was seen so far.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Counts a line that is no event, if it is one of the kinds we know.
    fn is_aside(&mut self, line: &[u8]) -> bool {
        let text = line.trim_ascii_start();
        if let Some(comment) = text.strip_prefix(b"#") {
            self.counts.comments += 1;
            self.header(comment);
        } else if text.starts_with(b"CPU:") && text.ends_with(b"]") {
            return self.loss(text);
        } else if is_preamble(text) {
            self.counts.comments += 1;
        } else {
            return text.is_empty();
        }
        true
    }

    /// `# entries-in-buffer/entries-written: 185/185   #P:2`
    fn header(&mut self, comment: &[u8]) {
        let Some(text) = comment.trim_ascii_start().strip_prefix(b"entries-in-buffer/entries-written:") else { return };
        let mut numbers = text.trim_ascii_start().split(|byte| matches!(byte, b'/' | b' '));
        self.counts.entries_in_buffer = numbers.next().and_then(|word| number(word, Bare::Decimal));
        self.counts.entries_written = numbers.next().and_then(|word| number(word, Bare::Decimal));
    }

    /// `CPU:1 [LOST 63745 EVENTS]` and `CPU:0 [LOST EVENTS]` of the kernel, `CPU:0 [4096 EVENTS DROPPED]` and `CPU:0
    /// [EVENTS DROPPED]` of trace-cmd.
    fn loss(&mut self, text: &[u8]) -> bool {
        let words = || text.split(|byte| matches!(byte, b' ' | b'[' | b']'));
        if !words().any(|word| matches!(word, b"LOST" | b"DROPPED")) {
            return false;
        }
        self.counts.lost.lines += 1;
        match words().skip(1).find_map(|word| number(word, Bare::Decimal)) {
            Some(events) => self.counts.lost.events = self.counts.lost.events.saturating_add(events),
            None => self.counts.lost.uncounted_lines += 1,
        }
        true
    }
}

/// What trace-cmd prints before the first event: `cpus=2`, `version = 6`, `CPU 1 is empty`.
fn is_preamble(text: &[u8]) -> bool {
    text.starts_with(b"cpus=")
        || text.starts_with(b"version = ")
        || (text.starts_with(b"CPU ") && text.ends_with(b" is empty"))
}

impl<'a> Iterator for Lines<'a> {
    type Item = Record<'a>;

    fn next(&mut self) -> Option<Record<'a>> {
        while !self.rest.is_empty() {
            let end = memchr::memchr(b'\n', self.rest);
            let text = self.rest[..end.unwrap_or(self.rest.len())].trim_ascii_end();
            self.rest = end.map_or(&[], |end| &self.rest[end + 1..]);
            self.line += 1;
            // Asked before the columns are: an event may have been commented out.
            let is_comment = text.starts_with(b"#");
            let head = if is_comment { None } else { line::head(text) };
            let parsed = head.and_then(|head| Some((event(&head)?, head)));
            if let Some((event, Head { cpu, pid, time_ns, .. })) = parsed {
                self.counts.unknown_events += u32::from(matches!(event, Event::Other(_)));
                return Some(Record { line: self.line, cpu, pid, time_ns, event });
            }
            if self.is_aside(text) {
                continue;
            }
            if end.is_none() {
                self.counts.truncated_last_line = true;
            } else {
                self.counts.unreadable += 1;
                self.counts.first_unreadable.get_or_insert(self.line);
            }
        }
        None
    }
}

/// Whether at least one line is a trace's: an event, a loss, or the header that says how many events there are.
pub fn is_trace(bytes: &[u8]) -> bool {
    let mut lines = Lines::new(bytes);
    lines.next().is_some() || lines.counts.lost.lines > 0 || lines.counts.entries_written.is_some()
}

/// What a line says, `None` if it says less than its event needs.
fn event<'a>(head: &Head<'a>) -> Option<Event<'a>> {
    let Head { name, payload, .. } = *head;
    let other = Event::Other(event::text(name));
    match head.separator {
        Separator::Arrow => match name.strip_prefix(b"sys_").and_then(syscall::Call::from_name) {
            Some(call) => call.returned(payload),
            None => Some(other),
        },
        Separator::Parenthesis => match name.strip_prefix(b"sys_").and_then(syscall::Call::from_name) {
            Some(call) => call.entered(payload),
            None => Some(other),
        },
        Separator::Caller => Some(other),
        // perf prints the group in front: `kvm:kvm_exit`.
        Separator::Colon => match name.rsplit(|&byte| byte == b':').next()? {
            b"sched_switch" => sched::switch(payload),
            b"sched_migrate_task" => sched::migrate(payload),
            b"sched_process_fork" => sched::fork(payload),
            b"sched_process_exec" => sched::exec(payload),
            b"sched_process_exit" => sched::exit(payload),
            b"kvm_entry" => kvm::entry(payload),
            b"kvm_exit" => kvm::exit(payload),
            b"kvm_userspace_exit" => kvm::userspace_exit(payload),
            b"tracing_mark_write" => Some(event::mark(payload)),
            b"print" => Some(event::print(payload)),
            b"sys_enter" => syscall::entered_by_number(payload, other),
            b"sys_exit" => syscall::returned_by_number(payload, other),
            plain => {
                if let Some(call) = plain.strip_prefix(b"sys_enter_").and_then(syscall::Call::from_name) {
                    call.entered(payload)
                } else if let Some(call) = plain.strip_prefix(b"sys_exit_").and_then(syscall::Call::from_name) {
                    call.returned(payload)
                } else {
                    probe::event(plain, payload, other)
                }
            }
        },
    }
}

#[cfg(test)]
mod tests;
