"""The world `vm`: a stock Debian kernel under QEMU's emulation, booted once; the corpus and random scenarios agree."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import debugreg as dr
from debugreg._vm.machine import Machine

SCENARIOS = Path(__file__).parents[1] / "scenarios"
FOLDERS = ("host", "mail", "anomalies", "kvm", "kernel", "guide", "emulated")

# Where the emulator does other than a processor does, or more happens inside a line than the comparison knows.
EXCEPT = {
    "debugger-anything-goes": "QEMU does not align a debugger's watchpoint: no exit, and a line needs one",
    "debugger-upper-half": "QEMU enters with bits 63:32 of DR7 set, and faults inside",
}
ALL = sorted(file for folder in FOLDERS for file in (SCENARIOS / folder).glob("*.scn"))
FILES = [file for file in ALL if file.stem not in EXCEPT]

# A tracee that is poked leaves its CPU, on which the driver lets others run, and comes back: twice here.
POKED = """\
machine cpus=1 decode_assists=0 cpu=tcg
task a cpu=0
task b cpu=0
task c cpu=0
a attach b => ok
b attach c => ok
c perf_event_open bp_type=w bp_addr=0x1004 bp_len=1 => E3
a fork k4 => ok
cpu0 sched_switch k4 => ok
a ptrace_poke b DR3 0x1000 => ok
cpu0 sched_switch c => ok
b ptrace_poke c DR6 0xffff0ff0 => ok
b ptrace_poke c DR6 0x0 => ok
"""


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Return the comparison of the corpus and of a hundred random scenarios with Debian's 6.12: one boot."""
    poked = tmp_path_factory.mktemp("vm") / "poked.scn"
    poked.write_text(POKED)
    try:
        return dr.conform([*FILES, poked], count=100, seed=1, world="vm")
    except dr.WorldError as error:
        pytest.skip(str(error))


def test_model_and_emulated_kernel_agree_to_the_last_mov_dr(compared):
    assert [(one.scenario, one.line, one.expected, one.observed) for one in compared.differences] == []
    assert compared
    assert compared.world == "vm"
    assert compared.scenarios > 250
    assert compared.steps > 3000
    assert compared.moves > 1000


def test_what_is_left_out_is_there():
    assert {file.stem for file in ALL} >= set(EXCEPT)


def test_what_is_missing_is_said_with_the_command_that_gets_it(tmp_path):
    """Nothing is in the cache, and there is nobody to fetch it."""
    file = tmp_path / "x.scn"
    file.write_text("task a\na store 0x1000 8 => nothing\n")
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "PATH": str(tmp_path)}
    command = [sys.executable, "-m", "debugreg", "run", "--on", "vm", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 3
    assert "apt-get install" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not done.stdout


def test_a_machine_that_hangs_is_started_again_once():
    started, answers = [], [dr.WorldError("it has hung"), ("result", None, b"", b"")]

    class Fake(Machine):
        def __init__(self):
            self._tell = None

        def _start(self):
            started.append(True)

        def close(self):
            pass

        def _ask(self, message):
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

    assert Fake().perform("task a", False, False) == ("result", None, b"", b"")
    assert len(started) == 1
    answers[:] = [dr.WorldError("it has hung")] * 2
    with pytest.raises(dr.WorldError, match="in the scenario\ntask a"):
        Fake().perform("task a", False, False)
