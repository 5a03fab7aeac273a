//! Fixed scopes: how many states, transitions, and how deep. A change of a number is a change of the model, of a law, or of
//! what counts as the same state.

use std::sync::atomic::AtomicBool;

use debugreg_model::explore::{Kinds, Nmis, Scope, Stop, Verdict, check};
use debugreg_model::policy::NAMED;
use debugreg_model::{Options, Policy, Vendor};

fn scope(cpus: usize, slots: usize, events: &str, nmi: bool) -> Scope {
    let kinds = if events.is_empty() { Kinds::default_kinds() } else { Kinds::parse(events).expect("kinds") };
    let options = Options { cpus, slots, ..Options::default() };
    Scope { options, kinds, nmis: Nmis { plain: nmi, ..Nmis::default() }, ..Scope::default() }
}

fn explored(policy: &str, scope: &Scope) -> (u64, u64, u32) {
    let policy = Policy::parse(policy).expect("a policy");
    let verdict = check(policy, scope, 0, usize::MAX, &AtomicBool::new(false), &mut |_| true);
    assert_eq!(verdict.is_safe(), Some(true), "{policy}: {:?} {:?}", verdict.violation, verdict.reached);
    (verdict.states, verdict.transitions, verdict.depth)
}

#[test]
fn six_scopes_have_the_states_that_they_have() {
    let host = Scope { vcpus: 0, counters: 2, addresses: 2, ..scope(1, 2, "open,close,switch,access,toggle", true) };
    let intel =
        Scope { options: Options { vendor: Vendor::Intel, ..scope(1, 1, "", true).options }, ..scope(1, 1, "", true) };
    let found = [
        explored("linux", &scope(1, 1, "", false)),
        explored("lean", &scope(1, 1, "", true)),
        explored("linux-fixed", &intel),
        explored("linux", &host),
        explored("linux-fixed", &scope(1, 1, "+nested", true)),
        explored("lean", &scope(2, 1, "", true)),
    ];
    assert_eq!(
        found,
        [
            (5149, 33638, 18),
            (4741, 110_761, 17),
            (2179, 63246, 15),
            (919, 20305, 11),
            (13199, 404_096, 16),
            (9372, 282_358, 19),
        ]
    );
}

#[test]
fn it_stops_when_it_is_told_to() {
    let asked = check(
        Policy::parse("lean").expect("a policy"),
        &Scope { addresses: 3, counters: 3, ..scope(2, 3, "", true) },
        2,
        usize::MAX,
        &AtomicBool::new(true),
        &mut |_| true,
    );
    assert_eq!((asked.is_safe(), asked.stopped), (None, Some(Stop::Asked)));
}

#[test]
fn a_state_is_at_most_24_bytes_with_its_link() {
    for (cpus, slots) in [(1, 2), (2, 2)] {
        let verdict = check(
            Policy::parse("lean").expect("a policy"),
            &scope(cpus, slots, "open,close,switch,access", false),
            1,
            usize::MAX,
            &AtomicBool::new(false),
            &mut |_| true,
        );
        assert!(verdict.state_bytes <= 24, "{}", verdict.state_bytes);
    }
}

/// What has been found out about one state holds for every other that is alike in what was looked at: exploring without
/// that comes to the same, policy by policy, safe or not.
#[test]
fn nothing_depends_on_what_was_found_out_before() {
    let events = [
        "",
        "+nested,guest-gd,guest-dr6,fastpath",
        "open,close,switch,entry,guest-dr,inherit,fork,kgdb",
        "+ptrace,modify,toggle",
    ];
    for (at, named) in NAMED.iter().enumerate() {
        let policy = Policy::parse(named.name).expect("a policy");
        for vendor in [Vendor::Amd, Vendor::Intel] {
            let nmis = Nmis { plain: true, kgdb: at % 3 == 1, announce: at % 3 == 2 };
            let mut scope = Scope { nmis, ..scope(1 + usize::from(at % 4 == 0), 1, events[at % 4], true) };
            scope.options.vendor = vendor;
            // Without the laws that it breaks it goes on from states in which something is wrong.
            for _ in 0..3 {
                let of = |reuse| {
                    let scope = Scope { reuse, ..scope };
                    check(policy, &scope, 2, usize::MAX, &AtomicBool::new(false), &mut |_| true)
                };
                let (with, without) = (of(true), of(false));
                let facts = |verdict: &Verdict| {
                    let broken = verdict.violation.as_ref().map(|it| (it.law, it.why.clone(), it.scenario.to_string()));
                    (verdict.states, verdict.transitions, verdict.depth, verdict.reached.clone(), broken)
                };
                assert_eq!(facts(&with), facts(&without), "{policy} {vendor:?} {}", scope.laws);
                let Some(broken) = with.violation else { break };
                scope.laws = scope.laws.without(broken.law);
            }
        }
    }
}
