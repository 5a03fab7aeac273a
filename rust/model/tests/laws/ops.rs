//! Random events: what a walk consists of.

use debugreg::Dr7;
use debugreg::trip::{Access, What};
use debugreg_model::policy::{HostHalf, KvmHalf, NAMED};
use debugreg_model::{Attr, BpType, Changes, Delta, DrAccess, ExitReason, GuestDebug, Nmi, Options, Policy, Vendor};
use proptest::prelude::*;

pub(crate) const CPUS: u32 = 2;
/// Forks included.
pub(crate) const TASKS: usize = 6;

/// One step of a walk. Numbers choose among what there is when its turn comes.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Open { by: usize, target: usize, cpu: Option<u32>, of_task: bool, attr: Attr },
    Close(usize),
    Enable(usize),
    Disable(usize),
    Modify(usize, Changes),
    Switch { cpu: u32, next: usize },
    Migrate(usize, u32),
    Fork(usize),
    Exec(usize),
    Exit(usize),
    Attach(usize, usize),
    Detach(usize, usize),
    Poke { tracer: usize, tracee: usize, dr: u8, value: u64 },
    Touch { task: usize, access: Access, kernel: bool },
    Nmi(u32, Nmi),
    Refresh(u32),
    Entry(u32),
    Leave(u32, ExitReason),
    Guest { vcpu: u32, access: Access, emulated: bool },
    Write { vcpu: u32, dr: u8, value: u64 },
    Read { vcpu: u32, dr: u8 },
    Debug(u32, GuestDebug),
    Set { vcpu: u32, dr: [Option<u64>; 4], dr7: Option<u64> },
    Init(u32),
}

pub(crate) fn address() -> impl Strategy<Value = u64> {
    prop_oneof![4 => Just(0x1000), 2 => Just(0x1008), 2 => Just(0x2000), 1 => Just(0x2001), 1 => Just(0u64)]
}

pub(crate) fn attr() -> impl Strategy<Value = Attr> {
    let bp_type = prop_oneof![
        6 => Just(BpType::W), 2 => Just(BpType::Rw), 2 => Just(BpType::X), 1 => Just(BpType::R)
    ];
    let bp_len = prop_oneof![8 => Just(8u64), 2 => Just(1u64), 1 => Just(4u64), 1 => Just(3u64)];
    let flags = (any::<bool>(), prop::bool::weighted(0.3), any::<bool>(), prop::bool::weighted(0.2));
    (bp_type, address(), bp_len, flags).prop_map(|(bp_type, bp_addr, bp_len, (pinned, disabled, inherit, user))| Attr {
        bp_type,
        bp_addr,
        bp_len,
        pinned,
        disabled,
        inherit,
        inherit_thread: false,
        exclude_user: user,
        exclude_kernel: !user,
        sigtrap: false,
        remove_on_exec: false,
    })
}

pub(crate) fn changes() -> impl Strategy<Value = Changes> {
    let bp_type = prop::option::of(prop_oneof![Just(BpType::W), Just(BpType::Rw), Just(BpType::R)]);
    let bp_len = prop::option::weighted(0.3, prop_oneof![Just(8u64), Just(1u64), Just(3u64)]);
    let disabled = prop::option::weighted(0.3, any::<bool>());
    let pinned = prop::option::weighted(0.2, any::<bool>());
    (bp_type, prop::option::of(address()), bp_len, disabled, pinned).prop_map(
        |(bp_type, bp_addr, bp_len, disabled, pinned)| Changes {
            bp_type,
            bp_addr,
            bp_len,
            disabled,
            pinned,
            ..Changes::default()
        },
    )
}

/// Values of DR7 that a guest or a debugger may load: Z-5 and Z-7 (bits that the hardware does not have, stored raw by
/// KVM's ioctls) are left out.
pub(crate) fn dr7() -> impl Strategy<Value = u64> {
    let enables = prop_oneof![Just(0u64), Just(0x1), Just(0x2), Just(0x5), Just(0x50), Just(0xaa), 0..0x100u64];
    let fields = prop_oneof![Just(0x9999_0000u64), Just(0x1111_0000), Just(0xdf90_0000), Just(0)];
    let exact = prop_oneof![4 => Just(0u64), 1 => Just(Dr7::GE)];
    (enables, fields, exact).prop_map(|(enables, fields, exact)| enables | fields | exact | Dr7::FIXED)
}

pub(crate) fn access() -> impl Strategy<Value = Access> {
    let what = prop_oneof![Just(What::Store), Just(What::Load), Just(What::Execute)];
    (what, address(), prop_oneof![Just(1u64), Just(8)]).prop_map(|(what, address, bytes)| Access {
        what,
        address,
        bytes,
    })
}

pub(crate) fn guest_debug() -> impl Strategy<Value = GuestDebug> {
    let control = prop_oneof![
        2 => Just(0),
        3 => Just(GuestDebug::ENABLE | GuestDebug::USE_HW_BP),
        1 => Just(GuestDebug::ENABLE | GuestDebug::USE_SW_BP),
        1 => Just(GuestDebug::ENABLE),
        1 => Just(GuestDebug::USE_HW_BP),
        1 => Just(GuestDebug::INJECT_DB),
    ];
    (control, [address(), address(), address(), address()], dr7()).prop_map(|(control, dr, dr7)| GuestDebug {
        control,
        dr,
        dr7,
    })
}

pub(crate) fn host_op() -> impl Strategy<Value = Op> {
    let task = || 0..TASKS;
    let cpu = || 0..CPUS;
    let ptrace_value = prop_oneof![
        4 => address(),
        1 => Just(0xffff_8000_0000_0000u64),
        2 => Just(0x1),
        2 => Just(0x000d_0001),
        1 => Just(0x9999_0055),
        1 => Just(0x0002_0001),
        1 => Just(0x0111_0015),
    ];
    let kgdb = prop_oneof![
        2 => Just(Nmi::Plain),
        1 => (0..4u8).prop_map(Nmi::KgdbAnnounce),
        2 => (0..4u8).prop_map(Nmi::KgdbRelease),
    ];
    prop_oneof![
        10 => (task(), task(), prop::option::of(cpu()), any::<bool>(), attr())
            .prop_map(|(by, target, cpu, of_task, attr)| Op::Open { by, target, cpu, of_task, attr }),
        4 => any::<usize>().prop_map(Op::Close),
        3 => any::<usize>().prop_map(Op::Enable),
        3 => any::<usize>().prop_map(Op::Disable),
        3 => (any::<usize>(), changes()).prop_map(|(at, changes)| Op::Modify(at, changes)),
        12 => (cpu(), 0..=TASKS).prop_map(|(cpu, next)| Op::Switch { cpu, next }),
        2 => (task(), cpu()).prop_map(|(task, cpu)| Op::Migrate(task, cpu)),
        3 => task().prop_map(Op::Fork),
        1 => task().prop_map(Op::Exec),
        1 => task().prop_map(Op::Exit),
        2 => (task(), task()).prop_map(|(tracer, tracee)| Op::Attach(tracer, tracee)),
        1 => (task(), task()).prop_map(|(tracer, tracee)| Op::Detach(tracer, tracee)),
        4 => (task(), task(), prop_oneof![0..4u8, Just(7u8), Just(7), Just(6)], ptrace_value)
            .prop_map(|(tracer, tracee, dr, value)| Op::Poke { tracer, tracee, dr, value }),
        3 => (task(), access(), any::<bool>()).prop_map(|(task, access, kernel)| Op::Touch { task, access, kernel }),
        2 => (cpu(), kgdb).prop_map(|(cpu, nmi)| Op::Nmi(cpu, nmi)),
        1 => cpu().prop_map(Op::Refresh),
    ]
}

pub(crate) fn guest_op() -> impl Strategy<Value = Op> {
    let vcpu = || 0..2u32;
    let reason = prop_oneof![
        4 => Just(ExitReason::Other("io")),
        1 => Just(ExitReason::Fastpath),
        2 => Just(ExitReason::DrAccess(DrAccess { dr: 7, write: None })),
    ];
    prop_oneof![
        8 => vcpu().prop_map(Op::Entry),
        8 => (vcpu(), reason).prop_map(|(vcpu, reason)| Op::Leave(vcpu, reason)),
        4 => (vcpu(), access(), prop::bool::weighted(0.2))
            .prop_map(|(vcpu, access, emulated)| Op::Guest { vcpu, access, emulated }),
        4 => (vcpu(), 0..4u8, address()).prop_map(|(vcpu, dr, value)| Op::Write { vcpu, dr, value }),
        4 => (vcpu(), dr7()).prop_map(|(vcpu, value)| Op::Write { vcpu, dr: 7, value }),
        1 => vcpu().prop_map(|vcpu| Op::Write { vcpu, dr: 7, value: Dr7::GD | Dr7::FIXED }),
        1 => vcpu().prop_map(|vcpu| Op::Write { vcpu, dr: 7, value: 1 << 32 }),
        2 => (vcpu(), 0..9u8).prop_map(|(vcpu, dr)| Op::Read { vcpu, dr }),
        3 => (vcpu(), guest_debug()).prop_map(|(vcpu, debug)| Op::Debug(vcpu, debug)),
        2 => (vcpu(), [(); 4].map(|()| prop::option::of(address())), prop::option::of(dr7()))
            .prop_map(|(vcpu, dr, dr7)| Op::Set { vcpu, dr, dr7 }),
        1 => vcpu().prop_map(Op::Init),
    ]
}

pub(crate) fn walk() -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(prop_oneof![3 => host_op(), 2 => guest_op()], 1..80)
}

/// No guests: deeper into perf.
pub(crate) fn host_walk() -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(host_op(), 20..80)
}

pub(crate) fn options() -> impl Strategy<Value = Options> {
    let vendor = prop_oneof![Just(Vendor::Amd), Just(Vendor::Intel)];
    (vendor, any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(vendor, hypervisor, fred, disabled_match)| {
        Options { cpus: CPUS as usize, vendor, hypervisor, fred, disabled_match, ..Options::default() }
    })
}

/// The named policies of a host half. H-02 is left out: after it nothing can be said of a guest's registers.
pub(crate) fn policies(host: HostHalf) -> impl Strategy<Value = Policy> {
    let names: Vec<_> = NAMED
        .iter()
        .filter(|named| named.host == host && (named.kvm.is_general() || named.kvm == KvmHalf::Bhyve))
        .map(|named| named.name)
        .collect();
    prop::sample::select(names).prop_map(|name| {
        let policy = Policy::parse(name).expect("named");
        let fixed = format!("{name}+H-02=fixed");
        if policy.has(Delta::H02) { Policy::parse(&fixed).expect("it concerns it") } else { policy }
    })
}
