//! Random scenarios that reach the corners: full slots, mixed scopes, refused changes, a tracer's rollback, forks with
//! inherited counters, exits.

use std::fmt::Write as _;

use debugreg_model::scenario::{self, Session};
use debugreg_model::{Capabilities, CounterId, CpuId, Outcome, State, TASK_SIZE_MAX, TaskId};
use fastrand::Rng;

use crate::likeness::Likeness;
use crate::rehearse::{self, Overcommit};

pub(crate) mod guests;

/// Where breakpoints and accesses go: few addresses, so that they meet.
const ADDRESSES: [u64; 8] = [0x1000, 0x1000, 0x1000, 0x1004, 0x1008, 0x1001, 0x1002, 0x2000];

/// Addresses at the edges of what is allowed.
const EDGES: [u64; 8] = [
    0,
    0x7fff_ffff_eff8,
    0x7fff_ffff_efff,
    0x7fff_ffff_f000,
    0x8000_0000_0000,
    0xffff_ffff_8100_0000,
    0xffff_fe00_0000_0000,
    0xffff_ffff_ffff_fff8,
];

/// Where code is executed.
const CODE: [u64; 3] = [0x3000, 0x3001, 0x3008];

/// A scenario, determined by its seed; every line expects what the model says.
pub fn generate(seed: u64) -> String {
    Generator::new(Rng::with_seed(seed)).run(seed)
}

struct Generator {
    rng: Rng,
    session: Session,
    head: String,
    text: String,
    cpus: u32,
    /// Tasks that have not failed to be made.
    tasks: Vec<(String, TaskId)>,
    counters: Vec<(String, CounterId)>,
    made: u32,
    /// What this scenario is about: how likely forks and tracers are.
    family: bool,
    traced: bool,
}

impl Generator {
    fn new(mut rng: Rng) -> Generator {
        let cpus = if rng.u8(..3) == 0 { 2 } else { 1 };
        let (family, traced) = (rng.u8(..5) < 2, rng.u8(..5) < 2);
        let count = rng.u32(if traced { 2..=3 } else { 1..=3 });
        let mut head = format!("machine cpus={cpus}\n");
        let mut tasks = Vec::new();
        for (at, name) in (1..).zip(["a", "b", "c"]).take(count as usize) {
            let caps = ["", "", "", "", " caps=none", " caps=none", " caps=perfmon"][rng.usize(..7)];
            let _ = writeln!(head, "task {name} cpu={}{caps}", rng.u32(..cpus));
            tasks.push((name.to_owned(), TaskId(at)));
        }
        // A file has an event.
        let parsed = scenario::parse(&format!("{head}cpu0 slots\n")).expect("declarations");
        let session = rehearse::session(&parsed, Likeness::running().policy);
        Generator {
            rng,
            session,
            head,
            text: String::new(),
            cpus,
            tasks,
            counters: Vec::new(),
            made: 0,
            family,
            traced,
        }
    }

    fn run(mut self, seed: u64) -> String {
        let wanted = self.rng.usize(6..40);
        let mut lines = 0;
        if self.traced {
            let (tracer, tracee) = if self.rng.bool() { ("a", "b") } else { ("b", "a") };
            self.perform(&format!("{tracer} attach {tracee}"));
        }
        for _ in 0..wanted * 6 {
            if lines >= wanted {
                break;
            }
            let event = self.event();
            match self.perform(&event) {
                Some(true) => lines += 1,
                Some(false) => {}
                // One more would over-commit the registers.
                None => break,
            }
        }
        for (name, _) in self.counters.clone() {
            self.perform(&format!("{name} count"));
        }
        for (name, id) in self.tasks.clone() {
            let tracer = self.session.machine.task(id).tracer;
            if let Some((tracer, _)) = self.tasks.iter().find(|(_, id)| Some(*id) == tracer).cloned() {
                for dr in [0, 1, 2, 3, 6, 7] {
                    self.perform(&format!("{tracer} ptrace_peek {name} DR{dr}"));
                }
            }
        }
        format!("# Random scenario of seed {seed}.\n{}{}", self.head, self.text)
    }

    /// Performs a line in the model if it can be; `None` if it would over-commit the registers.
    fn perform(&mut self, event: &str) -> Option<bool> {
        let mut trial = self.session.clone();
        let Ok(line) = trial.parse(event) else { return Some(false) };
        let mut probe = Overcommit::default();
        let Ok(Some(outcome)) = trial.perform(&line.event, &mut probe) else { return Some(false) };
        if probe.end() {
            return None;
        }
        if let Outcome::Bound(id) = outcome {
            self.made += 1;
            let name = format!("E{}", self.made);
            trial.name_counter(&name, id).expect("a new name");
            self.counters.push((name, id));
        }
        if let Some(child) = event.split_once(" fork ").map(|(_, child)| child)
            && let debugreg_model::Event::Fork { child: id, .. } = line.event
        {
            self.made += 1;
            if outcome == Outcome::Ok {
                self.tasks.push((child.to_owned(), id));
            }
        }
        self.text += event;
        if let Some(expectation) = rehearse::expectation(&line.event, &outcome, &trial) {
            self.text += " => ";
            self.text += &expectation;
        }
        self.text.push('\n');
        self.session = trial;
        let machine = &self.session.machine;
        self.counters.retain(|(_, id)| machine.counter(*id).state != State::Dead);
        Some(true)
    }

    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.rng.usize(..of.len())]
    }

    fn one_of(&mut self, of: &[u64]) -> u64 {
        of[self.rng.usize(..of.len())]
    }

    fn often(&mut self, percent: u8) -> bool {
        self.rng.u8(..100) < percent
    }

    fn task(&mut self) -> String {
        let alive: Vec<_> = self
            .tasks
            .iter()
            .filter(|(_, id)| self.session.machine.task(*id).is_alive())
            .map(|(name, _)| name)
            .collect();
        match alive.len() {
            0 => "a".to_owned(),
            count => alive[self.rng.usize(..count)].clone(),
        }
    }

    fn running(&mut self) -> String {
        let machine = &self.session.machine;
        let running: Vec<_> =
            self.tasks.iter().filter(|(_, id)| machine.task(*id).is_alive() && machine.is_running(*id)).collect();
        match running.len() {
            0 => self.task(),
            count => running[self.rng.usize(..count)].0.clone(),
        }
    }

    fn counter(&mut self) -> Option<String> {
        let count = self.counters.len();
        (count > 0).then(|| self.counters[self.rng.usize(..count)].0.clone())
    }

    fn cpu(&mut self) -> CpuId {
        CpuId(self.rng.u32(..self.cpus))
    }

    fn address(&mut self) -> u64 {
        if self.often(6) { EDGES[self.rng.usize(..EDGES.len())] } else { ADDRESSES[self.rng.usize(..ADDRESSES.len())] }
    }

    fn event(&mut self) -> String {
        let (family, traced) = (u32::from(self.family), u32::from(self.traced));
        let weights: [u32; 16] = [
            24,
            22,
            12,
            1 + 7 * family,
            1 + 3 * family,
            1 + traced,
            3 * (self.cpus - 1),
            7,
            8,
            8,
            3,
            1 + 5 * traced,
            2 * traced,
            14 * traced,
            5 * traced,
            4,
        ];
        let mut at = self.rng.u32(..weights.iter().sum::<u32>());
        let kind = weights.iter().position(|&weight| {
            let here = at < weight;
            at = at.wrapping_sub(weight);
            here
        });
        self.event_of(kind.expect("below the sum")).unwrap_or_default()
    }

    fn event_of(&mut self, kind: usize) -> Option<String> {
        Some(match kind {
            0 => self.open(),
            1 => self.access(),
            2 => {
                let cpu = self.cpu();
                let next = if self.often(25) { "idle".to_owned() } else { self.task() };
                format!("cpu{} sched_switch {next}", cpu.0)
            }
            3 if self.tasks.len() < 7 => format!("{} fork k{}", self.running(), self.made),
            4 => format!("{} exit", self.running()),
            5 => format!("{} exec", self.running()),
            6 => format!("{} migrate cpu{}", self.task(), self.cpu().0),
            7 => format!("{} close", self.counter()?),
            8 => format!("{} {}", self.counter()?, self.one(&["enable", "disable"])),
            9 => self.modify()?,
            10 => format!("{} count", self.counter()?),
            11 => format!("{} attach {}", self.task(), self.task()),
            12 => self.traced("detach"),
            13 => self.poke(),
            14 => {
                let dr = self.one(&["DR0", "DR1", "DR2", "DR3", "DR4", "DR6", "DR7"]);
                format!("{} {dr}", self.traced("ptrace_peek"))
            }
            15 => format!("cpu{} slots", self.cpu().0),
            _ => return None,
        })
    }

    /// What a tracer does to its tracee, or now and then somebody to anybody.
    fn traced(&mut self, event: &str) -> String {
        let machine = &self.session.machine;
        let pairs = self.tasks.iter().filter_map(|(name, id)| {
            let tracer = machine.task(*id).tracer?;
            let (tracer, _) = self.tasks.iter().find(|(_, id)| *id == tracer)?;
            Some((tracer.clone(), name.clone()))
        });
        let pairs: Vec<_> = pairs.collect();
        if pairs.is_empty() || self.often(4) {
            return format!("{} {event} {}", self.task(), self.task());
        }
        let (tracer, tracee) = &pairs[self.rng.usize(..pairs.len())];
        format!("{tracer} {event} {tracee}")
    }

    fn open(&mut self) -> String {
        let by = self.task();
        let unprivileged = self
            .tasks
            .iter()
            .any(|(name, id)| *name == by && self.session.machine.task(*id).capabilities == Capabilities::None);
        let bp_type = self.one(&["w", "w", "w", "w", "w", "w", "rw", "rw", "rw", "x", "x", "r"]);
        let mut address = self.address();
        let mut length = [8, 8, 8, 4, 4, 2, 1, 1][self.rng.usize(..8)];
        if bp_type == "x" {
            length = if self.often(90) { 8 } else { 1 };
            address = CODE[self.rng.usize(..CODE.len())];
        } else if address == 0x1001 || address == 0x1002 {
            length = if self.often(60) { 1 } else { 2 };
        } else if address == 0x1004 {
            length = [4, 4, 2, 1, 8][self.rng.usize(..5)];
        }
        if self.often(4) {
            length = [0, 3, 16, 32, 5][self.rng.usize(..5)];
        }
        // Watching what the kernel reads of itself would be hit by anybody.
        let bp_type = if address >= TASK_SIZE_MAX { "w" } else { bp_type };
        let mut line = format!("{by} perf_event_open bp_type={bp_type} bp_addr={address:#x} bp_len={length}");
        let on = match self.rng.u8(..100) {
            0..40 => String::new(),
            40..65 => format!(" on={}", self.any_task()),
            65..85 => format!(" on=cpu{}", self.cpu().0),
            _ => format!(" on={}@cpu{}", self.task(), self.cpu().0),
        };
        line += &on;
        let inherit = if self.family { 60 } else { 10 };
        for (flag, percent) in [
            ("pinned", 30),
            ("disabled", 15),
            ("inherit", inherit),
            ("exclude_user", 6),
            ("exclude_kernel", if unprivileged { 85 } else { 12 }),
            ("sigtrap", 6),
            ("remove_on_exec", 4),
        ] {
            if self.often(percent) {
                line.push(' ');
                line += flag;
            }
        }
        if self.often(15)
            && let Some(leader) = self.counter()
        {
            let _ = write!(line, " group={leader}");
        }
        line
    }

    /// Dead ones included, now and then.
    fn any_task(&mut self) -> String {
        if self.often(92) { self.task() } else { self.tasks[self.rng.usize(..self.tasks.len())].0.clone() }
    }

    fn access(&mut self) -> String {
        let task = self.running();
        if self.often(12) {
            let insn = if self.often(20) { self.one(&[" insn=popf_tf", " insn=icebp"]) } else { "" };
            // What is stepped stands behind a POPF, where no breakpoint is ever.
            let code = if insn == " insn=popf_tf" { &CODE[2..] } else { &CODE };
            return format!("{task} execute {:#x}{insn}", code[self.rng.usize(..code.len())]);
        }
        let event = self.one(&["store", "store", "store", "load"]);
        let address = ADDRESSES[self.rng.usize(..ADDRESSES.len())];
        if self.often(15) {
            return match self.rng.u8(..5) {
                0 => format!("{task} {event} {address:#x} {} insn=xchg", self.one(&["1", "2", "4", "8"])),
                1 => format!("{task} {event} {address:#x} {} insn=cmpxchg", self.one(&["1", "2", "4", "8"])),
                2 => {
                    let (length, count) = (self.one(&["1", "2", "4", "8"]), self.rng.u8(..20));
                    format!("{task} {event} {address:#x} {length} insn=rep:{count}")
                }
                3 => format!("{task} load {address:#x} 2 insn=movss"),
                _ => format!("{task} {event} {address:#x} 8 insn=popf_tf"),
            };
        }
        let length = [1, 2, 4, 8, 8, 8, 8, 16, 32][self.rng.usize(..9)];
        let mode = if self.often(12) { " mode=kernel" } else { "" };
        format!("{task} {event} {address:#x} {length}{mode}")
    }

    fn modify(&mut self) -> Option<String> {
        let count = self.counters.len();
        let (name, id) = (count > 0).then(|| self.counters[self.rng.usize(..count)].clone())?;
        let attr = self.session.machine.counter(id).attr;
        let mut line = format!("{name} modify");
        let address = if self.often(60) { self.address() } else { attr.bp_addr };
        if address != attr.bp_addr {
            let _ = write!(line, " bp_addr={address:#x}");
        }
        if self.often(40) {
            let _ = write!(line, " bp_len={}", [8, 8, 4, 1, 3, 16][self.rng.usize(..6)]);
        }
        let mut bp_type = attr.bp_type.name();
        if self.often(30) {
            bp_type = self.one(&["w", "w", "rw", "rw", "x", "r"]);
            let _ = write!(line, " bp_type={bp_type}");
        }
        // Whether the kernel's code may be watched depends on how it was configured (CONFIG_KPROBES), and its own reads
        // would be hit by anybody.
        if address >= TASK_SIZE_MAX && bp_type != "w" {
            return None;
        }
        if self.often(20) {
            let _ = write!(line, " disabled={}", self.one(&["0", "1"]));
        }
        if self.often(5) {
            let field = self.one(&["pinned", "exclude_user", "exclude_kernel"]);
            let _ = write!(line, " {field}={}", self.one(&["0", "1"]));
        }
        Some(line)
    }

    fn poke(&mut self) -> String {
        let line = self.traced("ptrace_poke");
        match self.rng.u8(..10) {
            0..5 => {
                let address = match self.rng.u8(..20) {
                    0..3 => CODE[self.rng.usize(..CODE.len())],
                    3..9 => 0x1000,
                    _ => self.address(),
                };
                format!("{line} DR{} {address:#x}", self.rng.u8(..4))
            }
            5 => {
                let value = self.one(&["0", "0xffff0ff0", "0xffff4ff1", "0xffffffffffffffff"]);
                format!("{line} DR{} {value}", self.one(&["6", "6", "6", "4"]))
            }
            _ => {
                let mut dr7 = 0u64;
                for slot in 0..4 {
                    if self.often(45) {
                        dr7 |= u64::from(self.rng.u8(1..4)) << (2 * slot);
                        let nibble = [1, 1, 1, 1, 3, 3, 0xd, 0xd, 9, 0xf, 5, 0, 0, 2, 4][self.rng.usize(..15)];
                        dr7 |= nibble << (16 + 4 * slot);
                    }
                }
                if self.often(10) {
                    dr7 |= 0xffff_ffff_0000_fc00 & self.rng.u64(..);
                }
                format!("{line} DR7 {dr7:#x}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_one_scenario_and_the_model_agrees_with_it() {
        for seed in 0..200 {
            let text = generate(seed);
            assert_eq!(text, generate(seed));
            let parsed = scenario::parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
            let report = Likeness::running().run(&parsed);
            let report = report.unwrap_or_else(|error| panic!("{error}\n{text}"));
            let failed = report.steps.iter().find(|step| step.ok == Some(false));
            assert!(failed.is_none(), "{failed:?}\n{text}");
        }
    }
}
