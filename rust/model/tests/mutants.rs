//! Are the laws worth anything? Each place in the source at which a policy, or the bank, writes something is mutated: the
//! step left out, exchanged with the next one, each bit that means something flipped. A law must notice.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;

use debugreg_model::explore::{Kinds, Nmis, Scope, check};
use debugreg_model::laws::Laws;
use debugreg_model::mutant::{Change, Mutant, Place, Site, recorded, was_applied};
use debugreg_model::{Options, Policy, Vendor};

fn scopes() -> Vec<Scope> {
    let nmis = Nmis { plain: true, ..Nmis::default() };
    let both = [Vendor::Amd, Vendor::Intel].map(|vendor| Scope {
        options: Options { slots: 1, vendor, ..Options::default() },
        nmis,
        ..Scope::default()
    });
    let host = Scope {
        vcpus: 0,
        counters: 2,
        addresses: 2,
        options: Options { slots: 2, ..Options::default() },
        kinds: Kinds::parse("open,close,switch,access,toggle").expect("kinds"),
        nmis,
        ..Scope::default()
    };
    // Who is told of a guest's DR6: no step of his matters to it, so no NMI.
    let events = Kinds::parse("switch,entry,guest-dr,guest-dr6,guest-access,ptrace,access").expect("kinds");
    let traced = both.map(|scope| Scope { kinds: events, nmis: Nmis::default(), ..scope });
    // A host and a guest that do not watch in the same way.
    let events = Kinds::parse("open,close,switch,entry,guest-dr,execute").expect("kinds");
    let unlike = both.map(|scope| Scope { kinds: events, addresses: 2, ..scope });
    [both.to_vec(), vec![host], traced.to_vec(), unlike.to_vec()].concat()
}

fn broken(policy: Policy, scope: &Scope) -> Option<debugreg_model::explore::Violation> {
    check(policy, scope, 0, usize::MAX, &AtomicBool::new(false), &mut |_| true).violation
}

/// The scopes, each with the laws that the policy keeps in it.
fn kept(policy: Policy, mut scopes: Vec<Scope>) -> Vec<Scope> {
    for scope in &mut scopes {
        while let Some(violation) = broken(policy, scope) {
            scope.laws = scope.laws.without(violation.law);
            assert_ne!(scope.laws, Laws::NONE, "{policy}");
        }
    }
    scopes
}

/// What can be done wrong at a place. Bits of registers that are not used, or that no processor looks at, mean nothing.
fn changes(place: Place) -> Vec<Change> {
    let bits: Vec<u64> = match place {
        Place::Address => vec![12],
        Place::Status => vec![0, 13, 14],
        // L and G of all slots; R/W and LEN of the first.
        Place::Control => [(0..8).collect::<Vec<_>>(), vec![13], (16..20).collect()].concat(),
        Place::Word => vec![0],
    };
    let flips = bits.into_iter().map(|bit| Change::Flip(1 << bit));
    [Change::Drop, Change::Swap].into_iter().chain(flips).collect()
}

fn sites(policy: Policy, scopes: &[Scope]) -> BTreeSet<(Site, Place)> {
    recorded();
    for scope in scopes {
        broken(policy, &Scope { mutant: Some(Mutant::new(None, Change::Record)), ..*scope });
    }
    recorded()
}

fn survivors(name: &str, scopes: Vec<Scope>) -> (usize, Vec<(Site, Place, Change)>) {
    let policy = Policy::parse(name).expect("a policy");
    let scopes = kept(policy, scopes);
    let all = sites(policy, &scopes)
        .into_iter()
        .flat_map(|(site, place)| changes(place).into_iter().map(move |change| (site, place, change)));
    let all: Vec<_> = all.collect();
    let (mut count, mut left) = (0, Vec::new());
    for &(site, place, change) in &all {
        let mutant = Some(Mutant::new(Some(site), change));
        was_applied();
        let noticed = scopes.iter().any(|scope| broken(policy, &Scope { mutant, ..*scope }).is_some());
        // One that never does anything wrong is none.
        if noticed || was_applied() {
            count += 1;
            left.extend((!noticed).then_some((site, place, change)));
        }
    }
    (count, left)
}

/// Why a mutant that no law notices is none.
fn excuse(policy: &str, site: Site, place: Place, change: Change) -> Option<&'static str> {
    let is_in = |file: &str| site.to_string().starts_with(file);
    match (place, change) {
        // The slot is disarmed, or interrupts are off, until the next step is done too; an NMI looks at DR7 alone.
        (Place::Address | Place::Word | Place::Status, Change::Swap) => Some("nobody reads it before the next step"),
        // U6, and there is no step behind it: an NMI finds the shadow active and nothing armed, which is safe.
        (Place::Control, Change::Swap) => Some("the last of its transition"),
        // Without the step BS would stay, too; but what sets it, a tracer's single-stepping, no event of the explorer does.
        (Place::Status, Change::Drop | Change::Flip(0b1)) => Some("the next #DB replaces B0 to B3"),
        (Place::Status, Change::Flip(0x2000)) => Some("the host shows BD to nobody"),
        (Place::Word, _) if policy == "linux-5.14" && is_in("common.rs") => {
            Some("the window that was not opened: what is emulated instead the next entry loads (KVM_DEBUGREG_RELOAD)")
        }
        (Place::Status, Change::Flip(0x4000)) if policy == "linux-3.15" => {
            Some("this kernel does not keep dr6-true, mutant or not")
        }
        (Place::Control, _) if policy == "pvm" && is_in("common.rs") => Some("GUEST_DR7: PVM has no VMCS"),
        (Place::Control, Change::Flip(0b10)) if is_in("pvm.rs") => {
            Some("G0 arms no more than L0, and no guest reads it")
        }
        _ => None,
    }
}

#[test]
fn what_no_law_notices_is_no_mistake() {
    for policy in
        ["lean", "linux", "linux-fixed", "skip", "perf-sched", "linux-2.6.33", "linux-3.15", "linux-5.14", "pvm"]
    {
        let (all, left) = survivors(policy, scopes());
        println!("{policy}: {} of {all} mutants are noticed", all - left.len());
        for &(site, place, change) in &left {
            let why = excuse(policy, site, place, change);
            println!("    {site} {place:?} {change:?}: {}", why.unwrap_or("?"));
            assert!(why.is_some(), "{policy}: {site} {place:?} {change:?} is not noticed");
        }
        assert!(left.len() * 5 < all, "{policy}: {} of {all}", left.len());
    }
}
