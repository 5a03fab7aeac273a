//! What an entry and an exit cost, era by era: the table of the reference (kvm 7), cell by cell. The table is data; what
//! is done to fill it is the same for every policy.

use debugreg_model::scenario::Session;
use debugreg_model::{Capabilities, Cost, CpuId, Options, Policy, Vendor};

/// Writes and reads of debug registers.
type Movs = (u64, u64);

/// A row of the table.
struct Row {
    policy: &'static str,
    vendor: Vendor,
    /// No breakpoint anywhere.
    idle: Movs,
    /// One of the VMM's thread.
    host: Movs,
    /// One of the guest's, which it does not touch.
    guest: Movs,
    /// Both.
    both: Movs,
    /// A debugger's.
    debugger: Movs,
    /// What a return to user space costs besides.
    put: Movs,
    /// What it costs that a guest without breakpoints accesses its registers three times, with the entry and the exit
    /// around it.
    accesses: Movs,
    /// How many exits that makes.
    exits: u64,
    /// What an exit inside the run loop costs while the guest has the registers to itself.
    fastpath: Movs,
}

/// A row for both vendors.
const fn row(policy: &'static str, vendor: Vendor) -> Row {
    Row {
        policy,
        vendor,
        idle: NONE,
        host: NONE,
        guest: NONE,
        both: NONE,
        debugger: NONE,
        put: NONE,
        accesses: NONE,
        exits: 1,
        fastpath: NONE,
    }
}

use Vendor::{Amd, Intel};

const NONE: Movs = (0, 0);

#[rustfmt::skip]
const TABLE: &[Row] = &[
    // Each of the three exits, and each of the four entries, costs what an idle one does.
    Row { idle: (3, 3), host: (3, 3), guest: (13, 7), both: (13, 7), debugger: (13, 7), accesses: (12, 12), exits: 3, ..row("linux-2.6.30", Intel) },
    Row { idle: (2, 2), host: (2, 2), guest: (12, 6), both: (12, 6), debugger: (12, 6), accesses: (8, 8), exits: 3, ..row("linux-2.6.30", Amd) },
    Row { host: (6, 0), guest: (12, 0), both: (12, 0), debugger: (12, 0), exits: 3, ..row("linux-2.6.32", Intel) },
    Row { host: (6, 0), guest: (11, 0), both: (11, 0), debugger: (11, 0), exits: 3, ..row("linux-2.6.32", Amd) },
    Row { host: (6, 0), guest: (6, 0), both: (12, 0), debugger: (6, 0), exits: 3, ..row("linux-2.6.33", Intel) },
    Row { host: (6, 0), guest: (5, 0), both: (11, 0), debugger: (5, 0), exits: 3, ..row("linux-2.6.33", Amd) },
    Row { host: (6, 0), guest: (6, 0), both: (12, 0), debugger: (6, 0), accesses: (6, 5), ..row("linux-3.15", Intel) },
    Row { host: (6, 0), guest: (6, 0), both: (12, 0), debugger: (6, 0), accesses: (6, 4), ..row("linux-3.15", Amd) },
    Row { host: (6, 0), guest: (6, 0), both: (12, 0), debugger: (6, 0), put: (1, 0), accesses: (6, 5), ..row("linux-4.15", Intel) },
    Row { host: (6, 0), guest: (6, 0), both: (12, 0), debugger: (6, 0), put: (1, 0), accesses: (6, 4), ..row("linux-4.15", Amd) },
    Row { host: (7, 0), guest: (6, 0), both: (12, 0), debugger: (6, 0), put: (1, 0), accesses: (6, 5), ..row("linux-5.14", Intel) },
    Row { host: (7, 0), guest: (6, 0), both: (12, 0), debugger: (6, 0), put: (1, 0), accesses: (6, 4), ..row("linux-5.14", Amd) },
    // The re-entry writes a wrong DR6 (H-01).
    Row { host: (7, 0), guest: (5, 0), both: (11, 0), debugger: (5, 0), accesses: (7, 5), fastpath: (1, 0), ..row("linux-5.15", Intel) },
    Row { host: (7, 0), guest: (5, 0), both: (11, 0), debugger: (5, 0), accesses: (5, 4), ..row("linux-5.15", Amd) },
    Row { host: (7, 0), guest: (5, 0), both: (11, 0), debugger: (5, 0), accesses: (5, 4), ..row("debian-6.12", Amd) },
    Row { host: (7, 0), guest: (5, 0), both: (11, 0), debugger: (5, 0), accesses: (7, 5), ..row("linux-6.14", Intel) },
    Row { host: (7, 0), guest: (5, 0), both: (11, 0), debugger: (5, 0), accesses: (5, 4), ..row("linux-6.14", Amd) },
    Row { host: (7, 0), guest: (5, 0), both: (11, 0), debugger: (5, 0), accesses: (7, 5), ..row("linux", Intel) },
    Row { host: (7, 0), guest: (5, 0), both: (11, 0), debugger: (5, 0), accesses: (5, 4), ..row("linux", Amd) },
    Row { host: (7, 0), both: (7, 0), exits: 0, ..row("tdx", Intel) },
    // Four reads at each vcpu_load, which are the price of the return to user space before.
    Row { host: (7, 0), both: (7, 0), put: (0, 4), exits: 0, ..row("sev-es-debugswap", Amd) },
    // The guest's own handler answers; each of its two writes of DR7 would exit once.
    Row { host: (7, 0), both: (7, 0), exits: 0, ..row("sev-es", Amd) },
    Row { host: (7, 0), guest: (7, 0), both: (13, 0), debugger: (7, 0), exits: 3, ..row("pvm", Intel) },
    Row { host: (7, 0), guest: (7, 0), both: (13, 0), debugger: (7, 0), exits: 3, ..row("pvm", Amd) },
    // The policies that never shipped, in the same terms: Frederic's takes each counter out (one write) and puts it in (two).
    Row { host: (3, 0), guest: (4, 0), both: (7, 0), debugger: (4, 0), exits: 3, ..row("perf-sched", Intel) },
    Row { host: (6, 0), guest: (11, 0), both: (11, 0), debugger: (11, 0), exits: 3, ..row("skip", Intel) },
    Row { host: (3, 0), guest: (1, 0), both: (4, 0), debugger: (1, 0), accesses: (6, 5), ..row("lean", Intel) },
    Row { host: (3, 0), guest: (1, 0), both: (4, 0), debugger: (1, 0), accesses: (4, 4), ..row("lean", Amd) },
];

/// A machine with a VMM's thread and its vCPU.
struct Bench(Session);

impl Bench {
    fn new(row: &Row) -> Bench {
        let options = Options { vendor: row.vendor, ..Options::default() };
        let mut session = Session::new(options, Policy::parse(row.policy).expect("named"));
        let task = session.add_task("qemu", CpuId(0), Capabilities::Root).expect("a name");
        session.add_vcpu("v0", task).expect("a name");
        Bench(session)
    }

    /// Performs lines, and says what they cost.
    fn cost(&mut self, lines: &[&str]) -> Cost {
        let before = self.0.machine.cost();
        for line in lines {
            self.0.line(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
        self.0.machine.cost() - before
    }

    fn movs(&mut self, lines: &[&str]) -> Movs {
        let Cost { dr_writes, dr_reads, .. } = self.cost(lines);
        (dr_writes, dr_reads)
    }

    /// A steady round: an entry, and an exit that KVM handles itself.
    fn round(&mut self) -> Movs {
        self.cost(ROUND);
        self.movs(ROUND)
    }
}

const ROUND: &[&str] = &["v0 vm_entry", "v0 vm_exit reason=intr"];
const HOST: &str = "qemu perf_event_open bp_type=w bp_addr=0x1000 bp_len=8 => A";
/// A guest's breakpoint, written one access at a time: a debugger that wants no register keeps the window shut.
const GUEST: &[&str] = &[
    "v0 set_guest_debug enable sw",
    "v0 vm_entry",
    "v0 mov_to_dr 0 0x20000",
    "v0 mov_to_dr 7 0x00090401",
    "v0 vm_exit reason=intr",
    "v0 set_guest_debug",
];
const DEBUGGER: &str = "v0 set_guest_debug enable hw dr0=0x30000 dr7=0x00090402";

#[test]
fn every_cell_of_the_table_is_what_the_steps_come_to() {
    let mut wrong = Vec::new();
    for row in TABLE {
        let mut check = |what: &str, found: Movs, expected: Movs| {
            if found != expected {
                let vendor = row.vendor.name();
                wrong.push(format!("{} {vendor}, {what}: {found:?}, the table has {expected:?}", row.policy));
            }
        };
        let mut idle = Bench::new(row);
        check("idle", idle.round(), row.idle);
        let userspace = ["v0 vm_entry", "v0 vm_exit reason=io"];
        idle.cost(&userspace);
        let (writes, reads) = idle.movs(&userspace);
        check("return to user space", (writes - row.idle.0, reads - row.idle.1), row.put);

        let mut host = Bench::new(row);
        host.cost(&[HOST]);
        check("host", host.round(), row.host);

        let mut guest = Bench::new(row);
        guest.cost(GUEST);
        check("guest", guest.round(), row.guest);
        guest.cost(&[HOST]);
        check("both", guest.round(), row.both);

        let mut debugger = Bench::new(row);
        debugger.cost(&[DEBUGGER]);
        check("debugger", debugger.round(), row.debugger);
        // Beside a host, it is a guest with breakpoints; if nothing is enabled, it is nobody.
        debugger.cost(&[HOST]);
        check("debugger and host", debugger.round(), row.both);
        debugger.cost(&["v0 set_guest_debug enable hw dr0=0x30000 dr7=0x00090400"]);
        check("a debugger that enables nothing, and the host", debugger.round(), row.host);

        let mut accesses = Bench::new(row);
        accesses.cost(ROUND);
        let lines = [
            "v0 vm_entry",
            "v0 mov_to_dr 0 0x20000",
            "v0 mov_from_dr 0",
            "v0 mov_to_dr 1 0x1",
            "v0 vm_exit reason=intr",
        ];
        let cost = accesses.cost(&lines);
        check("three accesses", (cost.dr_writes, cost.dr_reads), row.accesses);
        check("their exits", (cost.vm_exits, 0), (row.exits, 0));
        // The host's come on top: what a round costs it, and one refresh more for the exit of the first access.
        if row.accesses != NONE && row.exits == 1 {
            let mut beside = Bench::new(row);
            beside.cost(&[HOST]);
            beside.cost(ROUND);
            let refreshed = row.both.0 - row.guest.0;
            let expected = (row.accesses.0 + row.host.0 + refreshed, row.accesses.1 + row.host.1);
            check("three accesses, and the host", beside.movs(&lines), expected);
        }
        accesses.cost(&["v0 vm_entry", "v0 mov_from_dr 0"]);
        check("fastpath", accesses.movs(&["v0 vm_exit reason=fastpath"]), row.fastpath);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn under_a_debugger_each_access_is_an_exit_and_no_more() {
    let debugged = TABLE.iter().filter(|row| row.debugger != (0, 0));
    for row in debugged {
        let mut bench = Bench::new(row);
        bench.cost(&[DEBUGGER, "v0 vm_entry"]);
        let cost = bench.cost(&["v0 mov_to_dr 0 0x20000", "v0 mov_to_dr 1 0x20000", "v0 mov_from_dr 1"]);
        assert_eq!(cost.vm_exits, 3, "{} {}", row.policy, row.vendor.name());
        // An exit and an entry each.
        let expected = (3 * row.debugger.0, 3 * row.debugger.1);
        assert_eq!((cost.dr_writes, cost.dr_reads), expected, "{} {}", row.policy, row.vendor.name());
    }
}

#[test]
fn an_episode_takes_four_accesses_to_the_vmcs() {
    for policy in ["linux-4.15", "linux-5.14", "linux-5.15", "linux-6.14", "linux", "lean"] {
        let row = row(policy, Intel);
        let mut bench = Bench::new(&row);
        bench.cost(ROUND);
        // Intercept off; DR7 read, intercept on, DR7 written.
        let cost = bench.cost(&["v0 vm_entry", "v0 mov_from_dr 0", "v0 vm_exit reason=intr"]);
        assert_eq!(cost.vmcs, 4, "{policy}");
    }
}

/// Not KVM: what a round costs, and one of three accesses that ends in user space, by their own step lists.
#[test]
fn others_cost_what_their_own_step_lists_say() {
    let table: &[(&str, Vendor, Movs, Movs, u64)] = &[
        ("bhyve", Intel, (12, 11), (12, 11), 0),
        ("bhyve", Amd, (11, 10), (11, 10), 0),
        // Written at the first access, read back when the vCPU is descheduled.
        ("xen", Intel, (0, 0), (5, 5), 1),
        ("xen", Amd, (0, 0), (4, 4), 1),
        // And the host's around it. DR7 is disarmed by the exit already, so that it is read only.
        ("virtualbox", Intel, (0, 0), (11, 12), 1),
        ("virtualbox", Amd, (0, 0), (10, 11), 1),
        ("none", Intel, (0, 0), (0, 0), 0),
        ("none", Amd, (0, 0), (0, 0), 0),
    ];
    for &(policy, vendor, idle, episode, exits) in table {
        let mut bench = Bench::new(&row(policy, vendor));
        assert_eq!(bench.round(), idle, "{policy} {}", vendor.name());
        let cost = bench.cost(&[
            "v0 vm_entry",
            "v0 mov_to_dr 0 0x20000",
            "v0 mov_from_dr 0",
            "v0 mov_to_dr 1 0x1",
            "v0 vm_exit reason=io",
        ]);
        let found = ((cost.dr_writes, cost.dr_reads), cost.vm_exits);
        assert_eq!(found, (episode, exits), "{policy} {}", vendor.name());
    }
}

#[test]
fn a_db_exit_of_pvm_costs_one_read_and_one_write_more() {
    let row = row("pvm", Intel);
    let mut bench = Bench::new(&row);
    bench.cost(GUEST);
    let (writes, reads) = bench.round();
    bench.cost(&["v0 vm_entry"]);
    assert_eq!(bench.movs(&["v0 store 0x20000 8 => #DB dr6=0xffff0ff1"]), (writes + 1, reads + 1));
}
