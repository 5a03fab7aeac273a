//! What has been found out once: what comes of an event depends on the parts of the machine that were looked at on the
//! way, and the next state with the same parts there is not asked again.

use std::hash::{BuildHasher, Hash, Hasher};

use hashbrown::HashTable;
use rustc_hash::{FxBuildHasher, FxHasher};

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

/// Lists, each once.
#[derive(Debug)]
pub(super) struct Lists<T> {
    all: Vec<T>,
    index: HashTable<Span>,
}

/// Some consecutive entries of [`Lists`].
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Span {
    first: u32,
    count: u16,
}

impl Span {
    pub(super) const fn is_empty(self) -> bool {
        self.count == 0
    }

    pub(super) fn range(self) -> std::ops::Range<usize> {
        self.first as usize..self.first as usize + usize::from(self.count)
    }
}

impl<T: Copy + Eq + Hash> Lists<T> {
    pub(super) fn new() -> Lists<T> {
        Lists { all: Vec::new(), index: HashTable::new() }
    }

    /// Where a list is.
    pub(super) fn span(&mut self, list: &[T]) -> Span {
        let Lists { all, index } = self;
        let hash_of = FxBuildHasher.hash_one(list);
        if let Some(&span) = index.find(hash_of, |span| all[span.range()] == *list) {
            return span;
        }
        let count = u16::try_from(list.len()).expect("a state has not so many moves");
        let span = Span { first: all.len() as u32, count };
        all.extend_from_slice(list);
        index.insert_unique(hash_of, span, |span| FxBuildHasher.hash_one(&all[span.range()]));
        span
    }

    #[inline]
    pub(super) fn at(&self, at: usize) -> T {
        self.all[at]
    }

    pub(super) fn of(&self, span: Span) -> &[T] {
        &self.all[span.range()]
    }

    pub(super) fn bytes(&self) -> usize {
        self.all.capacity() * size_of::<T>() + self.index.allocation_size()
    }
}

/// What was answered.
#[derive(Copy, Clone, Debug)]
pub(super) struct Answer {
    pub(super) span: Span,
    /// The CPUs that must be quiet for it, a bit for each.
    pub(super) deferred: u8,
    is_given: bool,
}

impl Answer {
    const NONE: Answer = Answer { span: Span { first: 0, count: 0 }, deferred: 0, is_given: false };

    /// A list, if these CPUs are quiet.
    pub(super) const fn list(span: Span, deferred: u8) -> Answer {
        Answer { span, deferred, is_given: true }
    }

    /// Yes or no.
    pub(super) const fn yes(yes: bool) -> Answer {
        Answer { span: Span { first: 0, count: yes as u16 }, ..Answer::list(Answer::NONE.span, 0) }
    }

    pub(super) const fn is_yes(self) -> bool {
        !self.span.is_empty()
    }
}

/// A way to look at states: the different things that can be seen there, and what was answered to the questions for which
/// one looks there. What is asked of one state stands together.
#[derive(Debug)]
struct View {
    looked: Footprint,
    rows: Rows,
    questions: usize,
    /// How many questions there is room for.
    stride: usize,
    answers: Vec<Answer>,
}

impl View {
    fn number(&mut self, parts: &[u32]) -> u32 {
        let (number, is_new) = self.rows.number(self.looked.iter().map(|part| parts[part]));
        if is_new {
            self.answers.resize(self.answers.len() + self.stride, Answer::NONE);
        }
        number
    }

    /// The place of one more question.
    fn question(&mut self) -> usize {
        if self.questions == self.stride {
            let stride = self.stride * 2;
            let mut answers = vec![Answer::NONE; self.answers.len() * 2];
            for (to, from) in answers.chunks_mut(stride).zip(self.answers.chunks(self.stride)) {
                to[..from.len()].copy_from_slice(from);
            }
            (self.stride, self.answers) = (stride, answers);
        }
        self.questions += 1;
        self.questions - 1
    }
}

#[derive(Debug, Default)]
pub(super) struct Views(Vec<View>);

impl Views {
    fn of(&mut self, looked: Footprint) -> usize {
        self.0.iter().position(|view| view.looked == looked).unwrap_or_else(|| {
            let rows = Rows::new(looked.iter().count());
            self.0.push(View { looked, rows, questions: 0, stride: 4, answers: Vec::new() });
            self.0.len() - 1
        })
    }

    pub(super) fn bytes(&self) -> usize {
        self.0.iter().map(|view| view.rows.bytes() + view.answers.capacity() * size_of::<Answer>()).sum()
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

    #[inline]
    fn number(&mut self, view: usize, views: &mut Views) -> usize {
        if self.numbers.len() <= view {
            self.numbers.resize(view + 1, UNKNOWN);
        }
        if self.numbers[view] == UNKNOWN {
            self.numbers[view] = views.0[view].number(&self.parts);
        }
        self.numbers[view] as usize
    }
}

/// A question: in which views it has been answered, and where there.
///
/// Which parts are looked at depends on the parts themselves, so that there are several views; but a state that agrees with
/// one that was asked about in all that was looked at has that answer, whichever view it is.
#[derive(Debug, Default)]
pub(super) struct Question(Vec<(usize, usize)>);

impl Question {
    /// What was answered to it in a state that is alike.
    #[inline]
    pub(super) fn answer(&self, seen: &mut Seen, views: &mut Views) -> Option<Answer> {
        self.0.iter().find_map(|&(view, place)| {
            let number = seen.number(view, views);
            let View { answers, stride, .. } = &views.0[view];
            Some(answers[number * stride + place]).filter(|answer| answer.is_given)
        })
    }

    /// Notes the answer.
    pub(super) fn note(&mut self, looked: Footprint, seen: &mut Seen, views: &mut Views, answer: Answer) {
        let view = views.of(looked);
        let known = self.0.iter().find(|&&(other, _)| other == view).map(|&(_, place)| place);
        let place = known.unwrap_or_else(|| {
            let place = views.0[view].question();
            self.0.push((view, place));
            place
        });
        let number = seen.number(view, views);
        let View { answers, stride, .. } = &mut views.0[view];
        answers[number * *stride + place] = answer;
    }
}
