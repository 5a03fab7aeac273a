//! What has been found out once: what comes of an event depends on the parts of the machine that were looked at on the
//! way, and the next state with the same parts there is not asked again.

use std::hash::Hasher;

use hashbrown::HashTable;
use rustc_hash::FxHasher;

use crate::part::Footprint;

/// Rows of numbers, all of one width, each once and known by a number.
#[derive(Debug)]
pub(super) struct Rows {
    width: usize,
    numbers: Vec<u32>,
    index: HashTable<u32>,
}

impl Rows {
    pub(super) fn new(width: usize) -> Rows {
        Rows { width, numbers: Vec::new(), index: HashTable::new() }
    }

    /// The number of a row, and whether it is a new one.
    pub(super) fn number(&mut self, row: impl Iterator<Item = u32> + Clone) -> (u32, bool) {
        let Rows { width, numbers, index } = self;
        let of = |number: u32| &numbers[number as usize * *width..(number as usize + 1) * *width];
        let hash_of = hash(row.clone());
        if let Some(&number) = index.find(hash_of, |&number| row.clone().eq(of(number).iter().copied())) {
            return (number, false);
        }
        let number = index.len() as u32;
        index.insert_unique(hash_of, number, |&number| hash(of(number).iter().copied()));
        numbers.extend(row);
        (number, true)
    }

    pub(super) fn bytes(&self) -> usize {
        self.numbers.capacity() * 4 + self.index.allocation_size()
    }
}

/// The hash of a row of numbers.
pub(super) fn hash(row: impl Iterator<Item = u32>) -> u64 {
    let mut hasher = FxHasher::default();
    row.for_each(|number| hasher.write_u32(number));
    hasher.finish()
}

/// Results by rows of numbers.
#[derive(Debug)]
pub(super) struct Table<R> {
    rows: Rows,
    results: Vec<R>,
}

impl<R: Copy> Table<R> {
    pub(super) fn new(width: usize) -> Table<R> {
        Table { rows: Rows::new(width), results: Vec::new() }
    }

    /// The number of a row's result, if it is there.
    pub(super) fn number(&mut self, row: impl Iterator<Item = u32> + Clone) -> (usize, bool) {
        let (number, is_new) = self.rows.number(row);
        (number as usize, is_new)
    }

    pub(super) fn result(&self, number: usize) -> R {
        self.results[number]
    }

    /// The result of the row that was numbered last.
    pub(super) fn push(&mut self, result: R) {
        self.results.push(result);
    }

    pub(super) fn bytes(&self) -> usize {
        self.rows.bytes() + self.results.capacity() * size_of::<R>()
    }
}

/// The ways in which questions look at states: for each footprint, the different things that can be seen there.
#[derive(Debug, Default)]
pub(super) struct Views(Vec<(Footprint, Rows)>);

impl Views {
    fn of(&mut self, looked: Footprint) -> usize {
        self.0.iter().position(|&(other, _)| other == looked).unwrap_or_else(|| {
            self.0.push((looked, Rows::new(looked.iter().count())));
            self.0.len() - 1
        })
    }

    pub(super) fn bytes(&self) -> usize {
        self.0.iter().map(|(_, rows)| rows.bytes()).sum()
    }
}

/// A state, and what of it has been seen in which view.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) parts: Vec<u32>,
    numbers: Vec<u32>,
}

/// Not a number.
pub(super) const UNKNOWN: u32 = u32::MAX;

impl Seen {
    /// Another state.
    pub(super) fn clear(&mut self) {
        self.parts.clear();
        self.numbers.fill(UNKNOWN);
    }

    fn number(&mut self, view: usize, views: &mut Views) -> usize {
        if self.numbers.len() <= view {
            self.numbers.resize(view + 1, UNKNOWN);
        }
        if self.numbers[view] == UNKNOWN {
            let (looked, rows) = &mut views.0[view];
            self.numbers[view] = rows.number(looked.iter().map(|part| self.parts[part])).0;
        }
        self.numbers[view] as usize
    }
}

/// Results of one question, by what was looked at to answer it.
///
/// Which parts that were depends on the parts themselves, so that there are several views; but a state that agrees with
/// one that was asked about in all that was looked at has that answer, whichever view it is.
#[derive(Debug)]
pub(super) struct Known<R>(Vec<(usize, Vec<Option<R>>)>);

impl<R> Default for Known<R> {
    fn default() -> Known<R> {
        Known(Vec::new())
    }
}

impl<R: Copy> Known<R> {
    pub(super) fn get(&self, seen: &mut Seen, views: &mut Views) -> Option<R> {
        self.0.iter().find_map(|(view, results)| results.get(seen.number(*view, views)).copied().flatten())
    }

    pub(super) fn insert(&mut self, looked: Footprint, seen: &mut Seen, views: &mut Views, result: R) {
        let view = views.of(looked);
        let number = seen.number(view, views);
        let at = self.0.iter().position(|&(other, _)| other == view).unwrap_or_else(|| {
            self.0.push((view, Vec::new()));
            self.0.len() - 1
        });
        let results = &mut self.0[at].1;
        if results.len() <= number {
            results.resize(number + 1, None);
        }
        results[number] = Some(result);
    }

    pub(super) fn bytes(&self) -> usize {
        self.0.iter().map(|(_, results)| results.capacity() * size_of::<Option<R>>()).sum()
    }
}
