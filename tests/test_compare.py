"""`compare`: every policy on one trace, as a page, as JSON, and when it is interrupted."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import debugreg as dr
from debugreg._compare import shipped_trace

NAMES = [row.name for row in dr.policies() if row.name != "linux"]
TRAPS_EACH = {"linux-2.6.30", "linux-2.6.33", "perf-sched", "skip"}
LAWS = ["host-armed", "guest-armed", "entry-quiet", "skip-free", "way-out"]
WIDTH = 100


@pytest.fixture(scope="module")
def comparison():
    """Return the comparison of every policy on the shipped trace."""
    return dr.compare()


@pytest.fixture(scope="module")
def page(cli):
    """Return what `debugreg compare` prints into a pipe."""
    done = cli("compare")
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture
def long_trace(tmp_path):
    """Return a trace of two million lines: the shipped one, many times over."""
    path = tmp_path / "long.txt.gz"
    path.write_bytes(shipped_trace().read_bytes() * 84)
    return path


def cells(page, first):
    """Return the cells of the rows that begin so, block after block of policies."""
    page = page.partition("Which laws it keeps")[0]
    rows = [line for line in page.splitlines() if line.startswith(f" {first}  ")]
    return [cell for row in rows for cell in row.replace(">= ", ">=").removeprefix(f" {first}").split()]


# --- what is compared -------------------------------------------------------------------------------------------------


def test_without_arguments_it_is_every_policy_on_the_shipped_trace(comparison):
    assert [replay.policy for replay in comparison.replays] == NAMES
    assert comparison.trace == str(shipped_trace())
    assert {replay.vendor for replay in comparison.replays} == {"amd"}
    assert comparison.weight == 20


def test_a_replay_is_the_one_that_replay_gives(comparison):
    assert list(comparison.replays) == dr.replay(shipped_trace(), policies=NAMES)


def test_the_ratio_is_to_the_cheapest_that_is_safe_as_far_as_the_trace_shows(comparison):
    safe = [r for r in comparison.replays if r.apart and not r.law("entry-quiet").failures and not r.not_expressible]
    assert comparison.cheapest in safe
    base = min(replay.cost.dr_writes + replay.cost.dr_reads + 20 * replay.cost.vm_exits for replay in safe)
    for replay in comparison.replays:
        cost = replay.cost.dr_writes + replay.cost.dr_reads + 20 * replay.cost.vm_exits
        assert comparison.ratio(replay) == cost / base
    assert comparison.ratio(comparison.cheapest) == 1


def test_the_laws_that_a_replay_shows_are_those_of_the_mail(comparison):
    broken = {
        replay.policy: {law.law for law in replay.observed if law.failures} - {"way-out"}
        for replay in comparison.replays
    }
    assert broken["linux-2.6.30"] >= {"entry-quiet", "host-armed", "skip-free"}
    assert broken["linux-2.6.33"] == broken["skip"] == {"entry-quiet"}
    # DR6 was written at every vcpu_put (4.15 to 5.14).
    assert "skip-free" in broken["linux-4.15"] & broken["linux-5.14"]
    for policy in ("perf-sched", "lean", "linux-5.15", "debian-6.12", "linux-6.14"):
        assert broken[policy] == set()


@pytest.mark.parametrize("weight", [0, 1, 1000])
def test_the_weight_is_what_an_exit_counts_for(weight):
    comparison = dr.compare(policies=["lean", "linux"], weight=weight)
    for replay in comparison.replays:
        cost = replay.cost
        assert comparison.weighted(replay) == cost.dr_writes + cost.dr_reads + weight * cost.vm_exits


def test_a_policy_that_breaks_a_law_is_no_base(cli):
    comparison = dr.compare(policies=["skip", "linux-2.6.33"])
    assert comparison.cheapest is None
    assert [comparison.ratio(replay) for replay in comparison.replays] == [None, None]
    page = cli("compare", "--no-laws", "--policy", "skip", "--policy", "linux-2.6.33").stdout
    assert cells(page, "against the cheapest") == ["-", "-"]


def test_a_lower_bound_is_no_base(write_trace, trace_lines):
    comparison = dr.compare(write_trace(trace_lines))
    assert {replay.policy for replay in comparison.replays if replay.lower_bound} >= TRAPS_EACH
    # perf-sched seems to be cheaper there, since its traps are in no line.
    assert comparison.cheapest.policy == "lean"


def test_progress_names_the_policy_and_counts_the_rows():
    told = []
    comparison = dr.compare(policies=["lean", "skip"] * 4, progress=lambda *words: told.append(words))
    replayed = [one for one in told if not one[0].startswith("laws: ")]
    assert all(policy in {"lean", "skip"} and 0 <= done <= total for policy, done, total in replayed)
    assert {total for _, _, total in replayed} <= {comparison.rows}
    judged = [one for one in told if one[0].startswith("laws: ")]
    assert judged == [(f"laws: {policy}", at, 8) for at, policy in enumerate(["lean", "skip"] * 4, start=1)]


@pytest.mark.parametrize("arguments", [{"policies": ["lunix"]}, {"vendor": "via"}], ids=repr)
def test_a_policy_or_vendor_that_there_is_not_is_a_value_error(arguments):
    with pytest.raises(ValueError, match=r"'lunix'|via"):
        dr.compare(**arguments)


def test_who_keeps_which_law_is_what_check_says(comparison):
    kept = {one.verdict.policy: one for one in comparison.kept}
    assert list(kept) == NAMES
    assert list(kept["skip"].broken) == ["entry-quiet"]
    for policy in ("lean", "perf-sched", "linux-5.15", "linux-6.14", "debian-6.12", "linux-fixed"):
        assert kept[policy]
        assert all(kept[policy].keeps(law.name) for law in dr.laws())
    assert kept["skip"].verdict.scenario == dr.check("skip", nmi=True).scenario
    assert comparison.cheapest.policy == "lean"


def test_without_laws_the_trace_alone_says_who_is_safe():
    comparison = dr.compare(policies=["lean", "skip"], laws=False)
    assert comparison.kept == ()
    assert comparison.cheapest.policy == "lean"
    assert [row["check"] for row in comparison.to_dict()["policies"]] == [None, None]


# --- JSON -------------------------------------------------------------------------------------------------------------


def test_compare_as_json_has_the_shape_of_the_design(cli_json, comparison):
    document = cli_json("compare")
    assert list(document) == ["trace", "weight", "policies"]
    assert (document["trace"], document["weight"]) == (str(shipped_trace()), 20)
    assert [entry["policy"] for entry in document["policies"]] == NAMES
    for entry, replay in zip(document["policies"], comparison.replays, strict=True):
        assert list(entry) == ["policy", "vendor", "check", "replay", "ratio"]
        assert set(entry["check"]) >= {"policy", "vendor", "scope", "ok", "states", "transitions", "violation", "laws"}
        assert set(entry["check"]["laws"]) == {law.name for law in dr.laws()}
        assert entry["replay"] == replay.to_dict()
        assert entry["ratio"] == pytest.approx(comparison.ratio(replay))
        assert [law["law"] for law in entry["replay"]["observed"]] == LAWS


def test_json_is_the_same_in_every_process(cli):
    first, second = (cli("compare", "--no-laws", "--json", "--policy", "lean", PYTHONHASHSEED=seed) for seed in "12")
    timeless = [re.sub(r'"seconds": [0-9.e-]+', "", done.stdout) for done in (first, second)]
    assert timeless[0] == timeless[1]
    assert len(first.stdout.splitlines()) == 1


def test_options_reach_the_comparison(cli_json):
    document = cli_json("compare", "--policy", "linux-5.15+H-01=fixed", "--vendor", "intel", "--weight", "7")
    (entry,) = document["policies"]
    assert (entry["policy"], entry["vendor"], document["weight"]) == ("linux-5.15+H-01=fixed", "intel", 7)


def test_several_traces_are_several_documents(cli_json, write_trace, trace_lines):
    traces = [write_trace(trace_lines[:500], "a.txt"), write_trace(trace_lines[:900], "b.txt")]
    documents = cli_json("compare", *traces, "--policy", "lean")
    assert [document["trace"] for document in documents] == [str(trace) for trace in traces]


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_has_every_phase_and_every_total(page, comparison):
    for at, phase in enumerate(comparison.replays[0].phases):
        costs = [replay.phases[at] for replay in comparison.replays]
        if any(one.cost.weighted() for one in costs):
            assert cells(page, phase.name) == ["-" if one.partial else f"{one.cost.weighted():,}" for one in costs]
    assert cells(page, "total") == [
        f"{'>=' if replay.lower_bound or replay.not_expressible else ''}{comparison.weighted(replay):,}"
        for replay in comparison.replays
    ]


def test_a_ratio_of_a_lower_bound_is_a_lower_bound(page, comparison):
    assert cells(page, "against the cheapest") == [
        f"{'>=' if replay.lower_bound or replay.not_expressible else ''}{comparison.ratio(replay):.2f}"
        for replay in comparison.replays
    ]


def test_the_page_says_what_its_figures_are(page):
    head = " ".join(page.splitlines()[:5])
    assert shipped_trace().name in head
    assert "cost = writes + reads of debug registers + 20 x VM exits that the policy caused" in head
    assert "lean is the cheapest" in page


def test_the_page_answers_the_mail(page):
    words = " ".join(page.split())
    for part in ("nothing is set?", "way out", "inside the entry", "guest run", "host run"):
        assert part in words


def test_what_a_kernel_has_no_word_for_is_said_with_its_line(page, trace_lines):
    (line,) = re.findall(r"linux-2\.6\.30: line (\d+): cpu-wide breakpoints came with perf in 2\.6\.33", page)
    mark = next(n for n, text in enumerate(trace_lines, 1) if "phase cpu-wide:" in text)
    assert mark < int(line) < mark + 20


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--policy", "lean"],
        ["--weight", "10000"],
        [word for name in NAMES for word in ("--policy", f"{name}+H-15=on+HB-34=on" if "linux" in name else name)],
    ],
    ids=["all", "one", "dear", "long names"],
)
def test_the_page_fits_a_mail(cli, arguments):
    done = cli("compare", "--no-laws", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= WIDTH
    assert "…" not in done.stdout


@pytest.mark.parametrize("columns", ["20", "300"])
def test_the_page_is_the_same_whatever_the_terminal(cli, page, columns):
    assert cli("compare", COLUMNS=columns, TERM="dumb").stdout == page


def test_the_page_needs_no_unicode(cli):
    done = cli("compare", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()


def test_without_a_steps_file_the_page_marks_lower_bounds(cli, write_trace, trace_lines):
    trace = write_trace(trace_lines)
    totals = dict(zip(NAMES, cells(cli("compare", "--no-laws", trace).stdout, "total"), strict=True))
    assert {name for name, total in totals.items() if total.startswith(">=")} >= TRAPS_EACH


@pytest.mark.parametrize("count", [0, 1])
def test_a_trace_in_which_nothing_happens_proves_nothing(cli, write_trace, trace_lines, count):
    done = cli("compare", "--no-laws", write_trace(trace_lines[: 12 + count]))
    assert (done.returncode, done.stderr) == (0, "")
    assert "is the cheapest" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= WIDTH
    assert "…" not in done.stdout


def test_names_in_brackets_are_names(cli, write_trace, trace_lines):
    text = "".join(trace_lines[:3000]).replace("phase none:", "phase a[/]b:")
    for name in ("[bold]x.txt", "a[b]c.txt"):
        done = cli("compare", "--no-laws", write_trace(text, name))
        assert (done.returncode, done.stderr) == (0, "")
        assert name.rpartition("/")[2] in done.stdout
        assert " a[/]b " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--policy", "lunix"], "unknown policy 'lunix'"),
        (["--vendor", "via"], "'via' is not one of 'intel', 'amd'"),
        (["--weight", "-1"], "-1 is not in the range x>=0"),
        (["--weight", "much"], "'much' is not a valid integer"),
        (["nowhere.txt"], "nowhere.txt: cannot be read: No such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line(mistake, arguments, part):
    assert part in mistake("compare", *arguments)


# --- terminals --------------------------------------------------------------------------------------------------------

# The command line, also where a shell that runs its tests in the background has had SIGINT ignored.
HEARS_CTRL_C = """
import signal, sys
from debugreg.__main__ import main
signal.signal(signal.SIGINT, signal.default_int_handler)
print("here we go", file=sys.stderr, flush=True)
sys.exit(main())
"""
STARTED = "here we go\n"
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;\d+)*m")


def in_a_terminal(*arguments, stream, interrupt_at=None, **environment):
    """Run a command with one stream on a terminal, and give its code, that stream, and the other one."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "120"} | environment
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | {stream: theirs}
    command = [sys.executable, "-c", HEARS_CTRL_C, *map(str, arguments)]
    with ThreadPoolExecutor(1) as pool, subprocess.Popen(command, env=environment, **streams) as process:
        os.close(theirs)
        other = pool.submit((process.stdout or process.stderr).read)
        shown = b""
        while chunk := _read(ours):
            shown += chunk
            if interrupt_at and interrupt_at in shown:
                process.send_signal(signal.SIGINT)
                interrupt_at = None
    os.close(ours)
    return process.returncode, shown.decode(), other.result().decode()


def _read(terminal):
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux: the other end is closed.
        return b""


def test_a_pipe_gets_no_escapes(page):
    assert "\x1b" not in page
    assert page.endswith("\n")


def test_a_terminal_gets_colours_and_no_color_takes_them_away(page):
    code, shown, stderr = in_a_terminal("compare", stream="stdout")
    assert (code, stderr) == (0, STARTED)
    assert COLOUR.search(shown)
    code, shown, stderr = in_a_terminal("compare", stream="stdout", NO_COLOR="1")
    assert (code, stderr) == (0, STARTED)
    assert not COLOUR.search(shown)
    assert re.sub(r"\x1b\[[\d;]*m", "", shown).replace("\r\n", "\n") == page


def test_progress_is_on_stderr_and_leaves_nothing_behind(long_trace):
    code, shown, stdout = in_a_terminal(
        "compare", "--no-laws", "--json", "--policy", "lean", long_trace, stream="stderr"
    )
    assert code == 0
    assert json.loads(stdout)["policies"][0]["policy"] == "lean"
    assert "comparing" in shown
    # The last thing that is written erases the line.
    assert shown.rstrip().endswith("\x1b[2K")


def test_progress_is_nowhere_if_stderr_is_no_terminal(page):
    code, _, stderr = in_a_terminal("compare", "--no-laws", "--policy", "lean", stream="stdout")
    assert (code, stderr) == (0, STARTED)
    assert "comparing" not in page


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [0, 0.5, 1.5], ids=["as it starts", "as it reads", "as it replays"])
@pytest.mark.parametrize("command", ["compare", "replay"])
def test_ctrl_c_ends_it_with_130_and_without_a_traceback(command, after, long_trace):
    more = ["--verify"] + ["--policy", "linux"] * 9 if command == "replay" else []
    words = [sys.executable, "-c", HEARS_CTRL_C, command, str(long_trace), *more]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stderr.readline()
        time.sleep(after)
        process.send_signal(signal.SIGINT)
        # It takes a fraction of a second; what is proved is that it does not go on to the end.
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stderr.strip() == ""


def test_after_ctrl_c_it_says_what_it_knows_so_far(long_trace):
    code, _, stdout = in_a_terminal("compare", "--no-laws", long_trace, stream="stderr", interrupt_at=b"comparing lean")
    assert code == 130
    assert cells(stdout, "total")
    assert "linux-" in stdout


def test_ctrl_c_leaves_the_terminal_as_it_was(long_trace):
    code, shown, _ = in_a_terminal("compare", "--no-laws", long_trace, stream="stderr", interrupt_at=b"comparing lean")
    assert code == 130
    assert "Traceback" not in shown
    # The cursor, which the bar hides, is back.
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l")


def test_in_python_ctrl_c_is_a_keyboard_interrupt(long_trace):
    program = (
        "import os, signal, sys, debugreg as dr\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def tell(*_):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "try:\n"
        "    dr.compare(sys.argv[1], progress=tell)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n"
    )
    command = [sys.executable, "-c", program, str(long_trace)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n", "")
