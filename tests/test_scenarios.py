"""Scenarios: every file holds, and what `run` says of them. The language itself is tested in Rust."""

import re
from itertools import pairwise
from pathlib import Path

import pytest

import debugreg as dr
from debugreg import _core

SCENARIOS = Path(__file__).parents[1] / "scenarios"
FILES = sorted(SCENARIOS.glob("**/*.scn"))
GUIDE = SCENARIOS / "guide" / "both-sides.scn"

FAILING = """\
# Two expectations that do not hold, and a refusal.
task sh
sh perf_event_open bp_type=w bp_addr=0x1000 bp_len=8 on=cpu0 => A
sh perf_event_open bp_type=w bp_addr=0x1008 bp_len=8 => B
sh perf_event_open bp_type=w bp_addr=0x1010 bp_len=8 => C
sh perf_event_open bp_type=w bp_addr=0x1018 bp_len=8 => D
sh perf_event_open bp_type=w bp_addr=0x1020 bp_len=8 => E
sh store 0x1000 8 => nothing
cpu0 slots
sh perf_event_open bp_type=w bp_addr=0x1020 bp_len=3 => ENOSPC
"""
RULE = "every slot of a CPU is spoken for"


def name(file):
    return str(file.relative_to(SCENARIOS))


def declared(file):
    """Return the policies of a file's machine line."""
    line = re.search(r"^machine\b.*?\bpolicy=(\S+)", file.read_text(), re.MULTILINE)
    return line[1].split(",") if line else ["linux"]


# --- the files --------------------------------------------------------------------------------------------------------


def test_there_are_scenarios_of_the_mail_and_the_guide():
    assert {file.parent.name for file in FILES} >= {"mail", "guide"}


@pytest.mark.parametrize(
    ("file", "policy"), [pytest.param(f, p, id=f"{name(f)}-{p}") for f in FILES for p in declared(f)]
)
def test_a_scenario_holds(file, policy):
    (report,) = dr.run(file, policies=[policy])
    assert [(step.line, step.event, step.expected, step.observed) for step in report.steps if step.ok is False] == []
    assert report.ok


@pytest.mark.parametrize("file", FILES, ids=name)
def test_a_scenario_runs_under_the_policies_that_it_declares(file):
    reports = dr.run(file)
    # As a policy prints itself: without the deltas that it has by nature.
    assert [report.policy for report in reports] == [dr.Machine(policy=policy).policy for policy in declared(file)]
    assert all(reports)


@pytest.mark.parametrize("file", FILES, ids=name)
def test_a_scenario_opens_with_its_question(file):
    assert re.match(r"# \S", file.read_text())


@pytest.mark.parametrize("file", FILES, ids=name)
def test_a_scenario_means_the_same_when_it_is_printed(file, tmp_path):
    printed, mistake = _core.scenario_format(file.read_text())
    assert mistake is None
    again = tmp_path / "x.scn"
    again.write_text(printed)
    assert _core.scenario_format(printed) == (printed, None)

    def outcomes(path):
        return [
            (report.policy, report.vendor, report.cost, [(s.event, s.expected, s.observed, s.ok) for s in report.steps])
            for report in dr.run(path)
        ]

    assert outcomes(again) == outcomes(file)


# --- reports ----------------------------------------------------------------------------------------------------------


def test_a_report_is_true_if_everything_held():
    (report,) = dr.run(GUIDE)
    assert report
    assert (report.policy, report.vendor, report.world) == ("linux", "amd", "model")
    assert [step.line for step in report.steps][:2] == [6, 7]
    assert report.cost.dr_writes > 0


def test_a_report_is_false_if_one_thing_did_not_hold_or_nothing_was_expected(write_scenario):
    (failed, silent) = dr.run([write_scenario(FAILING), write_scenario("cpu0 nmi\n", "y.scn")])
    assert not failed
    assert [step.ok for step in failed.steps] == [True, True, True, True, False, False, None, True]
    assert not silent
    assert [step.ok for step in silent.steps] == [None]


def test_files_come_in_order_each_under_every_policy(write_scenario):
    files = [GUIDE, str(write_scenario("cpu0 nmi => ok\n"))]
    reports = dr.run(files, policies=["skip", "lean"])
    assert [(report.file, report.policy) for report in reports] == [
        (str(file), policy) for file in files for policy in ("skip", "lean")
    ]


@pytest.mark.parametrize("arguments", [{"policies": ["lunix"]}, {"vendor": "via"}], ids=repr)
def test_a_policy_or_vendor_that_there_is_not_is_a_value_error(arguments):
    with pytest.raises(ValueError, match=r"'lunix'|via"):
        dr.run(GUIDE, **arguments)


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        dr.run(tmp_path / "missing.scn")


# --- the command ------------------------------------------------------------------------------------------------------


def test_run_exits_0_if_all_hold(cli):
    done = cli("run", GUIDE)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{GUIDE} holds under linux on amd: 8 of 8 expectations; ")


def test_run_exits_1_and_names_what_was_expected_and_what_was_observed(cli, write_scenario):
    done = cli("run", GUIDE, write_scenario(FAILING))
    assert (done.returncode, done.stderr) == (1, "")
    (line,) = [line for line in done.stdout.splitlines() if "sh store" in line]
    assert re.fullmatch(r" +8 FAIL +sh store 0x1000 8 +=> hit A +expected nothing", line)
    assert "x.scn does not hold under linux on amd: 5 of 7 expectations" in done.stdout
    assert f"{GUIDE} holds" in done.stdout


def test_run_says_why_the_kernel_refused_and_who_holds_the_slots(cli, write_scenario):
    lines = cli("run", write_scenario(FAILING)).stdout.splitlines()
    refusals = [(above, line) for above, line in pairwise(lines) if RULE in line]
    assert [above.split()[0] for above, _ in refusals] == ["7", "10"]
    assert all(line.endswith("held by A, B, C, D") for _, line in refusals)


def test_an_expectation_that_never_could_hold_is_no_mistake(cli, write_scenario):
    file = write_scenario("task sh\nsh perf_event_open bp_type=w bp_addr=1 bp_len=8 => A\nA count => 1\n")
    done = cli("run", file)
    assert (done.returncode, done.stderr) == (1, "")
    assert "the counter was never opened" in done.stdout
    assert "0 of 2 expectations" in done.stdout


def test_run_as_json_has_the_shape_of_the_design(cli_json, write_scenario):
    file = write_scenario(FAILING)
    (document,) = cli_json("run", file, code=1)
    assert list(document) == ["file", "policy", "vendor", "world", "ok", "steps", "cost"]
    head = {"file": str(file), "policy": "linux", "vendor": "amd", "world": "model", "ok": False}
    assert {key: document[key] for key in head} == head
    assert list(document["cost"]) == ["dr_writes", "dr_reads", "vmcs", "vm_exits", "skips"]
    event = "sh perf_event_open bp_type=w bp_addr=0x1000 bp_len=8 on=cpu0"
    assert document["steps"][0] == {"line": 3, "event": event, "expected": "A", "observed": "A", "ok": True}
    assert document["steps"][6] == {
        "line": 9,
        "event": "cpu0 slots",
        "expected": None,
        "observed": "s0=A s1=B s2=C s3=D",
        "ok": None,
    }
    # A refusal says more.
    assert document["steps"][4].pop("refusal").startswith(RULE)
    assert document["steps"][4].items() >= {"expected": "E", "observed": "ENOSPC", "ok": False}.items()
    assert all(list(step) == ["line", "event", "expected", "observed", "ok"] for step in document["steps"][:7])


def test_run_as_json_lists_the_steps_if_they_are_asked_for(cli_json):
    (document,) = cli_json("run", GUIDE, "--steps")
    assert document["steps"][0]["trace"][2] == "3 mov dr0, 0x10000"
    assert all(isinstance(step["trace"], list) for step in document["steps"])


MACHINES = [
    ("", [], [("linux", "amd")]),
    ("", ["--policy", "skip"], [("skip", "amd")]),
    ("", ["--vendor", "intel"], [("linux", "intel")]),
    ("machine policy=lean,skip vendor=intel", [], [("lean", "intel"), ("skip", "intel")]),
    ("machine policy=lean,skip vendor=intel", ["--policy", "linux-5.15"], [("linux-5.15", "intel")]),
    ("machine policy=lean vendor=intel", ["--vendor", "amd"], [("lean", "amd")]),
    ("machine policy=lean", ["--policy", "skip", "--policy", "linux"], [("skip", "amd"), ("linux", "amd")]),
]


@pytest.mark.parametrize(("machine", "flags", "expected"), MACHINES, ids=repr)
def test_a_flag_wins_over_the_machine_line_and_that_over_linux_on_amd(
    cli_json, write_scenario, machine, flags, expected
):
    file = write_scenario(f"{machine}\ncpu0 nmi => ok\n")
    assert [(one["policy"], one["vendor"]) for one in cli_json("run", file, *flags)] == expected


def test_the_vendor_makes_a_difference(cli_json, write_scenario):
    file = write_scenario("task q\nvcpu v task=q\nv vm_entry => ok\nv mov_to_dr 7 0x00090401 => ok\nv vm_exit => ok\n")
    amd, intel = (cli_json("run", file, "--vendor", vendor)[0]["cost"] for vendor in ("amd", "intel"))
    assert amd != intel


def test_a_name_in_brackets_is_a_name(cli, write_scenario, tmp_path):
    for file in ("[bold]x.scn", "a[b]c.scn"):
        done = cli("run", write_scenario("cpu0 nmi => ok\n", file), cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert f"{tmp_path}/{file} holds" in done.stdout


# --- steps and interruptions ------------------------------------------------------------------------------------------

ENTRY = """\
# An NMI before step K of an entry: the guest and the host see their own all the same.
machine policy={policy} vendor={vendor}
task qemu
vcpu v0 task=qemu
qemu perf_event_open bp_type=w bp_addr=0x1000 bp_len=8 => A
v0 set_debugregs dr0=0x20000 dr7=0x00090401 => ok
v0 vm_entry {interruption}=> ok
v0 store 0x20000 8 => #DB dr6=0xffff0ff1
v0 store 0x1000 8 => nothing
v0 vm_exit => ok
qemu store 0x20000 8 => nothing
qemu store 0x1000 8 => hit A
"""


def numbered(cli_json, file):
    """Return the numbers that --steps gives to the steps of the entry."""
    (document,) = cli_json("run", file, "--steps")
    (entry,) = [step for step in document["steps"] if step["event"].startswith("v0 vm_entry")]
    return [int(step.split()[0]) for step in entry["trace"]]


@pytest.mark.parametrize("vendor", ["amd", "intel"])
@pytest.mark.parametrize("policy", ["linux", "lean", "linux-5.15"])
def test_an_nmi_may_come_before_each_step_that_steps_numbers(cli_json, write_scenario, policy, vendor):
    numbers = numbered(cli_json, write_scenario(ENTRY.format(policy=policy, vendor=vendor, interruption="")))
    assert len(numbers) >= 3
    assert numbers == list(range(1, len(numbers) + 1))
    for k in numbers:
        file = write_scenario(ENTRY.format(policy=policy, vendor=vendor, interruption=f"@{k} cpu0 nmi "))
        (report,) = dr.run(file)
        assert report, f"before step {k}"


def test_an_nmi_inside_a_transition_is_felt(write_scenario):
    # With a breakpoint armed the handler saves and restores DR7: two writes more, up to the step that disarms it.
    costs = []
    for interruption in ("", "@1 cpu0 nmi ", "@2 cpu0 nmi "):
        (report,) = dr.run(write_scenario(ENTRY.format(policy="linux", vendor="amd", interruption=interruption)))
        costs.append(report.cost)
    assert [cost.dr_writes - costs[0].dr_writes for cost in costs] == [0, 2, 0]


def test_a_step_that_is_never_reached_is_a_mistake_that_tells_how_many_there_are(cli_json, mistake, write_scenario):
    text = ENTRY.format(policy="linux", vendor="amd", interruption="{}")
    n = max(numbered(cli_json, write_scenario(text.format(""))))
    line = mistake("run", write_scenario(text.format(f"@{n + 1} cpu0 nmi ")))
    assert f"x.scn:7:1: @{n + 1} is never reached: the event takes {n} steps" in line


def test_the_page_numbers_the_steps_too(cli):
    page = cli("run", GUIDE, "--steps").stdout
    assert re.search(
        r"^    6 ok .*=> A\n +1 load bp_per_reg\[0\] -> 0x0\n +2 \S.*\n +3 mov dr0, 0x10000$", page, re.MULTILINE
    )


@pytest.mark.parametrize("inside", ["sh fork kid", "sh exit", "v0 vm_entry", "cpu0 sched_switch idle"])
def test_whatever_stands_inside_a_transition_the_answer_is_a_report_or_a_mistake(cli, write_scenario, inside):
    done = cli(
        "run",
        write_scenario(
            "machine policy=linux\ntask sh\nvcpu v0 task=sh\n"
            f"sh perf_event_open bp_type=w bp_addr=0 bp_len=8 @2 {inside} => A\n"
            "cpu0 sched_switch idle => ok\n"
        ),
    )
    assert done.returncode in {0, 1, 2}
    assert "panicked" not in done.stderr
    assert "Traceback" not in done.stderr


# --- mistakes (test_malformed.py has more) ----------------------------------------------------------------------------


def test_a_mistake_knows_its_place(write_scenario):
    file = write_scenario("task a\na dance\n")
    with pytest.raises(dr.ScenarioError) as error:
        dr.run([GUIDE, file])
    assert (error.value.path, error.value.line, error.value.column) == (str(file), 2, 3)
    assert str(error.value).startswith(f"{file}:2:3: found 'dance', allowed events of a task are ")


@pytest.mark.parametrize("option", [("--policy", "lunix"), ("--vendor", "via"), ("--policy", "linux+H-01=maybe")])
def test_an_option_that_there_is_not_is_one_line(mistake, option):
    line = mistake("run", GUIDE, *option)
    assert option[0] in line
    assert "?." not in line


def test_lines_may_end_as_on_windows(write_scenario):
    file = write_scenario("")
    file.write_bytes(GUIDE.read_bytes().replace(b"\n", b"\r\n"))
    assert all(dr.run(file))
