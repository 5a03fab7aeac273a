"""The world `kernel`, its guests: vCPUs of /dev/kvm do what scenarios say, and what they cannot show is said.

The answers in RECORDED were taken by programs of their own, before there was this driver, from kvm-pvm on 6.18,
kvm-amd on 6.12 under QEMU and kvm-intel on 6.1 under Bochs.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import debugreg as dr
from debugreg import _core

SCENARIOS = Path(__file__).parents[1] / "scenarios"
FILES = sorted(
    file
    for folder in ("kvm", "mail", "bugs", "guide")
    for file in (SCENARIOS / folder).glob("*.scn")
    if "vcpu" in file.read_text(encoding="utf-8")
)
DEBUGREG = [sys.executable, "-m", "debugreg"]

PROBE = """\
task t
vcpu v task=t
v set_debugregs dr0=0x1000 dr7=0x00090401
v vm_entry
v store 0x1000 8
"""


def perform(text):
    """Return what came of each line on the running kernel: the outcome, or why there is none, in parentheses."""
    world = _core.KernelWorld()
    try:
        result, trouble = world.run(text, False)
    finally:
        world.close()
    if result is None:
        raise dr.WorldError(trouble[3])
    return [observed if observed is not None else f"({why})" for _, _, _, observed, _, why in result[1]]


def look():
    """Return why there are no guests, if there are none, and whether those that there are are emulated."""
    try:
        *_, entry, store = perform(PROBE)
    except dr.WorldError as error:
        return str(error), False
    return (None if entry == "ok" else entry), "emulates" in store


MISSING, EMULATED = look()
needs_guests = pytest.mark.skipif(MISSING is not None, reason=f"no guests: {MISSING}")
needs_emulated = pytest.mark.skipif(MISSING is not None or not EMULATED, reason=MISSING or "guests are executed here")


@needs_guests
@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_no_expectation_of_a_scenario_fails_on_the_running_kernel(file):
    (report,) = dr.run(file, world="kernel")
    assert [(step.line, step.event, step.expected, step.observed) for step in report.steps if step.ok is False] == []
    assert all((step.observed is None) == (step.unobserved is not None) for step in report.steps)


# --- the probes of before ---------------------------------------------------------------------------------------------

HEAD = "task t\nvcpu v task=t\n"

RECORDED = {
    "debugregs-initial": [("v get_debugregs", "dr0=0x0 dr1=0x0 dr2=0x0 dr3=0x0 dr6=0xffff0ff0 dr7=0x00000400")],
    "set-debugregs": [
        ("v set_debugregs dr6=0 dr7=0", "ok"),
        ("v get_debugregs", "dr0=0x0 dr1=0x0 dr2=0x0 dr3=0x0 dr6=0x00000000 dr7=0x00000000"),
        ("v set_debugregs dr6=0x100000000", "EINVAL"),
        ("v set_debugregs dr7=0x100000000", "EINVAL"),
        ("v set_debugregs dr7=0xffffffff", "ok"),
        ("v set_debugregs dr0=0x800000000000 dr3=0xffffffffffffffff dr6=0xffff0ff0 dr7=0x400", "ok"),
        (
            "v get_debugregs",
            "dr0=0x800000000000 dr1=0x0 dr2=0x0 dr3=0xffffffffffffffff dr6=0xffff0ff0 dr7=0x00000400",
        ),
    ],
    "set-guest-debug": [
        ("v set_guest_debug enable", "ok"),
        ("v set_guest_debug", "ok"),
        ("v set_guest_debug hw", "ok"),
        ("v set_guest_debug enable hw dr7=0x100000400", "ok"),
        ("v set_guest_debug enable hw dr7=0x2400", "ok"),
        ("v set_guest_debug enable hw dr0=0x800000000000 dr7=0x20402", "ok"),
        ("v set_guest_debug enable step", "ok"),
        ("v set_guest_debug enable sw", "ok"),
        ("v set_guest_debug inject_db", "ok"),
        ("v set_guest_debug inject_bp", "EBUSY"),
    ],
    "guest-dr-readback": [
        ("v vm_entry", "ok"),
        ("v mov_to_dr 0 0x11111111", "ok"),
        ("v mov_from_dr 0", "0x11111111"),
        ("v mov_from_dr 6", "0xffff0ff0"),
        ("v mov_from_dr 7", "0x400"),
        ("v mov_to_dr 6 0", "ok"),
        ("v mov_from_dr 6", "0xffff0ff0"),
        ("v mov_to_dr 7 0", "ok"),
        ("v mov_from_dr 7", "0x400"),
        ("v mov_to_dr 7 0x300", "ok"),
        ("v mov_from_dr 7", "0x700"),
    ],
    "guest-dr4-dr5": [
        ("v vm_entry", "ok"),
        ("v mov_to_dr 4 0xffff4ff1", "ok"),
        ("v mov_from_dr 4", "0xffff4ff1"),
        ("v mov_from_dr 6", "0xffff4ff1"),
        ("v mov_from_dr 5", "0x400"),
        ("v mov_from_dr 7", "0x400"),
    ],
    "guest-gd": [
        ("v vm_entry", "ok"),
        ("v mov_to_dr 7 0x2400", "ok"),
        ("v mov_from_dr 0", "#DB dr6=0xffff2ff0 fault"),
        ("v mov_from_dr 7", "0x400"),
        ("v mov_from_dr 6", "0xffff2ff0"),
        ("v mov_to_dr 7 0x2400", "ok"),
        ("v mov_to_dr 1 0x1000", "#DB dr6=0xffff2ff0 fault"),
        ("v mov_from_dr 1", "0"),
    ],
    "guest-dr-upper": [
        ("v vm_entry", "ok"),
        ("v mov_to_dr 7 0x100000000", "#GP"),
        ("v mov_to_dr 6 0x100000000", "#GP"),
        ("v mov_to_dr 0 0x800000000000", "ok"),
        ("v vm_exit reason=hlt", "ok"),
        ("v get_debugregs", "dr0=0x800000000000 dr1=0x0 dr2=0x0 dr3=0x0 dr6=0xffff0ff0 dr7=0x00000400"),
    ],
    "guest-exec-bp": [
        ("v vm_entry", "ok"),
        ("v mov_to_dr 0 0x10010", "ok"),
        ("v mov_to_dr 7 0x401", "ok"),
        ("v execute 0x10010", "#DB dr6=0xffff0ff1 fault"),
        ("v mov_from_dr 6", "0xffff0ff1"),
    ],
    "guest-io-bp": [
        ("v vm_entry", "ok"),
        ("v mov_to_dr 0 0x30", "ok"),
        ("v mov_to_dr 7 0x20401", "ok"),
        ("v io 0x30 1", "nothing"),
    ],
    "guest-tf": [("v vm_entry", "ok"), ("v execute 0x10010 insn=popf_tf", "#DB dr6=0xffff4ff0")],
    "gdb-inject": [
        ("v set_guest_debug inject_db", "ok"),
        ("v vm_entry", "ok"),
        ("v mov_from_dr 6", "0xffff0ff0"),
    ],
    "host-lazy-dr": [
        ("t perf_event_open bp_type=w bp_addr=0x30000 bp_len=8 => A", "A"),
        ("v vm_entry", "ok"),
        ("v mov_to_dr 0 0x200", "ok"),
        ("v mov_to_dr 3 0x203", "ok"),
        ("v vm_exit", "ok"),
        ("t store 0x30000 8", "hit A"),
        ("v vm_entry", "ok"),
        ("v mov_from_dr 0", "0x200"),
        ("v mov_from_dr 3", "0x203"),
    ],
    "host-dr6-leak": [
        ("t perf_event_open bp_type=w bp_addr=0x30000 bp_len=8 => A", "A"),
        ("t store 0x30000 8", "hit A"),
        ("v vm_entry", "ok"),
        ("v mov_from_dr 6", "0xffff0ff0"),
        ("v vm_exit", "ok"),
        ("t store 0x30000 8", "hit A"),
        ("v vm_entry", "ok"),
        ("v mov_from_dr 6", "0xffff0ff0"),
    ],
}
"""By probe: what was done, and what all of them answered."""

DATA = "(this KVM emulates a guest's instructions (kvm-pvm), and its emulator knows no data breakpoints)"

RECORDED_EMULATED = {
    "guest-dr-readback": [
        ("v vm_entry", "ok"),
        ("v mov_to_dr 6 0xffffffff", "ok"),
        ("v mov_from_dr 6", "0xffffefff"),
        ("v mov_to_dr 7 0xffffdc00", "ok"),
        ("v mov_from_dr 7", "0xffff0c00"),
    ],
    "guest-data-bp": [
        ("v vm_entry", "ok"),
        ("v mov_to_dr 0 0x20010", "ok"),
        ("v mov_to_dr 7 0x10401", "ok"),
        ("v store 0x20010 1", DATA),
        ("v vm_exit reason=hlt", "ok"),
        ("v get_debugregs", "dr0=0x20010 dr1=0x0 dr2=0x0 dr3=0x0 dr7=0x00010401"),
    ],
    "guest-icebp": [
        ("v vm_entry", "ok"),
        ("v execute 0x10010 insn=icebp", "(KVM's emulator does not know the instruction)"),
        ("v vm_exit", "ok"),
    ],
    "gdb-exec-bp": [
        ("v set_guest_debug enable hw dr0=0x10010 dr7=0x402", "ok"),
        ("v vm_entry", "ok"),
        ("v execute 0x10010", "exit debug dr6=0xffff0ff1"),
        ("v vm_entry", "ok"),
        ("v mov_from_dr 6", "0xffff0ff0"),
        ("v mov_from_dr 7", "0x400"),
    ],
    "gdb-singlestep": [
        ("v set_guest_debug enable step", "ok"),
        ("v vm_entry", "ok"),
        ("v execute 0x10010", "exit debug dr6=0xffff4ff0"),
        ("v vm_entry", "ok"),
        ("v mov_to_dr 0 0x1234", "exit debug dr6=0xffff4ff0"),
        ("v get_debugregs", "dr0=0x1234 dr1=0x0 dr2=0x0 dr3=0x0 dr6=0xffff0ff0 dr7=0x00000400"),
    ],
    "host-perf+gdb": [
        ("t perf_event_open bp_type=w bp_addr=0x30000 bp_len=8 => A", "A"),
        ("t perf_event_open bp_type=w bp_addr=0x30008 bp_len=8 => B", "B"),
        ("t perf_event_open bp_type=w bp_addr=0x30010 bp_len=8 => C", "C"),
        ("t perf_event_open bp_type=w bp_addr=0x30018 bp_len=8 => D", "D"),
        ("v set_guest_debug enable hw dr0=0x20010 dr1=0x20018 dr2=0x20020 dr3=0x20028 dr7=0x111104aa", "ok"),
        ("v vm_entry", "ok"),
        ("v store 0x20010 1", DATA),
        ("t store 0x30000 8", "hit A"),
        ("t perf_event_open bp_type=w bp_addr=0x30020 bp_len=8", "ENOSPC"),
    ],
}
"""What kvm-pvm answered; what it cannot show is said."""


def compare(recorded):
    seen = perform(HEAD + "".join(f"{line}\n" for line, _ in recorded))
    lines = [line for line, _ in recorded]
    assert list(zip(lines, seen, strict=True)) == recorded


@needs_guests
@pytest.mark.parametrize("probe", RECORDED)
def test_a_probe_comes_out_as_recorded(probe):
    compare(RECORDED[probe])


@needs_emulated
@pytest.mark.parametrize("probe", RECORDED_EMULATED)
def test_a_probe_of_kvm_pvm_comes_out_as_recorded(probe):
    compare(RECORDED_EMULATED[probe])


# --- what is observed -------------------------------------------------------------------------------------------------


@needs_guests
def test_a_wrong_expectation_fails(tmp_path):
    file = tmp_path / "wrong.scn"
    file.write_text(
        "task t\nvcpu v task=t\nv vm_entry => ok\nv mov_from_dr 7 => 0x401\nv execute 0x1000 => #DB\nv vm_exit => ok\n"
    )
    (report,) = dr.run(file, world="kernel")
    assert not report
    assert [(step.observed, step.ok) for step in report.steps] == [
        ("ok", True),
        ("0x400", False),
        ("nothing", False),
        ("ok", True),
    ]


@needs_guests
def test_a_guest_stays_in_while_others_act():
    # In the model only an interrupt disturbs it; the guest keeps what it has in its registers.
    seen = perform(
        "task t\ntask o\nvcpu v task=t\nv vm_entry\nv mov_to_dr 0 0x10010\nv mov_to_dr 7 0x401\n"
        "o perf_event_open bp_type=w bp_addr=0x30000 bp_len=8 on=cpu0 => A\n"
        "o perf_event_open bp_type=w bp_addr=0x30008 bp_len=8 on=t => B\n"
        "v execute 0x10010\nA close\nB disable\nv mov_from_dr 0\nB enable\nv vm_exit reason=intr\nt store 0x30008 8\n"
    )
    assert seen == ["ok", "ok", "ok", "A", "B", "#DB dr6=0xffff0ff1 fault", "ok", "ok", "0x10010", "ok", "ok", "hit B"]


@needs_guests
def test_two_guests_of_one_task_and_two_of_two_cpus_do_not_mix():
    text = (
        "machine cpus=2\ntask t cpu=0\ntask o cpu=1\nvcpu v task=t\nvcpu w task=t\nvcpu x task=o\n"
        "v vm_entry\nv mov_to_dr 0 0x1\nx vm_entry\nx mov_to_dr 0 0x2\nv vm_exit\nw vm_entry\nw mov_from_dr 0\n"
        "w mov_to_dr 0 0x3\nw vm_exit\nv vm_entry\nv mov_from_dr 0\nx mov_from_dr 0\nw get_debugregs\n"
    )
    seen = perform(text)
    assert [seen[at] for at in (6, 10, 11)] == ["0", "1", "2"]
    assert seen[12].startswith("dr0=0x3 ")


@needs_guests
def test_what_a_guest_cannot_touch_is_said():
    seen = perform(f"{HEAD}v vm_entry\nv store 0x800000000000 8\nv store 0x1000 32\nv mov_from_dr 7\n")
    assert seen[1:] == ["(nothing can be mapped there)", "(this driver has no such access)", "0x400"]


@needs_guests
def test_a_vmm_that_becomes_another_program_loses_its_guest():
    seen = perform(f"{HEAD}v vm_entry\nv vm_exit\nt exec\nv vm_entry\n")
    assert seen == ["ok", "ok", "ok", "(its VMM has become another program)"]


@needs_emulated
def test_what_would_follow_from_a_missed_hit_is_unobserved_until_something_else_fills_the_register():
    seen = perform(
        f"{HEAD}v set_debugregs dr0=0x1000 dr1=0x2000 dr7=0x00090405\nv vm_entry\nv store 0x1000 8\n"
        "v mov_from_dr 6\nv mov_from_dr 7\nv execute 0x2000\nv mov_from_dr 6\n"
    )
    assert seen[2] == DATA
    assert "a breakpoint before it would have changed this" in seen[3]
    assert seen[4:] == ["0x90405", "#DB dr6=0xffff0ff2 fault", "0xffff0ff2"]


@needs_guests
def test_random_scenarios_with_guests_come_to_the_same_in_both_worlds():
    result = dr.conform(count=200, seed=1, guests=True)
    assert [difference.scenario for difference in result.differences] == []
    assert result
    assert result.scenarios == 200
    assert result.steps > 3000


@needs_guests
def test_the_corpus_with_guests_comes_to_the_same_in_both_worlds():
    result = dr.conform(FILES)
    assert [difference.scenario for difference in result.differences] == []
    assert result.scenarios > 30


def test_random_scenarios_with_guests_are_another_kind():
    texts = [_core.random_scenario(seed, guests=True) for seed in range(50)]
    assert texts == [_core.random_scenario(seed, guests=True) for seed in range(50)]
    assert all("vcpu" in text for text in texts)
    assert not any("vcpu" in _core.random_scenario(seed) for seed in range(50))


# --- what it leaves behind --------------------------------------------------------------------------------------------


def machines():
    """Return the processes that have a VM."""
    found = set()
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if "kvm-vm" in str(descriptor.readlink()) and int(descriptor.parts[2]) != os.getpid():
                found.add(int(descriptor.parts[2]))
        except OSError:  # It is gone.
            continue
    return found


def wait_until(condition):
    end = time.monotonic() + 10
    while not (result := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return result


@needs_guests
def test_no_machine_is_left_behind():
    before = machines()
    perform(f"{HEAD}v vm_entry\n")
    assert wait_until(lambda: machines() <= before)


@needs_guests
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_no_machine_is_left_behind_by_a_driver_that_is_ended(end):
    before = machines()
    driver = subprocess.Popen(
        [*DEBUGREG, "conform", "--guests", "--count", "1000000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert wait_until(lambda: machines() - before)
    driver.send_signal(end)
    _, said = driver.communicate(timeout=20)
    assert driver.returncode == (130 if end == signal.SIGINT else -end)
    assert "Traceback" not in said
    assert wait_until(lambda: machines() <= before)
    assert perform(f"{HEAD}v vm_entry\n") == ["ok"]
