"""`Machine`: the live model, driven by methods and by lines of the language."""

import errno
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from machines import fill, state, watch

import debugreg as dr

POLICIES = [row.name for row in dr.policies()]
TOUCHES_ANYWAY = {"linux-4.15", "linux-5.14", "sev-es-debugswap", "bhyve", "virtualbox", "xen", "none"}
"""DR6 at every vcpu_put; the host's registers into the save area at every vcpu_load; others save and restore."""

PERF_POLICIES = [row.name for row in dr.policies() if row.host == "perf"]

SCENARIO = """\
# One hit.
task sh
sh perf_event_open bp_type=w bp_addr=0x1000 bp_len=8 => A
sh store 0x1000 8 => hit A
"""


# --- the contract -----------------------------------------------------------------------------------------------------


def test_the_example_of_the_design_works(tmp_path, monkeypatch, trace_lines):
    (tmp_path / "x.scn").write_text(SCENARIO)
    (tmp_path / "trace.txt").write_text("".join(trace_lines[:2900]))
    monkeypatch.chdir(tmp_path)

    d7 = dr.DR7(0x000D0402)
    assert repr(d7[0]) == "Slot(enable='global', type='w', len=4)"
    assert d7[2] is None
    assert repr(dr.DR7().arm(0, "w", 8).arm(1, "x")) == "DR7(0x0009040a)"
    assert dr.encode_dr7(0, len=8, type="w") == 0x00090202

    m = dr.Machine(cpus=2, vendor="amd", policy="linux")
    cpu = m.cpus[0]
    qemu, _sh = m.task("qemu", cpu=0), m.task("sh", cpu=0)
    cpu.sched_switch(qemu)
    a = qemu.perf_event_open(bp_type="w", bp_addr=0x1000, bp_len=8)
    assert cpu.slots[0].owner == a
    assert cpu.slots[0].scope == "task qemu"
    assert cpu.slots[1:] == (None, None, None)
    assert cpu.breakpoints_active
    assert cpu.registers == (0x1000, 0, 0, 0, dr.DR6(), dr.DR7(0x00090602))
    cpu.refresh()
    assert cpu.hardware == cpu.owed == cpu.registers
    v = m.vcpu("v0", task=qemu)
    with v.run(), m.measure() as cost:
        out = m.do("v0 store 0x2000 8")
    assert (out.hits, out.exception, out.dr6, out.steps, bool(out)) == ((), None, None, (), False)
    assert cost == dr.Cost()
    assert not v.in_guest
    assert [bool(report) for report in dr.run("x.scn", policies=["skip", "linux"])] == [True, True]
    assert [one.policy for one in dr.replay("trace.txt")] == ["debian-6.12"]
    assert dr.compare(policies=["lean"]).replays[0].policy == "lean"
    assert dr.policies()


def test_provenance_counts_events_as_the_example_of_the_design_does():
    m = dr.Machine(cpus=2, vendor="amd", policy="linux")
    qemu, _sh = m.task("qemu", cpu=0), m.task("sh", cpu=0)
    m.cpus[0].sched_switch(qemu)
    a = qemu.perf_event_open(bp_type="w", bp_addr=0x1000, bp_len=8)
    assert m.cpus[0].slots == (dr.Held(owner=a, scope="task qemu", since=3), None, None, None)


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_enospc_names_the_rule_and_everybody_to_ask(m):
    of_cpu = watch(m.qemu, on="cpu0", name="wide")
    of_sh = fill(m.sh, 3)
    with pytest.raises(OSError, match="held by wide, bp0, bp1, bp2") as refusal:
        watch(m.sh)
    assert isinstance(refusal.value, dr.Refusal)
    assert refusal.value.errno == errno.ENOSPC
    assert "every slot of a CPU is spoken for" in refusal.value.rule
    assert refusal.value.holders == (of_cpu, *of_sh)
    assert str(refusal.value).startswith("[Errno 28] ENOSPC: ")


@pytest.mark.parametrize(
    ("name", "caps", "options"),
    [
        ("EINVAL", "root", {"bp_len": 3}),
        ("EINVAL", "root", {"bp_addr": 0x1001}),
        ("EINVAL", "root", {"bp_type": "r"}),
        ("EINVAL", "root", {"bp_type": "x", "bp_len": 4}),
        ("EOPNOTSUPP", "root", {"bp_len": 16}),
        ("EPERM", "perfmon", {"bp_addr": 0xFFFFFFFF81000000}),
        ("EACCES", "none", {"on": "make", "exclude_kernel": True}),
        ("EACCES", "none", {"on": "cpu0", "exclude_kernel": True}),
        ("EACCES", "none", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else repr(value),
)
def test_a_refusal_says_which_rule_and_changes_nothing(m, name, caps, options):
    caller = m.task("user", cpu=1, caps=caps)
    kept = watch(m.qemu)
    before, cost = state(m), m.cost
    with pytest.raises(OSError, match=f"{name}: ") as refusal:
        watch(caller, **options)
    assert refusal.value.errno == getattr(errno, name)
    assert refusal.value.rule in str(refusal.value)
    assert refusal.value.holders == ()
    assert (state(m), m.cost) == (before, cost)
    assert m.do("qemu store 0x1000 8").hits == (kept,)


def test_a_line_gives_a_refusal_as_its_outcome(m):
    held = tuple(fill(m.qemu))
    out = m.do("qemu perf_event_open bp_type=w bp_addr=0x1000 bp_len=8 => ENOSPC")
    assert (out.ok, out.errno, out.holders, out.text) == (True, "ENOSPC", held, "ENOSPC")
    assert "spoken for" in out.rule
    assert not out


def test_a_name_whose_open_was_refused_is_free_again(m):
    held = fill(m.qemu)
    with pytest.raises(dr.Refusal):
        watch(m.qemu, name="A")
    held[0].close()
    assert watch(m.qemu, name="A").name == "A"


def test_default_names_go_round_names_that_are_taken(m):
    watch(m.qemu, name="bp0")
    assert watch(m.qemu).name != "bp0"


# --- who holds what ---------------------------------------------------------------------------------------------------


def test_held_says_who_for_which_scope_and_since_when(m):
    clocks, counters = [], []
    for on in (None, "qemu@cpu0", "cpu0"):
        clocks.append(m.clock)
        counters.append(watch(m.qemu, on=on))
    held = m.cpus[0].slots
    by_owner = {entry.owner: (entry.scope, entry.since) for entry in held if entry}
    scopes = ["task qemu", "task qemu on cpu0", "cpu0"]
    assert by_owner == dict(zip(counters, zip(scopes, clocks, strict=True), strict=True))
    assert [counter.scope for counter in counters] == scopes
    assert held[3] is None
    assert m.cpus[1].slots == (None,) * 4


def test_kgdb_holds_its_slot_since_it_announced_it(m):
    m.do("qemu store 0 1")
    since = m.clock
    m.do("cpu0 nmi kgdb_announce 1")
    assert m.cpus[0].slots[1] == dr.Held(owner=None, scope="cpu0", since=since)


def test_kgdb_holds_its_slot_since_it_set_its_breakpoint(m):
    m.do("cpu0 kgdb_enter => ok")
    m.do("cpu0 kgdb_set w 0xffffffff82000000 8 => ok")
    with pytest.raises(ValueError, match="kgdb has the machine since cpu0 entered it"):
        m.do("cpu0 nmi")
    m.do("cpu0 kgdb_resume => ok")
    held = m.cpus[0].slots[0]
    assert (held.owner, held.scope, held.since) == (None, "cpu0", m.clock - 1)
    refused = m.do("cpu0 nmi kgdb_clear 0x1000 => refused")
    assert (refused.ok, refused.errno) == (True, "refused")
    assert refused.rule == "kgdb has no breakpoint at that address"


def test_a_hit_of_kgdbs_enters_the_debugger(m):
    task = m.task("t")
    m.cpus[0].sched_switch(task)
    m.do("cpu0 nmi kgdb_set w 0xffffffff82000000 8 => ok")
    entered = m.do("t store 0xffffffff82000000 8 mode=kernel => hit kgdb")
    assert (entered.ok, entered.hits, entered.exception, bool(entered)) == (True, (), "kgdb", True)


def test_a_group_is_on_with_its_leader(m):
    task = m.task("t")
    m.cpus[0].sched_switch(task)
    leader = task.perf_event_open(bp_type="w", bp_addr=0x1000, bp_len=8)
    follower = task.perf_event_open(bp_type="w", bp_addr=0x2000, bp_len=8, group=leader)
    assert follower.active
    leader.disable()
    assert not follower.active
    with pytest.raises(dr.Refusal) as refused:
        task.perf_event_open(bp_type="w", bp_addr=0x2000, bp_len=8, group=leader, pinned=True)
    assert refused.value.errno == errno.EINVAL
    assert refused.value.rule == "only the leader of a group can be pinned"


def test_a_counter_is_the_same_wherever_it_is_met(m):
    a = watch(m.qemu)
    hit = m.do("qemu store 0x1000 8").hits[0]
    assert a == hit == m.cpus[0].slots[0].owner
    assert {a: 1}[hit] == 1
    assert a != watch(m.qemu)
    assert a != a.name


def test_counters_of_two_machines_are_two_counters():
    first, second = (watch(dr.Machine().task("sh")) for _ in range(2))
    assert first.name == second.name
    assert first != second


# --- what a line comes to ---------------------------------------------------------------------------------------------


def test_a_hit_is_counted_and_true(m):
    a = watch(m.qemu)
    out = m.do("qemu store 0x1004 1")
    assert out
    assert (out.hits, out.exception, out.text, a.count) == ((a,), None, "hit bp0", 1)


def test_an_outcome_says_whether_the_line_expected_it(m):
    assert m.do("qemu store 0 1").ok is None
    assert m.do("qemu store 0 1 => nothing").ok is True
    out = m.do("cpu0 registers => dr0=1")
    assert out.ok is False
    assert out.registers == m.cpus[0].registers


def test_a_guest_gets_its_db_and_its_dr6(m):
    m.vcpu("v0", task=m.qemu).vm_entry()
    m.do("v0 mov_to_dr 1 0x2000")
    m.do("v0 mov_to_dr 7 0x00900404")
    out = m.do("v0 store 0x2000 8")
    assert (out.exception, out.dr6, out.hits, bool(out)) == ("#DB", dr.DR6(0xFFFF0FF2), (), True)
    assert out.dr6.hits == (1,)
    assert m.do("v0 mov_from_dr 1").value == 0x2000
    assert m.do("v0 mov_to_dr 7 0x100000000").exception == "#GP"


def test_a_tracer_gets_sigtrap(m):
    m.do("sh attach qemu => ok")
    m.do("sh ptrace_poke qemu DR0 0x1000 => ok")
    m.do("sh ptrace_poke qemu DR7 0x00010001 => ok")
    out = m.do("qemu store 0x1000 1")
    assert (out.exception, out.dr6.hits, bool(out)) == ("SIGTRAP", (0,), True)


def test_steps_are_what_was_done(m):
    out = m.do("qemu perf_event_open bp_type=w bp_addr=0x1000 bp_len=8 => A")
    assert "mov dr0, 0x1000" in out.steps
    assert "mov dr7, 0x90202" in out.steps
    assert out.hits == (m.cpus[0].slots[0].owner,)
    assert m.do("qemu store 0x2000 8").steps == ()


def test_a_counter_goes_by_the_name_that_it_was_given(m):
    a = watch(m.qemu, name="A")
    assert m.do("A count").value == 0
    assert m.do("A disable").ok is None
    assert not a.active
    assert m.do("qemu perf_event_open bp_type=w bp_addr=0x2000 bp_len=8 => B").text == "B"
    assert [held and held.owner.name for held in m.cpus[0].slots] == ["B", None, None, None]


def test_any_line_may_have_an_interruption_since_a_machine_has_one_policy(m):
    m.do("qemu perf_event_open bp_type=w bp_addr=0x1000 bp_len=8 @3 cpu0 nmi => A")
    assert m.do("qemu store 0x1000 8 => hit A").ok


def test_an_exit_closes_what_was_opened_last_first():
    """As Debian's 6.12 does under an emulator that logs its MOV DR."""
    machine = dr.Machine(cpus=1)
    machine.task("a")
    for address, name in ((0x1000, "E1"), (0x2000, "E2")):
        machine.do(f"a perf_event_open bp_type=w bp_addr={address:#x} bp_len=8 on=cpu0 => {name}")
    both = machine.cpus[0].hardware.dr7
    steps = machine.do("a exit").steps
    written = [int(step.rpartition(" ")[2], 16) for step in steps if "mov dr7" in step]
    assert len(written) == 2
    # Slot 0, which was taken first, is armed until the end.
    assert written[0] & 0b11 == both & 0b11
    assert written[1] & 0xF == 0


# --- the registers ----------------------------------------------------------------------------------------------------


def test_obtain_reads_no_hardware_and_costs_nothing(m):
    watch(m.qemu)
    with m.measure() as cost:
        assert m.cpus[0].registers.dr7 == 0x00090602
        assert m.cpus[0].breakpoints_active
    assert cost == dr.Cost()


def test_refresh_puts_what_obtain_says_over_whatever_a_guest_left(m):
    cpu = m.cpus[0]
    watch(m.sh)
    m.vcpu("v0", task=m.qemu)
    m.do("v0 set_debugregs dr0=0x20000 dr1=0x21000 dr7=0x00090401")
    m.do("v0 vm_entry")
    m.do("v0 vm_exit")
    assert cpu.hardware.dr1 == 0x21000
    cpu.refresh()
    assert cpu.hardware == cpu.registers


def test_what_is_owed_follows_from_what_was_asked_for(m):
    cpu = m.cpus[0]
    a = watch(m.qemu)
    assert cpu.owed == cpu.hardware
    cpu.sched_switch(None)
    assert cpu.owed == dr.Machine().cpus[0].owed
    cpu.sched_switch(m.qemu)
    a.disable()
    assert cpu.owed.dr7 == 0x400


def test_a_leftover_ge_is_no_active_breakpoint(m):
    watch(m.qemu).close()
    assert m.cpus[0].registers.dr7.ge
    assert not m.cpus[0].breakpoints_active


def test_opening_a_disabled_counter_moves_nobody(m):
    # perf_install_in_context links an event in state OFF without an IPI, unless it is the context's first (5.5).
    first, second = fill(m.qemu, 2)
    first.close()
    slots = m.cpus[0].slots
    assert slots[1].owner == second
    with m.measure() as cost:
        watch(m.qemu, disabled=True)
    assert m.cpus[0].slots == slots
    assert cost == dr.Cost()


@pytest.mark.parametrize("vendor", ["intel", "amd"])
@pytest.mark.parametrize("policy", [policy for policy in PERF_POLICIES if policy not in TOUCHES_ANYWAY])
def test_with_nothing_set_a_switch_an_entry_and_an_exit_touch_nothing(policy, vendor):
    m = dr.Machine(policy=policy, vendor=vendor)
    qemu, sh = m.task("qemu"), m.task("sh")
    v = m.vcpu("v0", task=qemu)
    with m.measure() as cost:
        with v.run():
            pass
        m.cpus[0].sched_switch(sh)
        m.cpus[0].sched_switch(None)
    assert cost == dr.Cost(skips=4)


# --- cost -------------------------------------------------------------------------------------------------------------


def test_measure_fills_in_the_cost_also_after_an_exception(m):
    class Sentinel(Exception):  # noqa: N818 - it is raised to be caught
        pass

    def fails():
        with m.measure() as cost:
            costs.append(cost)
            watch(m.qemu)
            assert cost == dr.Cost()
            raise Sentinel

    costs = []
    with pytest.raises(Sentinel):
        fails()
    assert costs == [dr.Cost(dr_writes=2)]


def test_measures_may_be_nested(m):
    with m.measure() as outer:
        watch(m.qemu)
        with m.measure() as inner:
            watch(m.make)
    assert (inner.dr_writes, outer.dr_writes) == (2, 4)
    assert m.cost == outer


# --- guests -----------------------------------------------------------------------------------------------------------


def test_run_leaves_the_guest_on_an_exception(m):
    v = m.vcpu("v0", task=m.qemu)

    def fails():
        with v.run() as entered:
            assert entered is v
            assert v.in_guest
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert not v.in_guest
    m.do("qemu store 0 1")


def test_run_leaves_alone_a_guest_that_has_left(m):
    v = m.vcpu("v0", task=m.qemu)
    with v.run():
        v.vm_exit("hlt")
        clock = m.clock
    assert m.clock == clock


def test_run_ends_after_the_guests_debugger_got_its_exit(m):
    v = m.vcpu("v0", task=m.qemu)
    m.do("v0 set_guest_debug enable hw dr0=0x3000 dr7=0x000d0402")
    with v.run():
        out = m.do("v0 store 0x3000 4")
        assert not v.in_guest
    assert out
    assert (out.exception, out.dr6.hits) == ("debug", (0,))
    assert out.text.startswith("exit debug dr6=")
    with v.run():
        assert v.in_guest


def test_a_guest_is_not_entered_twice(m):
    v = m.vcpu("v0", task=m.qemu)
    with v.run():
        with pytest.raises(ValueError, match="cpu0 runs the guest of v0: vm_exit comes first"):
            v.vm_entry()
        with pytest.raises(ValueError, match="vm_exit comes first"), v.run():
            pass
        assert v.in_guest
    with pytest.raises(ValueError, match="the guest of v0 is not running: cpu0 runs qemu; vm_entry comes first"):
        v.vm_exit()


def test_own_is_what_the_guest_is_entitled_to_read(m):
    v = m.vcpu("v0", task=m.qemu)
    watch(m.qemu)
    with v.run():
        m.do("v0 mov_to_dr 2 0x2000")
    assert v.own == (0, 0, 0x2000, 0, dr.DR6(), dr.DR7())


# --- how things show themselves ---------------------------------------------------------------------------------------


def test_everything_has_a_repr_that_says_what_it_is(m):
    a = watch(m.qemu, name="A")
    v = m.vcpu("v0", task=m.qemu)
    shown = {
        "<Machine linux on amd, 2 CPUs>": m,
        "<Cpu 0: qemu>": m.cpus[0],
        "<Task qemu>": m.qemu,
        "<Vcpu v0>": v,
        "<Counter A: task qemu>": a,
        "<Outcome nothing>": m.do("qemu store 0 1"),
        "Held(owner=<Counter A: task qemu>, scope='task qemu', since=3)": m.cpus[0].slots[0],
        "Registers(dr0=0x1000, dr1=0x0, dr2=0x0, dr3=0x0, dr6=DR6(0xffff0ff0), dr7=DR7(0x00090602))": m.cpus[
            0
        ].registers,
        "Cost(dr_writes=2, dr_reads=0, vmcs=0, vm_exits=0, skips=0)": m.cost,
    }
    assert {repr(thing): thing for thing in shown.values()} == shown


def test_registers_print_as_the_call_that_makes_them(m):
    watch(m.qemu)
    names = {"Registers": dr.Registers, "DR6": dr.DR6, "DR7": dr.DR7}
    assert eval(repr(m.cpus[0].registers), names) == m.cpus[0].registers  # noqa: S307 - it is our own repr


def test_a_cpu_shows_who_runs(m):
    cpu = m.cpus[0]
    assert cpu.running is m.qemu
    assert (m.qemu.running, m.sh.running, m.make.running) == (True, False, True)
    cpu.sched_switch(m.sh)
    assert (repr(cpu), cpu.running) == ("<Cpu 0: sh>", m.sh)
    cpu.sched_switch(None)
    assert (repr(cpu), cpu.running) == ("<Cpu 0: idle>", None)


def test_a_forked_child_that_runs_is_not_the_idle_task(m):
    m.do("qemu fork kid")
    m.do("cpu0 sched_switch kid")
    assert m.cpus[0].running is not None
    assert m.cpus[0].running.name == "kid"
    assert repr(m.cpus[0]) == "<Cpu 0: kid>"


# --- more than one ----------------------------------------------------------------------------------------------------


def test_two_machines_do_not_know_of_each_other():
    first, second = dr.Machine(policy="linux"), dr.Machine(policy="skip")
    a, b = watch(first.task("sh"), name="A"), watch(second.task("sh"), 0x2000, name="A")
    first.do("sh store 0x1000 8 => hit A")
    assert (a.count, b.count) == (1, 0)
    a.close()
    assert (first.cpus[0].slots[0], second.cpus[0].slots[0].owner) == (None, b)
    assert (first.clock, second.clock) == (4, 2)


def test_several_threads_may_use_one_machine():
    m = dr.Machine(cpus=4)
    tasks = [m.task(f"t{n}", cpu=n) for n in range(4)]
    counters = [watch(task) for task in tasks]
    barrier = threading.Barrier(8)

    def work(n):
        barrier.wait()
        for _ in range(500):
            m.do(f"t{n % 4} store 0x1000 8")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert [counter.count for counter in counters] == [1000] * 4
    assert m.clock == 8 + 8 * 500


def test_threads_that_race_for_the_slots_get_four_in_all(m):
    barrier = threading.Barrier(8)

    def work(_):
        barrier.wait()
        with suppress(dr.Refusal):
            return watch(m.qemu)

    with ThreadPoolExecutor(8) as pool:
        got = [counter for counter in pool.map(work, range(8)) if counter]
    assert len(got) == 4
    assert {held.owner for held in m.cpus[0].slots} == set(got)
    assert len({counter.name for counter in got}) == 4
