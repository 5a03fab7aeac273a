//! What is done a little later than the line that asks for it ([`Asked`]): lines of the same CPU may come in between.
//!
//! It is looked for in the windows from there on to the line before which it is done, and compared where it was done.

use std::borrow::Cow;

use crate::input::{Done, Trace, Truth};
use crate::predict::{Asked, Item};

/// The items of a CPU, with what comes late in the windows in which it was done.
pub(crate) fn placed<'a>(trace: &Trace, items: &'a [Item], asked: &[Asked], truth: &[Truth]) -> Cow<'a, [Item]> {
    let mut items = Cow::Borrowed(items);
    for asked in asked.iter().rev() {
        if let Some(to) = place(trace, &items, asked, truth) {
            items.to_mut()[asked.at..to].rotate_left(asked.count);
        }
    }
    items
}

/// Before which item it was done, if not where it is.
fn place(trace: &Trace, items: &[Item], asked: &Asked, truth: &[Truth]) -> Option<usize> {
    let line = |at: usize| match items.get(at) {
        Some(Item::Window(window)) => trace.rows[window.row as usize].line,
        _ => 0,
    };
    let is_window = |item: &Item| matches!(item, Item::Window(_));
    let end = |from: usize| items[from..].iter().position(is_window).map_or(items.len(), |at| from + at);
    let moved = done(&items[asked.at..asked.at + asked.count]);
    let here = items[..asked.at].iter().rposition(is_window);
    let (from, to) = (here.map_or(0, |at| at + 1), end(asked.at));
    let rest = [done(&items[from..asked.at]), done(&items[asked.at + asked.count..to])].concat();
    if moved.is_empty() || observed(truth, here.map_or(0, line)) != rest {
        return None;
    }
    let mut window = to;
    while window < items.len() && line(window) < asked.until {
        let next = end(window + 1);
        let own = done(&items[window + 1..next]);
        let seen = observed(truth, line(window));
        if seen == [moved.as_slice(), &own].concat() {
            return Some(window + 1);
        }
        if seen == [own.as_slice(), &moved].concat() {
            return Some(next);
        }
        if seen != own {
            return None;
        }
        window = next;
    }
    None
}

fn done(items: &[Item]) -> Vec<Done> {
    let done = items.iter().filter_map(|item| match item {
        Item::Done(done) => Some(*done),
        _ => None,
    });
    done.collect()
}

fn observed(truth: &[Truth], window: u32) -> Vec<Done> {
    let from = truth.partition_point(|truth| truth.window < window);
    truth[from..].iter().take_while(|truth| truth.window == window).map(|truth| truth.done).collect()
}
