//! A scenario that was not read but found: events in a row, with names made for it.

use super::lex::Word;
use super::{At, Expectation, Line, Names, Scenario, TaskDeclaration, VcpuDeclaration};
use crate::laws::Laws;
use crate::{Capabilities, CounterId, CpuId, Event, Options, Policy, TaskId};

/// An event, with what happened inside it; its counters are symbols.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) event: Event,
    pub(crate) interruption: Option<(At, Event)>,
    /// The symbol that an open has made, each the next.
    pub(crate) binds: Option<CounterId>,
}

impl Scenario {
    /// Events on a machine with tasks on these CPUs, the first of which have vCPUs.
    pub(crate) fn told(
        options: Options,
        policy: Policy,
        laws: Laws,
        tasks: &[CpuId],
        vcpus: usize,
        events: Vec<Told>,
    ) -> Scenario {
        let mut names = Names::new(options.cpus);
        for number in 0..tasks.len() {
            names.add_task(word(&format!("t{}", number + 1))).expect("it is a new name");
        }
        for number in 0..vcpus {
            names.add_vcpu(word(&format!("v{number}"))).expect("it is a new name");
        }
        let mut lines = Vec::with_capacity(events.len());
        for (number, Told { event, interruption, binds }) in (1..).zip(events) {
            if let Event::Fork { .. } = event {
                names.add_task(word("child")).expect("one task forks once");
            }
            let expectation = binds.map(|symbol| {
                names.add_counter(word(&counter_name(symbol))).expect("it is a new name");
                Expectation::Bind(symbol)
            });
            lines.push(Line { number, column: 1, event, interruption, expectation });
        }
        let declared = |&cpu| TaskDeclaration { cpu, capabilities: Capabilities::Root, is_32bit: false };
        let of_task = |number: usize| VcpuDeclaration { task: TaskId::from(number + 1), debug_extensions: false };
        Scenario {
            title: Vec::new(),
            options,
            vendor: Some(options.vendor),
            policies: vec![policy.to_string()],
            laws,
            tasks: tasks.iter().map(declared).collect(),
            vcpus: (0..vcpus).map(of_task).collect(),
            lines,
            names,
        }
    }
}

fn word(text: &str) -> Word<'_> {
    Word { text, line: 1, column: 1 }
}

/// A, B, ... Z, A1, B1, ...
fn counter_name(symbol: CounterId) -> String {
    let letter = char::from(b'A' + (symbol.0 % 26) as u8);
    if symbol.0 < 26 { letter.to_string() } else { format!("{letter}{}", symbol.0 / 26) }
}
