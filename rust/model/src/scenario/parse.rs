//! A file of the language.

use std::fmt;

use super::ScenarioError;
use super::expect::{self, Expectation};
use super::lex::{Word, Words, words};
use super::line::parse_event;
use super::names::{Named, Names};
use crate::laws::Laws;
use crate::{Capabilities, CpuId, Event, Options, Policy, Processor, TaskId, Vendor};

/// A scenario: what there is, what happens, what it should come to.
#[derive(Clone, PartialEq, Debug)]
pub struct Scenario {
    /// The leading comment, a line each.
    pub title: Vec<String>,
    /// The `machine` line, with the vendor that it names, if any.
    pub options: Options,
    /// The vendor, if the file names one.
    pub vendor: Option<Vendor>,
    /// Policies under each of which the file must hold; empty means any.
    pub policies: Vec<String>,
    /// The laws that every line is held to, besides what it expects.
    pub laws: Laws,
    /// The tasks, in order.
    pub tasks: Vec<TaskDeclaration>,
    /// The vCPUs, in order.
    pub vcpus: Vec<VcpuDeclaration>,
    /// The events.
    pub lines: Vec<Line>,
    /// What everything is called.
    pub names: Names,
}

/// A `task` line.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct TaskDeclaration {
    /// Where it runs.
    pub cpu: CpuId,
    /// What it may do.
    pub capabilities: Capabilities,
    /// 32-bit program.
    pub is_32bit: bool,
}

/// A `vcpu` line.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct VcpuDeclaration {
    /// Its thread.
    pub task: TaskId,
    /// CR4.DE of its guest.
    pub debug_extensions: bool,
}

/// A moment inside a transition.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum At {
    /// `@N`: before step N.
    Step(usize),
    /// `@entry`: just before the guest is entered.
    Entry,
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            At::Step(step) => write!(f, "@{step}"),
            At::Entry => f.write_str("@entry"),
        }
    }
}

/// An event line.
#[derive(Clone, PartialEq, Debug)]
pub struct Line {
    /// Its number in the file.
    pub number: u32,
    /// The column of its actor.
    pub column: u32,
    /// What happens.
    pub event: Event,
    /// What happens inside it: before which of its steps, and what.
    pub interruption: Option<(At, Event)>,
    /// What it should come to.
    pub expectation: Option<Expectation>,
}

/// Reads a scenario.
///
/// # Errors
///
/// The first mistake, with its line and column.
pub fn parse(text: &str) -> Result<Scenario, ScenarioError> {
    let mut scenario = Scenario {
        title: Vec::new(),
        options: Options::default(),
        vendor: None,
        policies: Vec::new(),
        laws: Laws::NONE,
        tasks: Vec::new(),
        vcpus: Vec::new(),
        lines: Vec::new(),
        names: Names::new(Options::default().cpus),
    };
    let mut leading = true;
    let mut machine_seen = false;
    for (number, text) in (1..).zip(text.lines()) {
        let words = words(text, number);
        let Some(&first) = words.first() else {
            match text.trim_start().strip_prefix('#') {
                Some(comment) if leading => scenario.title.push(comment.trim().to_owned()),
                _ => leading = leading && scenario.title.is_empty(),
            }
            continue;
        };
        leading = false;
        let mut rest = Words::new(&words);
        match first.text {
            "machine" | "task" | "vcpu" if !scenario.lines.is_empty() => {
                return Err(first.error(format!("'{}' is a declaration: it stands before the first event", first.text)));
            }
            "machine" => {
                if machine_seen || !scenario.tasks.is_empty() {
                    return Err(first.error("'machine' comes once, before every task and vcpu"));
                }
                machine_seen = true;
                rest.next();
                machine(&mut scenario, &mut rest)?;
                scenario.names = Names::new(scenario.options.cpus);
            }
            "task" => {
                rest.next();
                task(&mut scenario, &mut rest)?;
            }
            "vcpu" => {
                rest.next();
                vcpu(&mut scenario, &mut rest)?;
            }
            _ => {
                let line = parse_line(&words, &mut scenario.names)?;
                scenario.lines.push(line);
            }
        }
    }
    if scenario.lines.is_empty() {
        return Err(ScenarioError { line: 0, column: 0, message: "there is no event in it".to_owned() });
    }
    if let Some(line) = scenario.lines.iter().find(|line| matches!(line.interruption, Some((At::Step(_), _))))
        && scenario.policies.len() != 1
    {
        return Err(ScenarioError {
            line: line.number,
            column: line.column,
            message: "an interruption inside a transition (@N) needs a machine line with one policy=".to_owned(),
        });
    }
    Ok(scenario)
}

/// Reads one event line. A line with a mistake names nothing.
pub(super) fn parse_line(words: &[Word<'_>], names: &mut Names) -> Result<Line, ScenarioError> {
    let before = names.clone();
    let line = read_line(words, names);
    if line.is_err() {
        names.rollback(&before);
    }
    line
}

fn read_line(words: &[Word<'_>], names: &mut Names) -> Result<Line, ScenarioError> {
    let mut words = Words::new(words);
    let first = words.peek().expect("a line that is read has a word");
    let event = parse_event(&mut words, names)?;
    let interruption = match words.peek().filter(|word| word.text.starts_with('@')) {
        None => None,
        Some(at) => {
            words.next();
            let moment = if at.text == "@entry" { At::Entry } else { At::Step(step(at)?) };
            Some((moment, parse_event(&mut words, names)?))
        }
    };
    let expectation = match words.next() {
        None => None,
        Some(arrow) if arrow.text == "=>" => {
            let may_bind = matches!(event, Event::PerfEventOpen { .. } | Event::RegisterHwBreakpoint { .. });
            Some(expect::parse(&mut words, names, may_bind)?)
        }
        Some(word) => return Err(word.error(format!("found '{}', allowed is => or the end of the line", word.text))),
    };
    Ok(Line { number: first.line, column: first.column, event, interruption, expectation })
}

/// The N of `@N`.
fn step(at: Word<'_>) -> Result<usize, ScenarioError> {
    let number = Word { text: &at.text[1..], column: at.column + 1, ..at }.number("the step")?;
    let step = usize::try_from(number).ok().filter(|&step| step > 0);
    step.ok_or_else(|| at.error(format!("found '{}', allowed are @1 and up, and @entry", at.text)))
}

/// Splits the next `key=value` word, whose key has not come before; `value` keeps its own column.
fn key_value<'a>(word: Word<'a>, seen: &mut Vec<&'a str>, allowed: &str) -> Result<(&'a str, Word<'a>), ScenarioError> {
    let Some((key, text)) = word.text.split_once('=') else {
        return Err(word.error(format!("found '{}', allowed are {allowed}", word.text)));
    };
    if seen.contains(&key) {
        return Err(word.error(format!("'{key}=' is given twice")));
    }
    seen.push(key);
    let column = word.column + key.chars().count() as u32 + 1;
    Ok((key, Word { text, column, ..word }))
}

/// A value out of a few.
fn one_of<T: Copy>(key: &str, value: Word<'_>, choices: &[(&str, T)]) -> Result<T, ScenarioError> {
    let found = choices.iter().find(|(name, _)| *name == value.text).map(|&(_, choice)| choice);
    found.ok_or_else(|| {
        let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
        value.error(format!("{key}: found '{}', allowed are {}", value.text, names.join(", ")))
    })
}

/// A number in a range.
fn within(key: &str, value: Word<'_>, low: u64, high: u64) -> Result<u64, ScenarioError> {
    let number = value.number(key)?;
    if (low..=high).contains(&number) {
        Ok(number)
    } else {
        Err(value.error(format!("{key}: found {number}, allowed is {low} to {high}")))
    }
}

const BIT: [(&str, bool); 2] = [("0", false), ("1", true)];

fn machine(scenario: &mut Scenario, words: &mut Words<'_>) -> Result<(), ScenarioError> {
    const ALLOWED: &str = "cpus=, vendor=, policy=, laws=, slots=, paranoid=, hypervisor=, fred=, disabled_match=, decode_assists=, kprobes=, kgdb=, cpu=";
    let mut seen = Vec::new();
    while let Some(word) = words.next() {
        let (key, value) = key_value(word, &mut seen, ALLOWED)?;
        let options = &mut scenario.options;
        match key {
            "cpus" => options.cpus = within(key, value, 1, 256)? as usize,
            "vendor" => {
                let vendor = one_of(key, value, &[("intel", Vendor::Intel), ("amd", Vendor::Amd)])?;
                options.vendor = vendor;
                scenario.vendor = Some(vendor);
            }
            "slots" => options.slots = within(key, value, 1, 4)? as usize,
            "paranoid" if value.text == "-1" => options.paranoid = -1,
            "paranoid" => options.paranoid = within(key, value, 0, 4)? as i32,
            "hypervisor" => options.hypervisor = one_of(key, value, &BIT)?,
            "fred" => options.fred = one_of(key, value, &BIT)?,
            "disabled_match" => options.disabled_match = one_of(key, value, &BIT)?,
            "decode_assists" => options.decode_assists = one_of(key, value, &BIT)?,
            "kprobes" => options.kprobes = one_of(key, value, &BIT)?,
            "kgdb" => options.kgdb_early = one_of(key, value, &[("late", false), ("early", true)])?,
            "cpu" if value.text.is_empty() => options.processor = Processor::Real,
            "cpu" => options.processor = one_of(key, value, &[("tcg", Processor::Tcg)])?,
            "laws" => scenario.laws = Laws::parse(value.text).map_err(|message| value.error(message))?,
            "policy" => {
                let mut column = value.column;
                for text in value.text.split(',') {
                    if !text.is_empty() {
                        let word = Word { text, column, ..value };
                        Policy::parse(text).map_err(|error| word.error(error.to_string()))?;
                        scenario.policies.push(text.to_owned());
                    }
                    column += text.chars().count() as u32 + 1;
                }
            }
            _ => return Err(word.error(format!("found '{key}=', allowed are {ALLOWED}"))),
        }
    }
    Ok(())
}

fn task(scenario: &mut Scenario, words: &mut Words<'_>) -> Result<(), ScenarioError> {
    const ALLOWED: &str = "cpu=, caps=, bits=";
    let name = words.expect("the task's name")?;
    scenario.names.add_task(name)?;
    let mut task = TaskDeclaration { cpu: CpuId(0), capabilities: Capabilities::Root, is_32bit: false };
    let mut seen = Vec::new();
    while let Some(word) = words.next() {
        let (key, value) = key_value(word, &mut seen, ALLOWED)?;
        match key {
            "cpu" => task.cpu = CpuId(within(key, value, 0, scenario.options.cpus as u64 - 1)? as u32),
            "caps" => {
                let choices =
                    [("root", Capabilities::Root), ("perfmon", Capabilities::Perfmon), ("none", Capabilities::None)];
                task.capabilities = one_of(key, value, &choices)?;
            }
            "bits" => task.is_32bit = one_of(key, value, &[("64", false), ("32", true)])?,
            _ => return Err(word.error(format!("found '{key}=', allowed are {ALLOWED}"))),
        }
    }
    scenario.tasks.push(task);
    Ok(())
}

fn vcpu(scenario: &mut Scenario, words: &mut Words<'_>) -> Result<(), ScenarioError> {
    let name = words.expect("the vCPU's name")?;
    scenario.names.add_vcpu(name)?;
    let (mut thread, mut debug_extensions) = (None, false);
    let mut seen = Vec::new();
    while let Some(word) = words.next() {
        let (key, value) = key_value(word, &mut seen, "task=, de=")?;
        match (key, scenario.names.get(value.text)) {
            ("task", Some(Named::Task(task))) => thread = Some(task),
            ("task", _) => {
                let tasks = scenario.names.tasks_listed();
                return Err(value.error(format!("task: found '{}', allowed is a task: {tasks}", value.text)));
            }
            ("de", _) => debug_extensions = one_of(key, value, &BIT)?,
            _ => return Err(word.error(format!("found '{key}=', allowed are task=, de="))),
        }
    }
    let task = thread.ok_or_else(|| words.error("a vcpu needs task=, its thread"))?;
    scenario.vcpus.push(VcpuDeclaration { task, debug_extensions });
    Ok(())
}
