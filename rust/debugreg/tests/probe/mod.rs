//! Every step of a transition, seen from outside.

use debugreg::{Bank, Dr, Steps, Word};

#[derive(Copy, Clone, PartialEq, Debug)]
pub(crate) enum Step {
    Load(Word),
    Store(Word, u64),
    Or(Word, u64),
    CompareExchange(Word, u64, u64),
    WriteDr(Dr, u64),
    ReadDr(Dr),
}

/// Runs `before` ahead of every step, where an NMI can strike: with the bank as it is then.
pub(crate) struct Probe<'a> {
    pub(crate) cpu: &'a mut Bank,
    pub(crate) before: &'a mut dyn FnMut(&mut Bank, Step),
}

impl Probe<'_> {
    fn at(&mut self, step: Step) -> &mut Bank {
        (self.before)(self.cpu, step);
        self.cpu
    }
}

impl Steps for Probe<'_> {
    fn load(&mut self, word: Word) -> u64 {
        self.at(Step::Load(word)).load(word)
    }

    fn store(&mut self, word: Word, value: u64) {
        self.at(Step::Store(word, value)).store(word, value);
    }

    fn or(&mut self, word: Word, bits: u64) {
        self.at(Step::Or(word, bits)).or(word, bits);
    }

    fn compare_exchange(&mut self, word: Word, old: u64, new: u64) -> bool {
        self.at(Step::CompareExchange(word, old, new)).compare_exchange(word, old, new)
    }

    fn write_dr(&mut self, dr: Dr, value: u64) {
        self.at(Step::WriteDr(dr, value)).write_dr(dr, value);
    }

    fn read_dr(&mut self, dr: Dr) -> u64 {
        self.at(Step::ReadDr(dr)).read_dr(dr)
    }
}
