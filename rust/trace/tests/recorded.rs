//! Scenarios that a kernel performed while it was traced, in the world `vm`: each has what once was replayed otherwise.

use std::path::Path;

use debugreg_model::{Options, Policy, Processor};
use debugreg_trace::{Trace, Verify, replay};

fn verify(name: &str, policy: &str) -> Verify {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(format!("{name}.txt.gz"));
    let mut trace = Trace::read(&path).expect("there");
    assert_eq!((trace.counts.unreadable, trace.untied), (0, None));
    trace.quiet_before = true;
    let policy = Policy::parse(policy).expect("named");
    let options = Options { processor: Processor::Tcg, ..Options::default() };
    replay(&trace, policy, options, true, |_| true).expect("not stopped").verify.expect("asked for")
}

/// An exec, #DB in the kernel, a group, what one CPU asks of another, an exit with descriptors that others have.
#[test]
fn two_cpus() {
    let verify = verify("vm-6.12-two", "debian-6.12");
    assert!(verify.is_exact(), "{:#?}", verify.differences);
    assert_eq!((verify.install.matched, verify.step.map(|score| score.matched)), (30, Some(90)));
}

/// DR7.GD met and cleared, a MOV DR at CPL 3, reserved bits of DR7, a guest whose code has high addresses.
#[test]
fn a_guest() {
    let verify = verify("vm-6.12-guest", "debian-6.12");
    assert!(verify.is_exact(), "{:#?}", verify.differences);
    let [step, at_sync, at_entry] =
        [verify.step, verify.guest_at_sync, verify.guest_at_entry].map(|score| score.expect("there are steps").matched);
    assert!(step > 250 && at_sync > 38 && at_entry > 115, "{step} {at_sync} {at_entry}");
}

/// Eight #DBs in the kernel, one after the other, and a close that is carried out after its return.
#[test]
fn a_copy_and_a_close_of_6_1() {
    let verify = verify("vm-6.1-copy", "linux-5.15+H-01=fixed");
    assert!(verify.is_exact(), "{:#?}", verify.differences);
    assert_eq!((verify.uninstall.matched, verify.step.map(|score| score.matched)), (7, Some(21)));
}
