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
    let traced = both.map(|scope| Scope { kinds: Kinds::parse("+guest-dr6,ptrace").expect("kinds"), ..scope });
    [both.to_vec(), vec![host], traced.to_vec()].concat()
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

/// Prints who survives: `POLICIES=lean,linux-fixed cargo test --release --test mutants -- --ignored --nocapture`.
#[test]
#[ignore = "two minutes for each policy: it prints the mutants that no law notices"]
fn mutants_of_a_policy() {
    for name in std::env::var("POLICIES").unwrap_or("lean".into()).split(',') {
        let (all, left) = survivors(name, scopes());
        println!("{name}: {all} mutants, {} survive", left.len());
        for (site, place, change) in left {
            println!("    {site} {place:?} {change:?}");
        }
    }
}

#[test]
fn the_laws_notice_what_the_host_does_wrong() {
    let host = scopes().into_iter().filter(|scope| scope.vcpus == 0).collect();
    let (all, left) = survivors("linux-fixed", host);
    assert!(all > 40, "{all}");
    assert!(left.len() * 5 < all, "{all}: {left:?}");
    // None of DR7's enables, and no address, can be wrong.
    let grave = |&&(_, place, change): &&(Site, Place, Change)| {
        matches!((place, change), (Place::Control, Change::Flip(bits)) if bits < 1 << 8)
            || place == Place::Address && change != Change::Swap
    };
    assert_eq!(left.iter().filter(grave).collect::<Vec<_>>(), Vec::<&(Site, Place, Change)>::new());
}
