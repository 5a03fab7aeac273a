//! The skip test natively, beside a hand-written one: prints `{"ours_ns": ..., "hand_ns": ..., "ratio": ...}`.
//!
//! Each answer decides which bank is asked next, so that a round is a chain of loads and tests. Independent tests
//! would run one per cycle, and then where the linker puts the loop matters more than what is in it: two loops of
//! the same instructions differed by 12 percent. Rounds alternate, and the fastest of each side counts: whatever
//! else the machine does only adds.

use std::array;
use std::hint::black_box;
use std::time::Instant;

use debugreg::{Bank, Breakpoint, Dr7, Kind, Length, Owner, bank};

/// Few enough to stay in the first-level cache.
const BANKS: usize = 64;
const TESTS: u32 = 4_000;
const ROUNDS: u32 = 10_000;

/// About half of them active.
fn banks() -> [Bank; BANKS] {
    let bp = Breakpoint { address: 0x1000, kind: Kind::Write, length: Length::Eight };
    array::from_fn(|n| {
        let mut cpu = Bank { control: Dr7::GE, ..Bank::RESET };
        if (n * n / 3 + n).is_multiple_of(2) {
            bank::install(&mut cpu, Owner(1), bp).expect("an empty bank");
        }
        cpu
    })
}

/// Nanoseconds per test, and where the chain ended.
#[inline(never)]
fn measure(banks: &mut [Bank; BANKS], test: impl Fn(&mut Bank) -> bool) -> (f64, usize) {
    let banks = black_box(banks);
    let start = Instant::now();
    let mut at = 0;
    for _ in 0..TESTS {
        at = (at + 1 + usize::from(test(&mut banks[at]))) % BANKS;
    }
    let at = black_box(at);
    (start.elapsed().as_secs_f64() * 1e9 / f64::from(TESTS), at)
}

fn main() {
    let mut banks = banks();
    let (mut ours, mut hand) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..ROUNDS {
        let (ours_now, end) = measure(&mut banks, bank::is_active);
        let (hand_now, same) = measure(&mut banks, |cpu| cpu.control & 0xaa != 0);
        assert_eq!(end, same, "the same answers all the way");
        (ours, hand) = (ours.min(ours_now), hand.min(hand_now));
    }
    println!("{{\"ours_ns\": {ours:.4}, \"hand_ns\": {hand:.4}, \"ratio\": {:.4}}}", ours / hand);
}
