"""The world `kernel`: scenarios hold there, what it lacks is said, and nothing is left behind."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import debugreg as dr
from debugreg import _core

SCENARIOS = Path(__file__).parents[1] / "scenarios"
FILES = sorted(file for folder in ("host", "mail", "anomalies") for file in (SCENARIOS / folder).glob("*.scn"))
DEBUGREG = [sys.executable, "-m", "debugreg"]

FULL = """\
machine cpus=2
task a cpu=0
task b cpu=1
a perf_event_open bp_type=w bp_addr=0x1000 bp_len=8 on=cpu0 => A0
a perf_event_open bp_type=w bp_addr=0x1000 bp_len=8 on=cpu0 => A1
a perf_event_open bp_type=w bp_addr=0x1000 bp_len=8 on=cpu0 => A2
a perf_event_open bp_type=w bp_addr=0x1000 bp_len=8 on=cpu0 => A3
b perf_event_open bp_type=w bp_addr=0x1000 bp_len=8 on=cpu1 => B0
b perf_event_open bp_type=w bp_addr=0x1000 bp_len=8 on=cpu1 => B1
b perf_event_open bp_type=w bp_addr=0x1000 bp_len=8 on=cpu1 => B2
b perf_event_open bp_type=w bp_addr=0x1000 bp_len=8 on=cpu1 => B3
a perf_event_open bp_type=w bp_addr=0x1000 bp_len=8 on=cpu0 => ENOSPC
a store 0x1000 8 => hit A0 A1 A2 A3
"""
"""Holds if, and only if, every slot of two CPUs is free before it."""

OVERCOMMIT = SCENARIOS / "host" / "overcommit-by-swap.scn"


def why_not():
    """Return what is missing for the world, if anything is."""
    world = _core.KernelWorld()
    _, trouble = world.run("task a\na store 0x1000 8 => nothing\n", False)
    world.close()
    return trouble and trouble[3]


MISSING = why_not()
needs_kernel = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


def agents():
    """Return the processes that run an agent."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if "memfd:debugreg-agent" in str((process / "exe").readlink()):
                found.append(int(process.name))
        except OSError:  # It is gone, or a thread of the kernel.
            continue
    return found


def wait_until(condition):
    end = time.monotonic() + 10
    while not (result := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return result


@pytest.fixture
def full(tmp_path):
    """Return a scenario that needs every slot."""
    file = tmp_path / "full.scn"
    file.write_text(FULL)
    return file


# --- what it says -----------------------------------------------------------------------------------------------------


@needs_kernel
@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_no_expectation_of_a_scenario_fails_on_the_running_kernel(file):
    (report,) = dr.run(file, world="kernel")
    assert report.world == "kernel"
    assert [(step.line, step.event, step.expected, step.observed) for step in report.steps if step.ok is False] == []
    assert all((step.observed is None) == (step.unobserved is not None) for step in report.steps)
    assert all(step.ok is None for step in report.steps if step.observed is None)
    assert report.ok == any(step.ok for step in report.steps)


@needs_kernel
def test_most_of_the_host_side_is_observed():
    reports = dr.run(sorted((SCENARIOS / "host").glob("*.scn")), world="kernel")
    steps = [step for report in reports for step in report.steps]
    assert sum(step.observed is not None for step in steps) > 0.8 * len(steps)


@needs_kernel
def test_a_wrong_expectation_fails(tmp_path):
    file = tmp_path / "wrong.scn"
    file.write_text(
        "task a\na perf_event_open bp_type=w bp_addr=0x1000 bp_len=8 => A\na store 0x1000 8 => nothing\nA count => 2\n"
    )
    (report,) = dr.run(file, world="kernel")
    assert not report
    assert [(step.expected, step.observed, step.ok) for step in report.steps] == [
        ("A", "A", True),
        ("nothing", "hit A", False),
        ("2", "1", False),
    ]


@needs_kernel
def test_the_order_of_the_slots_shows_and_holes_do_not(tmp_path):
    file = tmp_path / "order.scn"
    opens = [
        f"a perf_event_open bp_type=w bp_addr=0x1000 bp_len=8 {f} => {n}"
        for n, f in zip("ABCD", ["", "pinned"] * 2, strict=True)
    ]
    file.write_text(
        "\n".join(["task a", *opens[:3], "cpu0 slots => s0=B s1=A s2=C s3=none", opens[3], "cpu0 slots"]) + "\n"
    )
    (report,) = dr.run(file, world="kernel")
    assert [step.observed for step in report.steps if step.event == "cpu0 slots"] == [
        "in this order: B A C",
        "s0=B s1=D s2=A s3=C",
    ]
    assert report


@needs_kernel
def test_what_would_overcommit_the_registers_is_not_done_unasked():
    (report,) = dr.run(OVERCOMMIT, world="kernel")
    assert report
    assert "hazardous" in str(report.steps[-1].unobserved)


@needs_kernel
def test_the_command_prints_the_same_shape_as_for_the_model(full):
    told = {}
    for world in ("model", "kernel"):
        done = subprocess.run(
            [*DEBUGREG, "run", full, "--on", world, "--json"], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        (told[world],) = json.loads(done.stdout)
    assert told["model"].keys() == told["kernel"].keys()
    assert (told["model"].pop("world"), told["kernel"].pop("world")) == ("model", "kernel")
    assert [step["observed"] for step in told["kernel"]["steps"]] == [s["observed"] for s in told["model"]["steps"]]


def test_the_running_kernel_has_one_policy(full):
    with pytest.raises(ValueError, match="one policy"):
        dr.run(full, world="kernel", policies=["skip"])


@needs_kernel
def test_a_mistake_in_a_file_is_said_as_ever(tmp_path):
    file = tmp_path / "mistake.scn"
    file.write_text("task a\ntask b\nb store 0x1000 8\n")
    with pytest.raises(dr.ScenarioError, match=r"mistake\.scn:3:1: b is not running"):
        dr.run(file, world="kernel")


# --- what it leaves behind --------------------------------------------------------------------------------------------


@needs_kernel
def test_nothing_is_left_behind(full):
    before = agents()
    assert dr.run([full, full], world="kernel")[1]
    assert agents() == before


@needs_kernel
def test_nothing_is_left_behind_after_a_failed_expectation_and_a_mistake(tmp_path, full):
    before = agents()
    failing, mistaken = tmp_path / "f.scn", tmp_path / "m.scn"
    failing.write_text(FULL.replace("=> hit A0 A1 A2 A3", "=> nothing"))
    mistaken.write_text(FULL + "b exit\nb store 0x1000 8\n")
    with pytest.raises(dr.ScenarioError):
        dr.run([failing, mistaken], world="kernel")
    assert agents() == before
    assert dr.run(full, world="kernel")[0]


@needs_kernel
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_behind_by_a_driver_that_is_ended(full, end):
    before = set(agents())
    driver = subprocess.Popen(
        [*DEBUGREG, "conform", "--count", "1000000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert wait_until(lambda: len(set(agents()) - before) >= 4)
    start = time.monotonic()
    driver.send_signal(end)
    _, said = driver.communicate(timeout=20)
    assert driver.returncode == (130 if end == signal.SIGINT else -end)
    assert "Traceback" not in said
    assert time.monotonic() - start < 2
    assert wait_until(lambda: set(agents()) <= before)
    assert dr.run(full, world="kernel")[0]


@needs_kernel
def test_the_driver_may_run_on_any_cpu_afterwards(full):
    before = os.sched_getaffinity(0)
    dr.run([full, SCENARIOS / "host" / "modify.scn"], world="kernel")
    assert os.sched_getaffinity(0) == before


# --- what it needs ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can become somebody else")
def test_without_root_one_sentence_says_so_and_the_exit_code_is_3():
    # Everything is imported first: nobody may not read it.
    program = (
        "import os, sys; from debugreg import _cli, _conform, _core; from debugreg._commands import conform; "
        "os.setgid(65534); os.setuid(65534); sys.argv = ['debugreg', 'conform', '--count', '1']; sys.exit(_cli.run())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert re.fullmatch(r"debugreg: the world 'kernel' needs root\b.*\n", done.stderr)
