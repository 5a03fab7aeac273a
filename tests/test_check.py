"""`dr.check` and `debugreg check`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

import debugreg as dr

if TYPE_CHECKING:
    import pathlib


def check_cli(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "debugreg", "check", *args], capture_output=True, text=True, check=False
    )


def test_the_mails_wish_keeps_every_law_but_one() -> None:
    wish = dr.check("skip", nmi=True)
    assert not wish
    assert wish.law == "entry-quiet"
    others = [law.name for law in dr.laws() if law.name != "entry-quiet"]
    assert dr.check("skip", nmi=True, laws=others)
    assert dr.check("skip+H-05=fixed", nmi=True)


@pytest.mark.parametrize("vendor", ["amd", "intel"])
@pytest.mark.parametrize("policy", ["lean", "linux", "linux-5.15", "linux-6.14", "debian-6.12", "perf-sched", "pvm"])
def test_what_is_safe(policy: str, vendor: str) -> None:
    # PVM in a virtual machine is not, by an NMI: docs/findings.md.
    verdict = dr.check(policy, vendor=vendor, nmi=True, hypervisor=policy != "pvm")  # type: ignore[arg-type]
    assert verdict, verdict.violation or verdict.never
    assert all(verdict.reached.values())


def test_a_policy_that_does_nothing_is_not_safe() -> None:
    verdict = dr.check("none", nmi=True)
    assert verdict.ok is False
    # Nothing that matters happens in this one, and it is not called safe.
    quiet = dr.check("linux", vcpus=0)
    assert quiet.ok is False
    assert quiet.violation is None
    assert "guest-access" in quiet.never


SCOPES = [
    {"counters": 2, "slots": 2, "vcpus": 0, "events": "open,close,switch,access"},
    {"addresses": 2, "nmi": True},
    {"cpus": 2},
]


@pytest.mark.parametrize("scope", SCOPES, ids=str)
def test_any_number_of_threads_gives_the_same(scope: dict[str, object]) -> None:
    def plain(threads: int) -> dict[str, object]:
        told = dr.check("lean", threads=threads, **scope).to_dict()  # type: ignore[arg-type]
        return {key: value for key, value in told.items() if key not in ("seconds", "bytes")}

    assert plain(1) == plain(2) == plain(3)


@pytest.mark.parametrize(
    ("policy", "scope"),
    [
        ("lean", {"addresses": 2, "nmi": True}),
        ("linux", {"addresses": 3, "slots": 2, "counters": 2, "vcpus": 0, "events": "open,close,switch,access"}),
        ("linux+H-02=on", {"addresses": 2}),
        ("linux+Z-9=on", {"addresses": 2, "events": "+guest-dr6,ptrace"}),
    ],
)
def test_symmetry_changes_no_verdict(policy: str, scope: dict[str, object]) -> None:
    with_it = dr.check(policy, **scope)  # type: ignore[arg-type]
    without = dr.check(policy, symmetry=False, **scope)  # type: ignore[arg-type]
    assert (with_it.ok, with_it.law) == (without.ok, without.law)
    assert with_it.states <= without.states
    if with_it.scenario:
        assert len(with_it.scenario.splitlines()) == len((without.scenario or "").splitlines())


def test_random_walks_find_and_shorten() -> None:
    walked = dr.check("linux-fixed+H-02=on", walks=2000, addresses=3, slots=4, counters=4, nmi=True)
    assert walked.law == "guest-armed"
    shortest = dr.check("linux-fixed+H-02=on")
    assert walked.scenario is not None
    assert shortest.scenario is not None
    assert len(walked.scenario.splitlines()) <= len(shortest.scenario.splitlines()) + 1
    nothing = dr.check("lean", walks=50)
    assert nothing.ok is None
    assert nothing.stopped == "walked"
    assert dr.check("linux-fixed+H-02=on", walks=2000, seed=7).ok is False


def test_it_ends_before_it_takes_more_memory() -> None:
    verdict = dr.check("lean", addresses=2, slots=2, memory=1 << 20)
    assert verdict.ok is None
    assert verdict.stopped == "memory"
    assert verdict.states > 0
    done = check_cli("--policy", "lean", "--addresses", "2", "--slots", "2", "--memory", "0.001")
    assert done.returncode == 4
    assert "--memory" in done.stdout


def test_exit_codes_and_json(tmp_path: pathlib.Path) -> None:
    assert check_cli("--policy", "lean").returncode == 0
    broken = check_cli("--policy", "skip", "--nmi", "--json")
    assert broken.returncode == 1
    (document,) = json.loads(broken.stdout)
    assert set(document) >= {
        *("policy", "vendor", "scope", "ok", "states", "transitions", "depth", "seconds", "reached", "violation")
    }
    assert document["ok"] is False
    assert document["violation"]["law"] == "entry-quiet"
    file = tmp_path / "skip.scn"
    file.write_text(document["violation"]["scenario"], encoding="utf-8")
    assert dr.run(file)[0].ok is False
    listed = check_cli("--events", "?")
    assert listed.returncode == 0
    assert "guest-access" in listed.stdout


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--policy", "linus"], "unknown policy 'linus'"),
        (["--events", "open,shut"], "unknown kind of events 'shut': allowed are switch,"),
        (["--law", "no-gain"], "unknown law 'no-gain': allowed are all, host-armed,"),
        (["--cpus", "9"], "cpus: found 9, allowed is 1 to 8"),
        (["--vcpus", "3"], "vcpus: found 3, allowed is 0 to 2"),
    ],
)
def test_mistakes_are_one_line(args: list[str], said: str) -> None:
    done = check_cli(*args)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not done.stdout


def test_ctrl_c_ends_it_with_what_is_known() -> None:
    command = [sys.executable, "-m", "debugreg", "check", "--policy", "lean", "--json"]
    command += ["--cpus", "2", "--slots", "3", "--addresses", "3", "--counters", "3", "--nmi"]
    # Whoever is started in the background of a shell ignores the signal, and so would its children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    try:
        time.sleep(2)
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130, err
    (document,) = json.loads(out)
    assert document["ok"] is None
    assert document["stopped"] == "asked"
    assert document["transitions"] > 0


def test_an_error_of_the_progress_function_is_the_callers() -> None:
    def fail(*_: int) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        dr.check("lean", cpus=2, slots=2, addresses=2, counters=2, progress=fail)


# What a scope has is what the model and its laws make of it: a change here is a change of one of them.
STATES = [
    ({}, 3055, 19888),
]


def test_a_law_of_a_scenario_is_judged_line_by_line(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "laws.scn"
    text = "machine cpus=1 laws={laws} policy=skip\ntask t1\nvcpu v0 task=t1\n"
    text += "t1 perf_event_open bp_type=w bp_addr=0x1000 bp_len=8 => A\nv0 vm_entry\n"
    file.write_text(text.format(laws="all"), encoding="utf-8")
    (report,) = dr.run(file)
    assert not report.ok
    assert "breaks entry-quiet" in report.steps[-1].observed
    file.write_text(text.format(laws="host-armed,no-loss"), encoding="utf-8")
    assert dr.run(file)[0].ok
    file.write_text(text.format(laws="no-gain"), encoding="utf-8")
    with pytest.raises(dr.ScenarioError, match="unknown law 'no-gain'"):
        dr.run(file)
