//! What the plain form costs in instructions, beside the same transitions written by hand.
//!
//! `callgrind FORM TRANSITION N CALLS` performs one transition that many times, each time on another bank in the same
//! state, and prints a digest of every result and every bank, which must not depend on the form. N slots are held
//! before; for `uninstall` all are, and the owner of slot N leaves (4: somebody who holds none). The instructions are
//! counted from outside, in the function `ours_*` or `hand_*`: see `tests/test_callgrind.py`.

use std::env;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::hint::black_box;
use std::process::ExitCode;

use debugreg::{Bank, Breakpoint, Dr6, Dr7, Kind, Length, Owner, Registers, Slot, bank};

/// The transitions as functions of their own, reached through pointers: neither form can be inlined into the driver
/// or be specialised for what the driver passes.
struct Form {
    is_active: fn(&mut Bank) -> bool,
    registers: fn(&mut Bank) -> Registers,
    refresh: fn(&mut Bank),
    install: fn(&mut Bank, Owner, Breakpoint) -> Option<Slot>,
    uninstall: fn(&mut Bank, Owner, Breakpoint) -> Option<Slot>,
}

const OURS: Form = Form {
    is_active: ours_is_active,
    registers: ours_registers,
    refresh: ours_refresh,
    install: ours_install,
    uninstall: ours_uninstall,
};

#[inline(never)]
fn ours_is_active(cpu: &mut Bank) -> bool {
    bank::is_active(cpu)
}

#[inline(never)]
fn ours_registers(cpu: &mut Bank) -> Registers {
    bank::registers(cpu)
}

#[inline(never)]
fn ours_refresh(cpu: &mut Bank) {
    bank::refresh(cpu);
}

#[inline(never)]
fn ours_install(cpu: &mut Bank, owner: Owner, bp: Breakpoint) -> Option<Slot> {
    bank::install(cpu, owner, bp)
}

#[inline(never)]
fn ours_uninstall(cpu: &mut Bank, owner: Owner, bp: Breakpoint) -> Option<Slot> {
    bank::uninstall(cpu, owner, bp)
}

const HAND: Form = Form {
    is_active: hand_is_active,
    registers: hand_registers,
    refresh: hand_refresh,
    install: hand_install,
    uninstall: hand_uninstall,
};

// By hand: on the same structure, with the same counters, in whatever order is shortest (the plain form has no NMIs).

#[inline(never)]
fn hand_is_active(cpu: &mut Bank) -> bool {
    cpu.control & 0xaa != 0
}

#[inline(never)]
fn hand_registers(cpu: &mut Bank) -> Registers {
    Registers { dr: cpu.address, dr6: 0xffff_0ff0, dr7: cpu.control | 0x400 }
}

#[inline(never)]
fn hand_refresh(cpu: &mut Bank) {
    cpu.hardware = Registers { dr: cpu.address, dr6: 0xffff_0ff0, dr7: cpu.control | 0x400 };
    cpu.cost.dr_writes += 6;
}

#[inline(never)]
fn hand_install(cpu: &mut Bank, owner: Owner, bp: Breakpoint) -> Option<Slot> {
    for i in 0..4 {
        if cpu.owner[i] == Owner::NONE {
            cpu.owner[i] = owner;
            cpu.hardware.dr[i] = bp.address;
            cpu.address[i] = bp.address;
            let field = (bp.length as u64) << 2 | bp.kind as u64;
            cpu.control |= field << (16 + 4 * i) | 2 << (2 * i) | 0x200;
            cpu.hardware.dr7 = cpu.control | 0x400;
            cpu.cost.dr_writes += 2;
            return Slot::new(i);
        }
    }
    None
}

#[inline(never)]
fn hand_uninstall(cpu: &mut Bank, owner: Owner, bp: Breakpoint) -> Option<Slot> {
    for i in 0..4 {
        if cpu.owner[i] == owner {
            cpu.owner[i] = Owner::NONE;
            let field = (bp.length as u64) << 2 | bp.kind as u64;
            cpu.control &= !(field << (16 + 4 * i) | 2 << (2 * i));
            cpu.hardware.dr7 = cpu.control | 0x400;
            cpu.cost.dr_writes += 1;
            return Slot::new(i);
        }
    }
    None
}

/// Numbers without a pattern (Knuth's MMIX generator, upper half).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 32
    }

    fn breakpoint(&mut self) -> Breakpoint {
        let bits = self.next();
        Breakpoint {
            address: self.next(),
            kind: Kind::from_bits_truncate(bits),
            length: Length::from_bits_truncate(bits >> 2),
        }
    }
}

fn owner(number: u32) -> Owner {
    Owner(100 + number)
}

/// A bank whose lowest `held` slots are held by owners 0, 1, ..., with whatever a guest left in the registers.
fn bank_with(held: u32, numbers: &mut Numbers) -> (Bank, [Breakpoint; 5]) {
    let breakpoints = [(); 5].map(|()| numbers.breakpoint());
    // GE sticks (linux-host 8.2): a bank that was in use before is not zero when it is empty.
    let mut cpu = Bank { control: Dr7::GE, ..Bank::RESET };
    for (number, bp) in (0..held).zip(breakpoints) {
        bank::install(&mut cpu, owner(number), bp).expect("at most four");
    }
    cpu.hardware.dr = [(); 4].map(|()| numbers.next());
    cpu.hardware.dr6 = Dr6::from_bits_truncate(numbers.next()).0;
    cpu.hardware.dr7 = Dr7::from_bits_truncate(numbers.next()).0;
    (cpu, breakpoints)
}

/// `None` if there is no such transition.
fn perform(form: &Form, transition: &str, n: u32, calls: u32) -> Option<u64> {
    let mut digest = DefaultHasher::new();
    let mut numbers = Numbers(1);
    for _ in 0..calls {
        let (mut cpu, breakpoints) = bank_with(if transition == "uninstall" { 4 } else { n }, &mut numbers);
        let (owner, bp) = (owner(n), breakpoints[n as usize]);
        let on = black_box(&mut cpu);
        match transition {
            "is_active" => (form.is_active)(on).hash(&mut digest),
            "registers" => (form.registers)(on).hash(&mut digest),
            "refresh" => (form.refresh)(on),
            "install" => (form.install)(on, owner, bp).hash(&mut digest),
            "uninstall" => (form.uninstall)(on, owner, bp).hash(&mut digest),
            _ => return None,
        }
        cpu.hash(&mut digest);
    }
    Some(digest.finish())
}

fn run(arguments: &[String]) -> Option<u64> {
    let [form, transition, n, calls] = arguments else { return None };
    let form = match form.as_str() {
        "ours" => OURS,
        "hand" => HAND,
        _ => return None,
    };
    let n = n.parse().ok().filter(|&n| n <= 4)?;
    perform(&black_box(form), transition, n, calls.parse().ok()?)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let Some(digest) = run(&arguments) {
        println!("{digest:016x}");
        ExitCode::SUCCESS
    } else {
        eprintln!("usage: callgrind ours|hand is_active|registers|refresh|install|uninstall N CALLS");
        ExitCode::from(2)
    }
}
