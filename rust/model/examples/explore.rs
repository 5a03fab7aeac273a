use debugreg_model::explore::{Kinds, Scope, check};
use debugreg_model::{Policy, Vendor, laws};
use std::sync::atomic::AtomicBool;
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let get = |key: &str| args.iter().find_map(|a| a.strip_prefix(&format!("{key}=")).map(str::to_owned));
    let num = |key: &str, d: usize| get(key).map_or(d, |v| v.parse().unwrap());
    let policy = Policy::parse(&get("policy").unwrap_or("linux".into())).unwrap();
    let mut scope = Scope::default();
    scope.options.cpus = num("cpus", 1);
    scope.options.slots = num("slots", 1);
    if get("vendor").as_deref() == Some("intel") {
        scope.options.vendor = Vendor::Intel;
    }
    if get("dm").is_some() {
        scope.options.disabled_match = true;
    }
    scope.tasks = num("tasks", 2);
    scope.vcpus = num("vcpus", 1);
    scope.addresses = num("addresses", 1);
    scope.counters = num("counters", 1);
    if let Some(k) = get("events") {
        scope.kinds = Kinds::parse(&k).unwrap();
    }
    if let Some(l) = get("laws") {
        scope.laws = laws::Laws::parse(&l).unwrap();
    }
    if let Some(n) = get("nmi") {
        scope.nmis.plain = true;
        scope.nmis.kgdb = n.contains('k');
        scope.nmis.announce = n.contains('a');
    }
    if get("races").is_some() {
        scope.races = true;
    }
    if get("nosym").is_some() {
        scope.symmetry = false;
    }
    let t = std::time::Instant::now();
    let v = check(policy, &scope, num("threads", 2), num("mem", 8 << 30), &AtomicBool::new(false), &mut |p| {
        if args.iter().any(|a| a == "-v") {
            eprintln!("{p:?}");
        }
        true
    });
    let s = t.elapsed().as_secs_f64();
    println!(
        "{policy}: safe {:?} stopped {:?} states {} transitions {} depth {} bytes {}/{} {:.2}s {:.2}M/s",
        v.is_safe(),
        v.stopped,
        v.states,
        v.transitions,
        v.depth,
        v.state_bytes,
        v.bytes,
        s,
        v.transitions as f64 / s / 1e6
    );
    let none: Vec<_> = v.reached.iter().filter(|(_, n)| **n == 0).collect();
    if !none.is_empty() {
        println!("never: {none:?}");
    }
    if let Some(x) = v.violation {
        println!("{}: {}\n{}", x.law, x.why, x.scenario);
    }
}
