"""What a machine refuses to be or to do, and how it says so; and that nothing makes it panic."""

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import state, watch

import debugreg as dr

POLICIES = [row.name for row in dr.policies()]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cpus": 0}, r"cpus must be 1 to 256 \(got 0\)"),
        ({"cpus": 257}, r"cpus must be 1 to 256 \(got 257\)"),
        ({"cpus": -1}, r"cpus must be 1 to 256 \(got -1\)"),
        ({"slots": 5}, r"slots must be 1 to 4 \(got 5\)"),
        ({"vendor": "via"}, "vendor must be 'intel' or 'amd'"),
        ({"policy": "lunix"}, "unknown policy 'lunix': allowed are linux-2.6.30, .*, linux$"),
        ({"policy": "linux+H-99"}, "unknown delta 'H-99': allowed are announce, .*H-01"),
        ({"policy": "linux+H-01=maybe"}, "delta H-01 can be 'on' or 'fixed', not 'maybe'"),
    ],
    ids=repr,
)
def test_a_machine_that_cannot_be_is_a_value_error(options, message):
    with pytest.raises(ValueError, match=message):
        dr.Machine(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cpu": 2}, r"cpu must be 0 to 1 \(got 2\)"),
        ({"cpu": -1}, r"cpu must be 0 to 1 \(got -1\)"),
        ({"caps": "god"}, "caps must be 'root', 'perfmon' or 'none'"),
        ({"bits": 16}, r"bits must be 64 or 32 \(got 16\)"),
        ({"name": "qemu"}, "'qemu' is taken already"),
        ({"name": "2fast"}, "found '2fast', allowed is a name"),
        ({"name": ""}, "allowed is a name"),
        ({"name": "ENOSPC"}, "'ENOSPC' is a word of the language"),
        ({"name": "close"}, "'close' is a word of the language"),
        ({"name": "cpu0"}, "'cpu0' is a word of the language"),
    ],
    ids=repr,
)
def test_a_task_that_cannot_be_is_a_value_error(m, options, message):
    with pytest.raises(ValueError, match=message):
        m.task(**{"name": "new"} | options)
    m.task("new")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bp_type": "q"}, "bp_type: found 'q', allowed are r, w, rw and x"),
        ({"bp_addr": -1}, "bp_addr: found '-1'"),
        ({"bp_addr": 1 << 64}, "bp_addr: found '18446744073709551616', allowed is a number below 2.64"),
        ({"bp_len": -8}, "bp_len: found '-8'"),
        ({"on": "cpu7"}, "found 'cpu7', allowed is cpu0 to cpu1"),
        ({"on": "nobody"}, "found 'nobody', allowed is a task: qemu, sh, make"),
        ({"name": "qemu"}, "'qemu' is taken already"),
        ({"name": "9lives"}, "'9lives'"),
        ({"name": "ENOSPC"}, "'ENOSPC' is a word of the language"),
        ({"name": "nothing"}, "'nothing' is a word of the language"),
        ({"name": "ok"}, "'ok' is a word of the language"),
        ({"name": "two words"}, "name"),
        ({"name": "A # comment"}, "name"),
        ({"name": ""}, "name"),
    ],
    ids=repr,
)
def test_an_open_that_cannot_be_is_a_value_error(m, options, message):
    before = state(m)
    with pytest.raises(ValueError, match=message):
        watch(m.qemu, **options)
    assert state(m) == before


def test_a_message_about_an_argument_speaks_of_no_column(m):
    with pytest.raises(ValueError, match="bp_addr") as mistake:
        watch(m.qemu, -1)
    assert "column" not in str(mistake.value)


@pytest.mark.parametrize("thread", ["qemu", None, 1], ids=repr)
def test_a_vcpu_has_a_task(m, thread):
    with pytest.raises(TypeError):
        m.vcpu("v0", task=thread)


def test_what_does_not_run_is_a_value_error_that_names_who_does(m):
    m.vcpu("v0", task=m.sh)
    for line in ("sh store 0 1", "sh exit", "v0 vm_entry"):
        with pytest.raises(ValueError, match="sh is not running: cpu0 runs qemu"):
            m.do(line)
    with pytest.raises(ValueError, match="the guest of v0 is not running: cpu0 runs qemu; vm_entry comes first"):
        m.do("v0 store 0 1")
    m.cpus[0].sched_switch(None)
    with pytest.raises(ValueError, match="qemu is not running: cpu0 runs idle"):
        m.do("qemu store 0 1")


def test_a_task_runs_on_its_own_cpu_only(m):
    with pytest.raises(ValueError, match="sh belongs to cpu0: migrate comes first"):
        m.cpus[1].sched_switch(m.sh)


def test_a_counter_that_is_closed_says_so(m):
    a = watch(m.qemu, name="A")
    a.close()
    for act in (a.close, a.enable, a.disable, lambda: m.do("A count")):
        with pytest.raises(ValueError, match="A is closed"):
            act()
    assert not a.active


def test_what_a_kernel_has_no_word_for_is_a_value_error():
    m = dr.Machine(policy="linux-2.6.30")
    with pytest.raises(ValueError, match="not expressible under this policy: cpu-wide breakpoints came with perf"):
        watch(m.task("sh"), on="cpu0")


def test_a_kernel_without_a_shadow_makes_no_registers_up():
    # Up to 2.6.32 there was no hw_breakpoint_restore, and nothing to obtain the registers from: to say so is right too.
    m = dr.Machine(policy="linux-2.6.30")
    a, cpu = watch(m.task("sh")), m.cpus[0]
    with suppress(ValueError):
        assert cpu.breakpoints_active
    with suppress(ValueError):
        assert cpu.registers == cpu.hardware
    with suppress(ValueError):
        cpu.refresh()
    assert m.do("sh store 0x1000 8").hits == (a,)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "no event"),
        ("# a comment", "no event"),
        ("nobody store 0 1", "column 1: found 'nobody', allowed is an actor: cpu0 to cpu1, kernel, qemu, sh, make"),
        ("qemu dance", "column 6: found 'dance', allowed events of a task are"),
        ("qemu store 0 1 => maybe", "column 19: found 'maybe'"),
        ("qemu store 0 1\nqemu store 0 1", "found 'qemu'"),
        ("cpu2 nmi", "column 1: found 'cpu2', allowed is cpu0 to cpu1"),
    ],
    ids=repr,
)
def test_a_line_that_cannot_be_read_says_where_and_what_could_stand_there(m, line, message):
    clock = m.clock
    with pytest.raises(ValueError, match=message):
        m.do(line)
    assert m.clock == clock


@pytest.mark.parametrize("line", ["sh fork kid", "qemu fork kid @1 cpu0 nothing", "qemu fork kid => dance"], ids=repr)
def test_a_line_that_raises_names_nothing(m, line):
    with pytest.raises(ValueError, match=r"."):
        m.do(line)
    assert m.do("qemu fork kid => ok").ok
    m.task("late")
    m.do("cpu0 sched_switch late")
    m.do("late store 0 1 => nothing")


def test_a_task_added_after_a_line_that_raised_is_the_one_that_is_named(m):
    with suppress(ValueError):
        m.do("qemu fork kid @1 cpu0 nmi")
    m.task("late")
    m.do("cpu0 sched_switch late")
    assert m.do("late store 0 1 => nothing").ok


@pytest.mark.parametrize(
    "act",
    [
        lambda m, other: m.cpus[0].sched_switch(other),
        lambda m, other: m.vcpu("v0", task=other),
    ],
    ids=["sched_switch", "vcpu"],
)
def test_a_handle_of_another_machine_is_a_value_error(m, act):
    other = dr.Machine().task("other")
    with pytest.raises(ValueError, match="machine"):
        act(m, other)
    assert m.cpus[0].running is m.qemu


WORDS = [
    *("qemu", "sh", "v0", "A", "B", "kid", "cpu0", "cpu1", "idle", "bp_type=w", "bp_type=x", "bp_addr=0x1000"),
    *("bp_len=8", "on=cpu0", "on=sh", "on=qemu@cpu1", "inherit", "pinned", "disabled", "perf_event_open", "close"),
    *("enable", "disable", "count", "modify", "ptrace_poke", "ptrace_peek", "attach", "detach", "fork", "exec", "exit"),
    *("migrate", "load", "store", "execute", "io", "mov_to_dr", "mov_from_dr", "sched_switch", "registers", "refresh"),
    *("hardware", "owed", "slots", "nmi", "kgdb_announce", "kgdb_release", "vm_entry", "vm_exit", "set_guest_debug"),
    *("get_debugregs", "set_debugregs", "init", "enable", "hw", "step", "dr0=0x1000", "dr7=0xd0402", "reason=db"),
    *("reason=dr", "DR0", "DR6", "DR7", "0", "1", "2", "3", "6", "7", "0x1000", "0xd0402", "0xffffffffffffffff"),
    *("=>", "ok", "hit", "@1", "@3", "=", "#", "emulated", "mode=kernel", "cpl=3", "dr6=1"),
]
OPEN = "perf_event_open bp_type=w bp_addr=0x1000 bp_len=8"
LIKELY = [
    *(f"qemu {OPEN} => A", f"sh {OPEN} inherit => B", f"qemu {OPEN} on=cpu0 pinned", f"sh {OPEN} on=qemu disabled"),
    *("A close", "A disable", "B enable", "A modify bp_addr=0x2000", "qemu fork kid", "qemu exit", "qemu exec"),
    *("cpu0 sched_switch qemu", "cpu0 sched_switch sh", "cpu0 sched_switch kid", "cpu0 sched_switch idle"),
    *("qemu migrate cpu1", "sh migrate cpu1", "v0 vm_entry", "v0 vm_exit reason=dr", "v0 mov_to_dr 7 0xd0402"),
    *("v0 set_guest_debug enable hw dr0=0x1000 dr7=0xd0402", "v0 store 0x1000 8", "qemu store 0x1000 8", "v0 init"),
    *("sh attach qemu", "sh ptrace_poke qemu DR7 0xd0402", "sh ptrace_peek qemu DR7", "sh detach qemu"),
    *("cpu0 nmi kgdb_announce 0", "cpu0 nmi kgdb_release 0", "cpu0 refresh", "cpu0 owed", "v0 get_debugregs"),
    *("sh fork kid", "qemu fork kid @1 cpu0 nmi", f"qemu {OPEN} @2 sh fork kid", f"qemu {OPEN} @2 sh {OPEN} => A"),
]
line = st.one_of(st.sampled_from(LIKELY), st.lists(st.sampled_from(WORDS), min_size=1, max_size=7).map(" ".join))


@settings(deadline=None)
@given(st.sampled_from(POLICIES), st.sampled_from(["intel", "amd"]), st.lists(line, max_size=30))
def test_no_line_makes_it_panic(policy, vendor, lines):
    m = dr.Machine(cpus=2, policy=policy, vendor=vendor)
    qemu = m.task("qemu")
    m.task("sh")
    m.vcpu("v0", task=qemu)
    for text in lines:
        with suppress(ValueError):
            m.do(text)
    m.task("late", cpu=1)
    for act in (lambda: state(m), lambda: m.do("late store 0 1")):
        with suppress(ValueError):
            act()


@settings(deadline=None)
@given(policy=st.sampled_from(POLICIES), lines=st.lists(st.sampled_from(LIKELY), max_size=20))
def test_no_file_makes_it_panic(tmp_path_factory, policy, lines):
    file = tmp_path_factory.getbasetemp() / "x.scn"
    declared = f"machine cpus=2 policy={policy}\ntask qemu\ntask sh\nvcpu v0 task=qemu\n"
    file.write_text(declared + "\n".join(lines))
    with suppress(dr.ScenarioError):
        dr.run(file, steps=True)
