"""Replay: what the model says of the shipped trace, and of traces that are cut, changed or none at all."""

import gzip
import json
import os
import re
import subprocess
import sys

import pytest

import debugreg as dr
from debugreg._compare import shipped_trace

STEPS = shipped_trace().with_name("kvm-amd-6.12-phases.steps.gz")
PHASES = ["none", "other-task", "host", "guest-burst", "guest-armed", "both", "guest-debug", "clear", "cpu-wide"]
PHASES += ["ptrace", "end"]

WHOLE = {
    "install": (989, 989, 989),
    "uninstall": (989, 989, 989),
    "restore": (1784, 1784, 1784),
    "sync": (418, 418, 418),
    "step": (33781, 33781, 33781),
    # 418 times DR0-DR3 and DR7; 3,562 times DR0-DR3.
    "guest_at_sync": (2090, 2090, 2090),
    "guest_at_entry": (14248, 14248, 14248),
}
"""Predicted, observed, matched, under debian-6.12."""
OF_STEPS = ("step", "guest_at_sync", "guest_at_entry")
LINES = {name: score for name, score in WHOLE.items() if name not in OF_STEPS}
"""Likewise without a steps file."""


@pytest.fixture(scope="module")
def whole():
    """Return the shipped trace, replayed and compared."""
    (replay,) = dr.replay(shipped_trace(), verify=True)
    return replay


def scores(replay):
    return {name: (score.predicted, score.observed, score.matched) for name, score in replay.verify.scores}


def steps_of(replay, first):
    """Return what was paid in each phase from this one on."""
    phases = PHASES[PHASES.index(first) :]
    return [(p.name, p.cost.dr_writes, p.cost.dr_reads, p.cost.vmcs) for p in replay.phases if p.name in phases]


def one(path, policy="debian-6.12", **options):
    (replay,) = dr.replay(path, policies=[policy], **options)
    return replay


# --- the shipped trace ------------------------------------------------------------------------------------------------


def test_the_model_says_what_the_kernel_did(whole):
    assert scores(whole) == WHOLE
    assert whole.verify
    assert whole.verify.differences == ()
    assert whole.undetermined == ()
    assert (whole.policy, whole.vendor, whole.lower_bound, whole.not_expressible) == ("debian-6.12", "amd", False, ())


def test_the_phases_are_those_of_the_trace_and_add_up(whole):
    assert [phase.name for phase in whole.phases] == ["start", *PHASES]
    total = dr.Cost()
    for phase in whole.phases:
        for name, count in phase.cost.to_dict().items():
            setattr(total, name, getattr(total, name) + count)
    assert total == whole.cost


def test_every_step_that_was_predicted_is_paid_for(whole):
    assert whole.cost.dr_writes + whole.cost.dr_reads == 33781


def test_entries_with_nothing_set_execute_no_step_and_the_kernels_did_not_either(whole, trace_lines):
    assert sum(": kvm_entry: " in line for line in trace_lines) == 6172
    quiet, previous = 0, {}
    for step in gzip.decompress(STEPS.read_bytes()).decode().splitlines():
        cpu, _, what = step.split()[:3]
        # A VMRUN, and nothing at all since the one before it.
        quiet += what == previous.get(cpu) == "E"
        previous[cpu] = what
    assert quiet == 1777

    none = next(phase for phase in whole.phases if phase.name == "none")
    assert (none.cost.dr_writes, none.cost.dr_reads, none.cost.vmcs, none.cost.vm_exits) == (0, 0, 0, 0)
    assert none.cost.skips > 2 * 831  # its entries and exits


@pytest.mark.parametrize(
    ("policy", "occasions"), [("debian-6.12", 4446), ("linux-6.14", 4446), ("lean", 4446), ("linux-2.6.33", 4655)]
)
def test_skip_free_is_kept_on_every_occasion(policy, occasions):
    law = one(shipped_trace(), policy).law("skip-free")
    assert (law.occasions, law.failures, law.first) == (occasions, 0, None)


# The trace's guest is one of KVM's: a protected one keeps its registers to itself, and peers know other windows.
OTHER_GUESTS = {"tdx", "sev-es", "sev-es-debugswap", "bhyve", "xen", "virtualbox", "none"}


def test_every_policy_of_perf_keeps_host_and_guest_apart():
    for row in dr.policies():
        if row.name in OTHER_GUESTS:
            continue
        replay = one(shipped_trace(), row.name)
        # H-02: 3.15 loads what a debugger, or the guest before its window, had.
        assert replay.apart == (row.host == "perf" and row.name != "linux-3.15"), row.name
        assert [law.law for law in replay.observed] == [
            "host-armed",
            "guest-armed",
            "entry-quiet",
            "skip-free",
            "way-out",
        ]


FIRST = [
    # Host breakpoints stay armed on the way in (H-05): DR7 is not disarmed before the entry.
    ("linux-2.6.33", "nothing", "dr7 = 0x400 "),
    # The host's counters are scheduled out.
    ("perf-sched", "uninstall 0x4af008, uninstall 0x4af000", "nothing"),
    # Nothing is written on the way out.
    ("skip", "nothing", "dr7 = 0x400 "),
    # DR7 is disarmed with 0 (HB-34).
    ("linux-5.15", "dr7 = 0x0", "dr7 = 0x400 "),
]


@pytest.mark.parametrize(("policy", "predicted", "observed"), FIRST, ids=[row[0] for row in FIRST])
def test_another_policy_differs_first_where_the_vcpu_thread_first_has_breakpoints(
    policy, predicted, observed, trace_lines
):
    replay = one(shipped_trace(), policy, verify=True)
    assert not replay.verify
    first = replay.verify.differences[0]
    assert (first.line, first.cpu, first.predicted) == (4806, 0, predicted)
    assert first.observed.startswith(observed)
    # The entry of the first guest that runs while its thread has breakpoints.
    assert ": kvm_entry: " in trace_lines[4806 - 1]


def test_only_the_right_kernel_is_exact():
    exact = {row.name for row in dr.policies() if one(shipped_trace(), row.name, verify=True).verify}
    assert "debian-6.12" in exact
    assert exact <= {"debian-6.12", "linux-6.14", "linux", "linux-fixed"}


def test_delta_by_delta_linux_5_15_becomes_debian():
    replay = one(shipped_trace(), "linux-5.15+H-01=fixed+HB-34=fixed", verify=True)
    assert scores(replay) == WHOLE


def test_what_the_kernel_read_back_and_did_not_load_is_a_difference(trace_lines, write_trace, cli_json):
    # The guest has 0x3000 in DR0 and nothing in DR3: its own register, as KVM loads it into an open window.
    steps = gzip.decompress(STEPS.read_bytes()).decode().splitlines()
    read = next(at for at, step in enumerate(steps) if step.endswith(" R 3") and step.split()[1].startswith("ffff"))
    load = max(at for at, step in enumerate(steps[:read]) if " W 3 " in step)
    assert steps[load].endswith(" W 3 0")
    steps[load] = steps[load].removesuffix("0") + "4"
    trace = write_trace(trace_lines)
    trace.with_name("trace.steps").write_text("\n".join(steps) + "\n")
    (document,) = cli_json("replay", "--verify", trace, code=1)
    verify = document["verify"]
    lost = {name: verify[name]["observed"] - verify[name]["matched"] for name in OF_STEPS}
    assert lost == {"step": 1, "guest_at_sync": 1, "guest_at_entry": 1}
    told = [difference for difference in verify["differences"] if "the guest's dr3" in difference["predicted"]]
    assert told[0]["predicted"] == "the guest's dr3 = 0x0"
    assert told[0]["observed"] == f"dr3 = 0x4 (steps line {read + 1})"


def test_differences_come_in_the_order_of_the_trace():
    lines = [difference.line for difference in one(shipped_trace(), "skip", verify=True).verify.differences]
    assert lines == sorted(lines)


# --- the command ------------------------------------------------------------------------------------------------------


def test_replay_as_json_has_the_shape_of_the_design(cli_json):
    (document,) = cli_json("replay", "--verify", shipped_trace())
    assert {"trace", "policy", "vendor", "events", "cost", "phases", "verify"} <= set(document)
    assert (document["trace"], document["policy"]) == (str(shipped_trace()), "debian-6.12")
    assert list(document["cost"]) == ["dr_writes", "dr_reads", "vmcs", "vm_exits", "skips"]
    assert [phase["name"] for phase in document["phases"]] == ["start", *PHASES]
    assert all(phase["cost"].keys() == document["cost"].keys() for phase in document["phases"])
    verify = document["verify"]
    assert {name: tuple(verify[name].values()) for name in WHOLE} == WHOLE
    assert list(verify["step"]) == ["predicted", "observed", "matched"]
    assert (verify["undetermined"], verify["first_difference"]) == ([], None)


def test_without_verify_nothing_is_compared(cli_json):
    (document,) = cli_json("replay", shipped_trace(), "--policy", "skip")
    assert document["verify"] is None


def test_replay_exits_1_if_something_differs_and_names_it(cli, cli_json):
    (document,) = cli_json("replay", "--verify", shipped_trace(), "--policy", "skip", code=1)
    first = document["verify"]["first_difference"]
    assert first["line"] == 4806
    done = cli("replay", "--verify", shipped_trace(), "--policy", "skip")
    assert (done.returncode, done.stderr) == (1, "")
    place = f"line 4806, cpu0: predicted nothing; the kernel: {first['observed']}"
    assert f"first difference at {place}\n" in done.stdout


def test_the_page_says_that_nothing_differs(cli):
    done = cli("replay", "--verify", shipped_trace())
    assert (done.returncode, done.stderr) == (0, "")
    assert "nothing differs" in done.stdout
    assert re.search(r"step +33,781 +33,781 +33,781 +100.00%", done.stdout)
    assert re.search(r"guest's registers at sync +2,090 +2,090 +2,090 +100.00%", done.stdout)
    assert re.search(r"loaded at entry +14,248 +14,248 +14,248 +100.00%", done.stdout)


def test_json_is_the_same_in_every_run_and_in_every_process(cli):
    command = ("replay", "--verify", "--json", shipped_trace(), "--policy", "debian-6.12", "--policy", "skip")
    first, second = cli(*command, PYTHONHASHSEED="1"), cli(*command, PYTHONHASHSEED="2")
    assert first.stdout == second.stdout
    here = dr.replay(shipped_trace(), policies=["debian-6.12", "skip"], verify=True)
    again = dr.replay(shipped_trace(), policies=["debian-6.12", "skip"], verify=True)
    assert here == again
    assert json.loads(first.stdout) == [replay.to_dict() for replay in here]


def test_several_traces_under_several_policies_come_in_order(cli_json, write_trace, trace_lines):
    traces = [write_trace(trace_lines[:900], "a.txt"), write_trace(trace_lines[:500], "b.txt")]
    documents = cli_json("replay", *traces, "--policy", "lean", "--policy", "skip")
    got = [(document["trace"], document["policy"]) for document in documents]
    assert got == [(str(trace), policy) for trace in traces for policy in ("lean", "skip")]


def test_the_vendor_is_the_flags_or_what_the_exits_show(write_trace):
    head = "             vmm-1       [000] d..1.     6.959087: "
    entry = f"{head}kvm_entry: vcpu 0, rip 0x1000\n"
    exits = "vcpu 0 reason {} rip 0x1009 info1 0x0 info2 0x0 intr_info 0x00000000 error_code 0x00000000\n"
    for reason, vendor in (("io", "amd"), ("IO_INSTRUCTION", "intel"), ("DR_ACCESS", "intel")):
        trace = write_trace([entry, f"{head}kvm_exit: {exits.format(reason)}"])
        assert one(trace).vendor == vendor
        assert one(trace, vendor="amd").vendor == "amd"


def test_progress_tells_how_many_rows_are_done():
    told = []
    dr.replay(shipped_trace(), policies=["linux"] * 3, verify=True, progress=told.append)
    assert told == sorted(told) or len(told) > 1
    assert all(isinstance(rows, int) for rows in told)


def test_what_progress_raises_comes_out(write_trace):
    class Enough(Exception):  # noqa: N818 - it is raised to be caught
        pass

    def tell(_rows):
        raise Enough

    long = write_trace(shipped_trace().read_bytes() * 40, "long.txt.gz")
    with pytest.raises(Enough):
        dr.replay(long, policies=["linux"], progress=tell)


# --- forms of one trace -----------------------------------------------------------------------------------------------

FLAGS = re.compile(r"(\[\d+\] )(\S{5}) ", re.ASCII)
TASK = re.compile(r"^(.{16}-\d+ *)(?=\[)", re.MULTILINE)


def flags(width):
    return lambda text: FLAGS.sub(lambda m: m[1] + (m[2] + "........")[:width] + " ", text)


def with_unknown_events(text):
    unknown = "             vmm-1       [000] d..1.     9.000001: frobnicate: a=1 b=(fault)\n"
    return "".join(line + unknown if n % 7 == 0 else line for n, line in enumerate(text.splitlines(keepends=True)))


FORMS = {
    "as it is": lambda text: text,
    "packed": lambda text: gzip.compress(text.encode(), 1),
    "in packed pieces": lambda text: gzip.compress(text[:99999].encode()) + gzip.compress(text[99999:].encode(), 1),
    "without its header": lambda text: re.sub("^#.*\n", "", text, flags=re.MULTILINE),
    "no flags column": lambda text: FLAGS.sub(r"\1", text),
    "four flags": flags(4),
    "eight flags": flags(8),
    "ten flags": flags(10),
    "a tgid column": lambda text: TASK.sub(r"\1(      1) ", text),
    "an unknown tgid": lambda text: TASK.sub(r"\1(-------) ", text),
    "lines end as on Windows": lambda text: text.replace("\n", "\r\n"),
    "unknown events": with_unknown_events,
    "lost events are announced": lambda text: text.replace("\n", "\nCPU:1 [LOST 3 EVENTS]\n", 1),
    "a comm with blanks and a colon": lambda text: re.sub(r"^ +vmm-1 ", " CPU 0/KVM: a-b-1 ", text, flags=re.MULTILINE),
    "a comm in Latin-1": lambda text: re.sub(r"^( +)vmm-1 ", r"\1vüm-1 ", text, flags=re.MULTILINE).encode("latin-1"),
    "no last newline": lambda text: text.rstrip("\n"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_trace_says_the_same_in_every_form(form, whole, trace_lines, write_trace):
    trace = write_trace(FORMS[form]("".join(trace_lines)))
    replay = one(trace, verify=True)
    assert scores(replay) == LINES
    assert replay.verify
    assert (replay.cost.dr_writes, replay.cost.dr_reads) == (whole.cost.dr_writes, whole.cost.dr_reads)


def test_a_steps_file_is_found_beside_a_trace_of_any_name(trace_lines, write_trace):
    for name in ("a.txt", "b.txt.gz", "c"):
        trace = write_trace(trace_lines, name)
        trace.with_name(f"{name[0]}.steps.gz").write_bytes(STEPS.read_bytes())
        assert scores(one(trace, verify=True)) == WHOLE


def test_a_steps_file_may_be_plain(trace_lines, write_trace):
    trace = write_trace(trace_lines)
    trace.with_name("trace.steps").write_bytes(gzip.decompress(STEPS.read_bytes()))
    assert scores(one(trace, verify=True)) == WHOLE


@pytest.mark.parametrize("lost", [1, 20, 60, 90])
def test_a_last_line_that_is_cut_off_is_passed_over(lost, trace_lines, write_trace):
    replay = one(write_trace("".join(trace_lines)[:-lost]), verify=True)
    assert scores(replay) == LINES
    assert replay.verify


@pytest.mark.parametrize("end", [200, 4806, 4807, 8230, 12000, 18000, 22000, 23500])
def test_a_trace_may_end_anywhere(end, trace_lines, write_trace):
    replay = one(write_trace(trace_lines[:end]), verify=True)
    assert replay.verify
    assert replay.verify.differences == ()


# --- what a trace does not tell ---------------------------------------------------------------------------------------


def test_without_a_steps_file_the_steps_are_not_scored(trace_lines, write_trace, cli):
    trace = write_trace(trace_lines)
    replay = one(trace, verify=True)
    for name in OF_STEPS:
        assert getattr(replay.verify, name) is None
        assert replay.to_dict()["verify"][name] is None
    assert "without a steps file" in cli("replay", "--verify", trace).stdout


@pytest.mark.parametrize("policy", [row.name for row in dr.policies() if row.name not in OTHER_GUESTS])
def test_what_would_have_trapped_but_shows_in_no_line_makes_a_lower_bound(policy, trace_lines, write_trace, cli):
    # Kernels before 3.15, both policies of the mail and PVM trap each MOV DR of a guest; the later ones trap the first.
    traps_each = policy in {"linux-2.6.30", "linux-2.6.32", "linux-2.6.33", "perf-sched", "skip", "pvm"}
    trace = write_trace(trace_lines)
    replay, known = one(trace, policy), one(shipped_trace(), policy)
    assert (replay.lower_bound, known.lower_bound) == (traps_each, False)
    assert replay.cost.weighted() <= known.cost.weighted()
    assert (replay.cost.vm_exits < known.cost.vm_exits) == traps_each
    total = next(line for line in cli("replay", trace, "--policy", policy).stdout.splitlines() if "total" in line)
    assert (">= " in total) == traps_each


def test_what_a_probe_could_not_read_is_undetermined(trace_lines, write_trace):
    text = "".join(trace_lines).replace("bp_addr=0x4af008", "bp_addr=(fault)")
    replay = one(write_trace(text), verify=True)
    asked = next(n for n, line in enumerate(text.splitlines(), 1) if "bp_addr=(fault)" in line)
    assert any("could not read" in reason for _, reason in replay.undetermined)
    # Until then everything was known.
    assert min(line for line, _ in replay.undetermined) >= asked
    # What cannot be predicted is counted apart, and is no difference.
    assert replay.verify.differences == ()


@pytest.mark.parametrize(
    ("first", "known"),
    [
        # Cut in the phase `host`: the counters of both tasks were opened before; the last is closed in `guest-burst`.
        (5000, "guest-armed"),
        # Cut in the phase `guest-debug`: the debugger sets its watchpoint before, and takes it away at the end.
        (18000, "clear"),
        (2866, "other-task"),
    ],
)
def test_a_trace_without_its_head_is_right_from_the_phase_on_in_which_all_is_known(
    first, known, trace_lines, write_trace
):
    header = [line for line in trace_lines[:20] if line.startswith("#")]
    kept = [*header, *trace_lines[first - 1 :]]
    replay = one(write_trace(kept), verify=True)
    mark = next(n for n, line in enumerate(kept, 1) if f"phase {known}:" in line)
    assert [difference for difference in replay.verify.differences if difference.line >= mark] == []
    assert steps_of(replay, known) == steps_of(one(write_trace(trace_lines)), known)


@pytest.mark.parametrize("first", [4700, 5000, 8220, 18000, 20000])
def test_what_happened_to_counters_from_before_the_trace_is_undetermined_and_no_difference(
    first, trace_lines, write_trace
):
    replay = one(write_trace(trace_lines[first - 1 :]), verify=True)
    assert replay.verify.differences == ()
    assert replay.undetermined


@pytest.fixture
def write_cut(trace_lines, write_trace):
    """Return a function that writes a part of the shipped trace, under its header and beside all of its steps."""

    def write(first, last=None):
        header = [line for line in trace_lines[:20] if line.startswith("#")]
        trace = write_trace([*header, *trace_lines[first - 1 : last]], "cut.txt")
        trace.with_name("cut.steps.gz").write_bytes(STEPS.read_bytes())
        return trace

    return write


CUTS = {
    5000: {
        "install": (72, 652),
        "uninstall": (72, 654),
        "restore": (1365, 396),
        "sync": (418, 0),
        "step": (23994, 8839),
    },
    18000: {"install": (62, 0), "uninstall": (62, 0), "restore": (209, 0), "sync": (104, 0), "step": (1960, 3750)},
}
"""By first line: how many of what are scored, and how many are not determined."""


@pytest.mark.parametrize("first", CUTS)
def test_of_a_trace_without_its_head_what_is_known_is_right_to_every_step(first, write_cut):
    replay = one(write_cut(first), verify=True)
    assert replay.verify
    assert replay.verify.differences == ()
    for name, (known, undetermined) in CUTS[first].items():
        score = getattr(replay.verify, name)
        assert score.exact, name
        assert score.observed >= known, name
        assert score.observed + score.undetermined == known + undetermined, name
    assert {reason for _, reason in replay.undetermined if "no line" in reason}


def test_what_is_undetermined_is_counted_apart_and_listed(cli, cli_json, write_cut):
    trace = write_cut(5000)
    (document,) = cli_json("replay", "--verify", trace)
    verify = document["verify"]
    assert list(verify["step"]) == ["predicted", "observed", "matched"]
    assert verify["undetermined_counts"]["install"] == CUTS[5000]["install"][1]
    listed = verify["undetermined"]
    assert all(list(entry) == ["line", "reason"] for entry in listed)
    assert [entry["line"] for entry in listed] == sorted(entry["line"] for entry in listed)
    by_task = [entry["line"] for entry in listed if entry["reason"].startswith("task 1 ")]
    page = cli("replay", "--verify", trace, COLUMNS="200").stdout
    assert re.search(r"install +72 +72 +72 +100\.00% +652\b", page)
    place = f"undetermined, {len(by_task):,} lines from {by_task[0]} to {by_task[-1]}"
    assert f"{place}: task 1 has a breakpoint that no line asks for\n" in page
    assert "(--json lists each line)" in page


def test_a_whole_trace_has_no_column_for_what_is_undetermined(cli):
    page = cli("replay", "--verify", shipped_trace(), COLUMNS="200").stdout
    assert "undetermined" not in page


@pytest.mark.parametrize(("first", "last"), [(5000, 18000), (100, 5000), (9000, 21000)])
def test_steps_are_tied_to_a_trace_without_head_and_tail(first, last, write_cut):
    replay = one(write_cut(first, last), verify=True)
    assert replay.verify
    assert replay.verify.step.exact
    assert replay.verify.step.observed > 900


@pytest.mark.parametrize("first", range(100, 24000, 797))
def test_a_trace_may_begin_anywhere(first, trace_lines, write_trace):
    replay = one(write_trace(trace_lines[first - 1 :]), verify=True)
    assert scores(replay).keys() == LINES.keys()
    assert replay.apart


@pytest.mark.parametrize("policy", [row.name for row in dr.policies()])
def test_a_trace_with_a_hole_is_replayed_under_every_policy(policy, trace_lines, write_trace):
    lines = [*trace_lines[:6000], "CPU:0 [LOST 9000 EVENTS]\n", *trace_lines[15000:]]
    assert one(write_trace(lines), policy, verify=True).events > 1000


def test_tracepoints_alone_are_a_trace(trace_lines, write_trace):
    probes = r": (install|uninstall|restore|guest_sync|hit|guest_dr7|guest_set_dr|bp_\w+|set_\w+): "
    replay = one(write_trace([line for line in trace_lines if not re.search(probes, line)]))
    assert replay.events > 10000
    assert replay.apart


@pytest.mark.parametrize("count", [0, 1])
def test_a_trace_may_have_a_header_and_one_line_or_none(count, cli, trace_lines, write_trace):
    trace = write_trace(trace_lines[: 12 + count])
    done = cli("replay", "--verify", trace)
    assert (done.returncode, done.stderr) == (0, "")
    # Nothing is charged that is in no line.
    replay = one(trace)
    assert replay.events == count
    assert replay.cost.skips <= count


# --- files that are no traces -----------------------------------------------------------------------------------------

NO_TRACES = {
    "empty": (b"", "is empty"),
    "blank": (b"\n \n", "is empty"),
    "packed nothing": (gzip.compress(b""), "is empty"),
    "prose": (b"Dear kernel,\nplease\n", 'no line of a trace; the first line is "Dear kernel,"'),
    "truncated.gz": (shipped_trace().read_bytes()[:50000], "gzip data is damaged or cut short"),
    "truncated header.gz": (shipped_trace().read_bytes()[:5], "gzip data is damaged or cut short"),
    "damaged.gz": (shipped_trace().read_bytes()[:900] + b"damage" + shipped_trace().read_bytes()[906:], "damaged"),
    "trace-cmd": (b"\x17\x08\x44tracing6\0\0\0", "trace-cmd report"),
    "perf.data": (b"PERFILE2\x68\0\0\0", "perf script"),
    "a program": (b"\x7fELF\x02\x01\x01\0\0", "a program"),
    "binary": (bytes(range(256)) * 20, "binary data"),
}


@pytest.mark.parametrize("command", ["replay", "compare"])
@pytest.mark.parametrize("what", NO_TRACES)
def test_what_is_no_trace_is_one_line_and_nothing_is_written(what, command, mistake, write_trace, tmp_path):
    content, message = NO_TRACES[what]
    trace = write_trace(content)
    line = mistake(command, trace, cwd=tmp_path)
    assert line.startswith(f"debugreg: {trace}: ")
    assert message in line
    assert line.removesuffix("\n").isprintable()
    assert list(tmp_path.iterdir()) == [trace]


def test_a_directory_and_a_missing_file_are_one_line(mistake, tmp_path):
    assert "is a directory; name a trace file in it" in mistake("replay", tmp_path)
    assert "No such file or directory" in mistake("replay", tmp_path / "missing.txt")
    assert "Missing argument 'TRACE...'" in mistake("replay")


def test_a_bad_second_trace_leaves_nothing_of_the_first(mistake, tmp_path):
    mistake("replay", shipped_trace(), tmp_path / "missing.txt")


def test_a_steps_file_that_is_none_is_named_with_its_line(mistake, trace_lines, write_trace):
    trace = write_trace(trace_lines)
    trace.with_name("trace.steps").write_text("0 ffffffff81c83ee7 W 7 400\n0 ffffffff81c83ee7 Q 7\n")
    assert f"{trace.with_name('trace.steps')}:2:" in mistake("replay", trace)


@pytest.mark.parametrize("what", [name for name in NO_TRACES if name != "prose"])
def test_in_python_it_is_a_trace_error(what, write_trace):
    with pytest.raises(dr.TraceError, match=r"trace\.txt: "):
        dr.replay(write_trace(NO_TRACES[what][0]))


@pytest.mark.parametrize("arguments", [{"policies": ["lunix"]}, {"vendor": "via"}], ids=repr)
def test_a_policy_or_vendor_that_there_is_not_is_a_value_error(arguments):
    with pytest.raises(ValueError, match=r"'lunix'|via"):
        dr.replay(shipped_trace(), **arguments)


def test_a_name_in_brackets_is_a_name(cli, trace_lines, write_trace):
    for name in ("[bold]x.txt", "a[b]c.txt"):
        done = cli("replay", write_trace(trace_lines[:50], name))
        assert (done.returncode, done.stderr) == (0, "")
        assert name in done.stdout


def test_a_phase_in_brackets_is_a_phase(cli, trace_lines, write_trace):
    text = "".join(trace_lines[:3000]).replace("phase none:", "phase a[/]b:")
    done = cli("replay", write_trace(text))
    assert (done.returncode, done.stderr) == (0, "")
    assert "a[/]b" in done.stdout


def test_a_reader_that_stops_early_is_no_traceback():
    command = [sys.executable, "-m", "debugreg", "replay", "--json", str(shipped_trace()), *["--policy", "skip"] * 60]
    # Unbuffered, Python itself loses what a pipe does not take, and says nothing.
    environment = os.environ | {"PYTHONUNBUFFERED": ""}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1
