//! Announcements from NMIs, exhaustively: two NMIs before any two steps of everything that writes the registers, each of
//! them setting or removing kgdb's breakpoint.
//!
//! `kgdb-untouched`: when the interrupted code has finished, an announced slot holds what kgdb set there, in the register,
//! in DR7 and in the shadow; nobody else lost what is his. A handler runs with nothing armed.

mod probe;

use debugreg::{Bank, Breakpoint, Dr, Dr7, Kind, Length, Owner, Registers, Slot, Steps, Word, announce, bank};

use crate::probe::Probe;

const A: Breakpoint = Breakpoint { address: 0x1000, kind: Kind::Write, length: Length::Eight };
const B: Breakpoint = Breakpoint { address: 0x2000, kind: Kind::ReadWrite, length: Length::Four };
/// kgdb's: another kind and length than anybody else's, so that bits that are mixed show.
const K: Breakpoint = Breakpoint { address: 0x3000, kind: Kind::Execute, length: Length::One };
const GUEST: Registers = Registers { dr: [0x20000, 0x21000, 0x22000, 0x23000], dr6: 0xffff_0ff0, dr7: 0x9999_0455 };

/// What is interrupted.
#[derive(Copy, Clone, PartialEq, Debug)]
enum Transition {
    Install,
    Uninstall,
    Refresh,
    /// A #DB handler in the kernel.
    Handler,
    /// VM entry, a guest, VM exit, as Linux does them.
    Guest,
}

const ALL: [Transition; 5] =
    [Transition::Install, Transition::Uninstall, Transition::Refresh, Transition::Handler, Transition::Guest];

impl Transition {
    fn perform(self, cpu: &mut Probe<'_>) {
        match self {
            Transition::Install => _ = announce::install(cpu, Owner(2), B),
            Transition::Uninstall => _ = announce::uninstall(cpu, Owner(1), A),
            Transition::Refresh => announce::refresh(cpu),
            Transition::Handler => {
                let loan = announce::lend(cpu);
                let saved = bank::local_db_save(cpu, false);
                for slot in Slot::ALL {
                    let _ = cpu.load(Word::Owner(slot));
                    assert_eq!(cpu.cpu.hardware.armed().count(), 0, "a handler runs with nothing armed");
                }
                announce::take_back(cpu, loan, saved);
            }
            Transition::Guest => {
                let loan = announce::lend(cpu);
                cpu.write_dr(Dr::Control, Dr7::RESET.0);
                for slot in Slot::ALL {
                    cpu.write_dr(Dr::Address(slot), GUEST.dr[slot.index()]);
                }
                // The processor's part. An NMI here is an exit: it strikes before the first step of the way out.
                assert_eq!(cpu.cpu.hardware.dr, GUEST.dr, "a guest finds its own registers");
                assert_eq!(cpu.cpu.hardware.dr7, Dr7::RESET.0, "nothing of the host's is armed on the way in");
                if bank::is_active(cpu) {
                    bank::refresh(cpu);
                }
                announce::take_back_from_guest(cpu, loan);
            }
        }
    }
}

/// What kgdb has.
#[derive(Copy, Clone, Default)]
struct Kgdb(Option<Slot>);

impl Kgdb {
    /// An NMI: sets the breakpoint, or removes it if it is there.
    fn nmi(&mut self, cpu: &mut Bank, hypervisor: bool) {
        let loan = announce::lend(cpu);
        let saved = bank::local_db_save(cpu, hypervisor);
        let before = cpu.hardware.dr;
        if let Some(slot) = self.0.take() {
            announce::clear(cpu, slot, K);
        } else {
            self.0 = Slot::ALL.into_iter().find(|&slot| announce::reserve(cpu, slot));
            if let Some(slot) = self.0 {
                announce::set(cpu, slot, K);
            }
        }
        assert_eq!(cpu.hardware.armed().count(), 0, "an NMI handler runs with nothing armed");
        assert_eq!(cpu.hardware.dr, before, "what is lent is left alone");
        announce::take_back(cpu, loan, saved);
    }
}

/// A machine on which A is installed, and kgdb's breakpoint if `with` says so.
fn start(with: bool) -> (Bank, Kgdb) {
    let mut cpu = Bank::RESET;
    announce::install(&mut cpu, Owner(1), A);
    let mut kgdb = Kgdb::default();
    if with {
        kgdb.nmi(&mut cpu, false);
    }
    (cpu, kgdb)
}

/// Performs a transition, with NMIs before the steps of these numbers; how many steps there were.
fn run(transition: Transition, with: bool, hypervisor: bool, moments: &[usize]) -> usize {
    let (mut cpu, mut kgdb) = start(with);
    let mut step = 0;
    let mut before = |cpu: &mut Bank, _| {
        for _ in moments.iter().filter(|&&at| at == step) {
            kgdb.nmi(cpu, hypervisor);
        }
        step += 1;
    };
    transition.perform(&mut Probe { cpu: &mut cpu, before: &mut before });
    let expected_b = (transition == Transition::Install).then_some((Owner(2), B));
    let expected_a = (transition != Transition::Uninstall).then_some((Owner(1), A));
    let mut expected: Vec<_> = expected_a.into_iter().chain(expected_b).collect();
    expected.extend(kgdb.0.map(|_| (Owner::KGDB, K)));
    let mut found: Vec<_> = cpu.hardware.armed().map(|(slot, bp)| (cpu.owner[slot.index()], bp)).collect();
    let key = |&(owner, bp): &(Owner, Breakpoint)| (owner.0, bp.address);
    found.sort_by_key(key);
    expected.sort_by_key(key);
    let context = format!("{transition:?}, kgdb's {with}, NMIs before {moments:?}");
    assert_eq!(found, expected, "{context}");
    let owned = cpu.owner.iter().filter(|&&owner| owner != Owner::NONE).count();
    assert_eq!(owned, expected.len(), "{context}: a slot has an owner iff it is armed");
    assert_eq!(cpu.control | Dr7::FIXED, cpu.hardware.dr7, "{context}: the shadow is the register");
    assert_eq!(cpu.lent, 0, "{context}");
    if let Some(slot) = kgdb.0 {
        assert_eq!(cpu.address[slot.index()], K.address, "{context}");
    }
    step
}

#[test]
fn two_announcements_before_any_two_steps_are_kept() {
    for transition in ALL {
        for with in [false, true] {
            for hypervisor in [false, true] {
                let count = run(transition, with, hypervisor, &[]);
                assert!(count >= 5);
                // An NMI makes the interrupted code go round again: there are steps that only come after one.
                for first in 0..count {
                    let more = run(transition, with, hypervisor, &[first]);
                    for second in first..more {
                        run(transition, with, hypervisor, &[first, second]);
                    }
                }
            }
        }
    }
}

/// What the protocol is for: the same with Linux's own transitions, and an announcement that is one compare-and-swap.
#[test]
fn a_claim_alone_is_lost_in_an_install() {
    let mut lost = Vec::new();
    let count = {
        let mut cpu = Bank::RESET;
        let mut count = 0;
        let mut before = |_: &mut Bank, _| count += 1;
        bank::install(&mut Probe { cpu: &mut cpu, before: &mut before }, Owner(1), A);
        count
    };
    for at in 0..count {
        let (mut cpu, mut step, mut announced) = (Bank::RESET, 0, false);
        let mut before = |cpu: &mut Bank, _| {
            if step == at {
                announced = announce::reserve(cpu, Slot::ZERO);
            }
            step += 1;
        };
        bank::install(&mut Probe { cpu: &mut cpu, before: &mut before }, Owner(1), A);
        if announced && cpu.owner[0] != Owner::KGDB {
            lost.push(at);
        }
    }
    assert_eq!(lost, [1], "between the search that found slot 0 free and the store that takes it");
}

#[test]
fn four_owned_slots_are_four_refusals() {
    let mut cpu = Bank::RESET;
    for owner in 1..=4 {
        announce::install(&mut cpu, Owner(owner), A);
    }
    assert!(Slot::ALL.into_iter().all(|slot| !announce::reserve(&mut cpu, slot)), "nobody is moved");
}
