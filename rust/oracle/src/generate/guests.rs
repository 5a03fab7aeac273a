//! Random scenarios of guests, with counters of their VMM and of the CPU beside them.

use std::fmt::Write as _;

use fastrand::Rng;

use super::{ADDRESSES, CODE, Generator};
use debugreg_model::{TaskId, VcpuId, scenario};

use crate::{Likeness, rehearse};

/// What a guest writes to DR6.
const DR6: [&str; 8] =
    ["0xffff0ff0", "0xffff0ff0", "0", "0xffff4ff0", "0xffff4ff1", "0xffffffff", "0xffffefff", "0x100000000"];

/// What its VMM sets there: what the register can hold, as a rule.
const STORED_DR6: [&str; 5] = ["0xffff0ff0", "0xffff2ff4", "0xffff4ff1", "0xffffefff", "0x100000000"];

/// Where a guest watches, besides where something is touched.
const ELSEWHERE: [u64; 4] = [0, 0x1003, 0x8000_0000_0000, 0xffff_ffff_ffff_ffff];

/// Kinds and lengths of a slot, as in DR7: writes, accesses and executions, now and then a port.
const NIBBLES: [u64; 12] = [1, 1, 5, 0xd, 0xd, 9, 3, 0xf, 0, 0, 0, 2];

/// A scenario with guests, determined by its seed; every line expects what the model says.
pub fn generate_guests(seed: u64) -> String {
    let mut guests = Guests::new(Rng::with_seed(!seed));
    let wanted = guests.host.rng.usize(8..50);
    let mut lines = 0;
    for _ in 0..wanted * 6 {
        if lines >= wanted {
            break;
        }
        let event = guests.event();
        match guests.host.perform(&event) {
            Some(true) => lines += 1,
            Some(false) => {}
            // One more would over-commit the registers.
            None => break,
        }
    }
    guests.look();
    let host = guests.host;
    format!("# Random scenario with guests, of seed {seed}.\n{}{}", host.head, host.text)
}

struct Guests {
    host: Generator,
    vcpus: Vec<String>,
    /// Whether somebody debugs the guests now and then.
    debugged: bool,
}

impl Guests {
    fn new(mut rng: Rng) -> Guests {
        let cpus = if rng.u8(..4) == 0 { 2 } else { 1 };
        let (tasks, vcpus) = (rng.u32(1..=3), if rng.u8(..3) == 0 { 2 } else { 1 });
        let mut head = format!("machine cpus={cpus}\n");
        let mut names = Vec::new();
        for (at, name) in (1..).zip(["a", "b", "c"]).take(tasks as usize) {
            let _ = writeln!(head, "task {name} cpu={}", rng.u32(..cpus));
            names.push((name.to_owned(), TaskId(at)));
        }
        let mut guests = Vec::new();
        for vcpu in 0..vcpus {
            let (task, _) = &names[rng.usize(..names.len())];
            let extensions = if rng.u8(..6) == 0 { " de=1" } else { "" };
            let _ = writeln!(head, "vcpu v{vcpu} task={task}{extensions}");
            guests.push(format!("v{vcpu}"));
        }
        let parsed = scenario::parse(&format!("{head}cpu0 slots\n")).expect("declarations");
        let debugged = rng.u8(..5) < 2;
        let host = Generator {
            rng,
            session: rehearse::session(&parsed, Likeness::running().policy),
            head,
            text: String::new(),
            cpus,
            tasks: names,
            counters: Vec::new(),
            made: 0,
            family: false,
            traced: false,
        };
        Guests { host, vcpus: guests, debugged }
    }

    /// At the end: what the counters have counted, and what the guests' registers hold.
    fn look(&mut self) {
        for (name, _) in self.host.counters.clone() {
            self.host.perform(&format!("{name} count"));
        }
        for vcpu in self.vcpus.clone() {
            // One of a guest that runs.
            self.host.perform(&format!("{vcpu} vm_exit"));
            self.host.perform(&format!("{vcpu} get_debugregs"));
        }
    }

    fn event(&mut self) -> String {
        let at = self.host.rng.usize(..self.vcpus.len());
        let vcpu = VcpuId::from(at);
        let name = self.vcpus[at].clone();
        let machine = &self.host.session.machine;
        let runs = machine.guest_runs(vcpu);
        let task = machine.thread(vcpu);
        let (is_running, cpu) = (machine.is_running(task), machine.task(task).cpu);
        let host = if runs { 12 } else { 40 };
        if self.host.often(host) {
            return self.of_the_host();
        }
        if runs {
            return self.in_guest(&name);
        }
        if !is_running && self.host.often(50) {
            let (task, _) = self.host.tasks.iter().find(|(_, id)| *id == task).expect("a vCPU has a task");
            return format!("cpu{} sched_switch {task}", cpu.0);
        }
        self.outside(&name)
    }

    fn of_the_host(&mut self) -> String {
        const KINDS: [usize; 12] = [0, 0, 0, 1, 1, 1, 2, 7, 8, 9, 10, 15];
        let kind = KINDS[self.host.rng.usize(..KINDS.len())];
        self.host.event_of(kind).unwrap_or_default()
    }

    fn outside(&mut self, vcpu: &str) -> String {
        match self.host.rng.u8(..20) {
            0..12 => format!("{vcpu} vm_entry"),
            12..14 => format!("{vcpu} get_debugregs"),
            14..16 => self.set_debugregs(vcpu),
            16 if !self.debugged || self.host.often(30) => format!("{vcpu} init"),
            _ if self.debugged => self.set_guest_debug(vcpu),
            _ => format!("{vcpu} vm_entry"),
        }
    }

    fn in_guest(&mut self, vcpu: &str) -> String {
        match self.host.rng.u8(..20) {
            0..5 => self.mov_to_dr(vcpu),
            5..9 => {
                let number = self.host.one(&["0", "1", "2", "3", "6", "6", "7", "7", "4", "5", "8"]);
                // Whether a register that does not exist or the privilege counts first, no manual says.
                let ring = if number == "8" { String::new() } else { self.ring() };
                format!("{vcpu} mov_from_dr {number}{ring}")
            }
            9..13 => {
                let what = self.host.one(&["store", "store", "load"]);
                let address = ADDRESSES[self.host.rng.usize(..ADDRESSES.len())];
                let length = [1, 2, 4, 8, 8, 16][self.host.rng.usize(..6)];
                let emulated = if self.host.often(15) { " emulated" } else { "" };
                format!("{vcpu} {what} {address:#x} {length}{emulated}")
            }
            13 => self.instruction(vcpu),
            14..17 => {
                let address = CODE[self.host.rng.usize(..CODE.len())];
                format!("{vcpu} execute {address:#x}")
            }
            17 if self.host.often(40) => {
                format!("{vcpu} io {:#x} {}", self.host.one_of(&[0x30, 0x80, 0x1000]), self.host.one(&["1", "2", "4"]))
            }
            _ => {
                let reason = self.host.one(&["io", "io", "io", "hlt", "intr", "intr", "nmi", "dr", "fastpath"]);
                format!("{vcpu} vm_exit reason={reason}")
            }
        }
    }

    fn instruction(&mut self, vcpu: &str) -> String {
        let address = ADDRESSES[self.host.rng.usize(..ADDRESSES.len())];
        let (what, length) = (self.host.one(&["store", "load"]), self.host.one(&["1", "2", "4", "8"]));
        match self.host.rng.u8(..9) {
            0 => format!("{vcpu} {what} {address:#x} {length} insn=xchg"),
            1 => format!("{vcpu} {what} {address:#x} {length} insn=cmpxchg"),
            2 => format!("{vcpu} {what} {address:#x} {length} insn=rep:{}", self.host.rng.u8(..20)),
            3 => format!("{vcpu} load {address:#x} 2 insn=movss"),
            4 => format!("{vcpu} {what} {address:#x} {length} insn=popf_tf"),
            // What is stepped stands behind a POPF, where no breakpoint is ever.
            5 | 6 => format!("{vcpu} execute {:#x} insn=popf_tf", CODE[2]),
            7 => format!("{vcpu} execute {:#x} insn=iret_rf", CODE[self.host.rng.usize(..2)]),
            _ => format!("{vcpu} execute {:#x} insn=icebp", CODE[2]),
        }
    }

    fn ring(&mut self) -> String {
        if self.host.often(8) { format!(" cpl={}", self.host.rng.u8(1..4)) } else { String::new() }
    }

    fn mov_to_dr(&mut self, vcpu: &str) -> String {
        let ring = self.ring();
        match self.host.rng.u8(..20) {
            0..8 => format!("{vcpu} mov_to_dr {} {:#x}{ring}", self.host.rng.u8(..4), self.address()),
            8..15 => format!("{vcpu} mov_to_dr 7 {:#x}{ring}", self.dr7(true)),
            15..18 => format!("{vcpu} mov_to_dr 6 {}{ring}", self.host.one(&DR6)),
            18 => format!("{vcpu} mov_to_dr 4 {}{ring}", self.host.one(&DR6)),
            _ => format!("{vcpu} mov_to_dr {} {:#x}", self.host.one(&["5", "9", "15"]), self.dr7(true)),
        }
    }

    fn address(&mut self) -> u64 {
        match self.host.rng.u8(..10) {
            0..4 => CODE[self.host.rng.usize(..CODE.len())],
            4 => self.host.one_of(&ELSEWHERE),
            _ => ADDRESSES[self.host.rng.usize(..ADDRESSES.len())],
        }
    }

    /// Sensible values as a rule; GD and reserved bits now and then, and bits that are refused if there may be some.
    fn dr7(&mut self, upper: bool) -> u64 {
        let mut dr7 = 0x400;
        for slot in 0..4 {
            if self.host.often(45) {
                dr7 |= u64::from(self.host.rng.u8(1..4)) << (2 * slot);
            }
            dr7 |= self.host.one_of(&NIBBLES) << (16 + 4 * slot);
        }
        if self.host.often(8) {
            dr7 |= 1 << 13;
        }
        if self.host.often(10) {
            dr7 ^= self.host.rng.u64(..) & 0xdf00;
        }
        if upper && self.host.often(4) {
            dr7 |= 1 << self.host.rng.u8(32..64);
        }
        dr7
    }

    fn set_debugregs(&mut self, vcpu: &str) -> String {
        let mut line = format!("{vcpu} set_debugregs");
        for slot in 0..4 {
            if self.host.often(35) {
                let address = self.address();
                let _ = write!(line, " dr{slot}={address:#x}");
            }
        }
        if self.host.often(40) {
            let _ = write!(line, " dr6={}", self.host.one(&STORED_DR6));
        }
        if self.host.often(60) {
            let dr7 = self.dr7(true);
            let _ = write!(line, " dr7={dr7:#x}");
        }
        line
    }

    fn set_guest_debug(&mut self, vcpu: &str) -> String {
        let mut line = format!("{vcpu} set_guest_debug");
        match self.host.rng.u8(..20) {
            0..6 => return line,
            6..14 => line += " enable hw",
            14..16 => line += " enable sw",
            16 => line += " enable",
            17 => line += self.host.one(&[" hw", " enable step", " enable hw step"]),
            _ => return line + self.host.one(&[" inject_db", " enable inject_db", " inject_bp"]),
        }
        for slot in 0..4 {
            if self.host.often(50) {
                let address = self.address();
                let _ = write!(line, " dr{slot}={address:#x}");
            }
        }
        let _ = write!(line, " dr7={:#x}", self.dr7(false));
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use debugreg_model::scenario;

    #[test]
    fn a_seed_gives_one_scenario_and_the_model_agrees_with_it() {
        for seed in 0..200 {
            let text = generate_guests(seed);
            assert_eq!(text, generate_guests(seed));
            let parsed = scenario::parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
            let report = Likeness::running().run(&parsed);
            let report = report.unwrap_or_else(|error| panic!("{error}\n{text}"));
            let failed = report.steps.iter().find(|step| step.ok == Some(false));
            assert!(failed.is_none(), "{failed:?}\n{text}");
        }
    }

    #[test]
    fn every_event_and_outcome_of_a_guest_comes_up() {
        let text: String = (0..300).map(generate_guests).collect();
        for event in [
            "vm_entry",
            "reason=io",
            "reason=hlt",
            "reason=intr",
            "mov_to_dr 0",
            "mov_to_dr 6",
            "mov_to_dr 7",
            "cpl=3",
            "mov_from_dr 6",
            "store",
            "load",
            "execute",
            "emulated",
            "io 0x30",
            "set_guest_debug enable hw",
            "set_guest_debug enable sw",
            "inject_db",
            "get_debugregs",
            "set_debugregs",
            "init",
            "perf_event_open",
            "sched_switch",
            "on=cpu0",
        ] {
            assert!(text.contains(event), "{event}");
        }
        for outcome in [
            "=> #DB dr6=0xffff2ff0 fault",
            "=> #DB dr6=0xffff0ff1",
            "=> #GP",
            "=> #UD",
            "=> exit debug",
            "=> EINVAL",
            "=> EBUSY",
            "=> hit",
        ] {
            assert!(text.contains(outcome), "{outcome}");
        }
    }
}
