"""The policies that have names, and their deltas."""

import re
from pathlib import Path

import pytest

import debugreg as dr

GUIDE = Path(__file__).parents[1] / "scenarios" / "guide" / "both-sides.scn"
ROWS = dr.policies()
BREAKS_ONE_SIDE = {"sev-es", "virtualbox", "none"}
"""A guest's breakpoints never fire, or an exit loses the host's."""
SWITCHED = [f"{row.name}+{delta.id}={state}" for row in ROWS for delta in row.deltas for state in ("on", "fixed")]


def test_the_names_are_those_of_the_contract():
    names = [row.name for row in ROWS]
    assert len(names) == len(set(names))
    assert set(names) >= {
        *("linux-2.6.30", "linux-2.6.33", "linux-5.15", "linux-6.14", "linux", "debian-6.12"),
        *("perf-sched", "skip", "lean"),
    }


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_says_what_the_policy_is(row):
    assert row.host == ("thread" if row.name in {"linux-2.6.30", "linux-2.6.32"} else "perf")
    assert row.kvm
    assert row.line
    assert [delta.id for delta in row.deltas] == list(dict.fromkeys(delta.id for delta in row.deltas))
    for delta in row.deltas:
        assert re.fullmatch(r"HB?-\d\d|Z-\d\d?|[a-z]+(-[a-z]+)*", delta.id)
        assert delta.state in {"on", "fixed"}
        assert delta.line


def test_the_policies_come_in_the_same_order_every_time():
    assert dr.policies() == ROWS
    assert len({hash(row) for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("name", [*(row.name for row in ROWS), *SWITCHED])
def test_every_policy_with_each_of_its_deltas_runs_the_guide(name, write_scenario):
    text = GUIDE.read_text()
    base = name.partition("+")[0]
    if base in {"linux-2.6.30", "linux-2.6.32"}:
        text = "".join(line for line in text.splitlines(keepends=True) if "registers" not in line)
    (report,) = dr.run(write_scenario(text), policies=[name])
    assert report.policy == dr.Machine(policy=name).policy
    assert bool(report) == (base not in BREAKS_ONE_SIDE), [step.event for step in report.steps if step.ok is False]


def test_what_a_kernel_has_no_word_for_is_a_mistake_with_its_line(mistake):
    line = next(n for n, text in enumerate(GUIDE.read_text().splitlines(), 1) if "registers" in text)
    assert f"{GUIDE}:{line}:1: not expressible under this policy: " in mistake("run", GUIDE, "--policy", "linux-2.6.30")


@pytest.mark.parametrize("name", SWITCHED)
def test_the_name_of_a_policy_with_a_delta_reads_as_itself(name):
    printed = dr.Machine(policy=name).policy
    assert dr.Machine(policy=printed).policy == printed


def test_deltas_add_up():
    name = "linux-5.15+H-01=fixed+H-20=fixed+HB-34=fixed"
    assert dr.Machine(policy=name).policy == name
    (built,), (named,) = (dr.run(GUIDE, policies=[policy], steps=True) for policy in (name, "debian-6.12"))
    assert (built.steps, built.cost) == (named.steps, named.cost)


def test_a_delta_without_a_state_is_on():
    (implied,), (said,) = (dr.run(GUIDE, policies=[f"linux{delta}"], steps=True) for delta in ("+HB-34", "+HB-34=on"))
    assert implied.steps == said.steps
    (natural,) = dr.run(GUIDE, policies=["linux"], steps=True)
    assert implied.steps != natural.steps


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "unknown policy ''"),
        ("linux-9.99", "unknown policy 'linux-9.99': allowed are linux-2.6.30, "),
        ("Linux", "unknown policy 'Linux'"),
        ("linux+", "unknown delta ''"),
        ("linux+H-99", "unknown delta 'H-99': allowed are announce, "),
        ("linux+H-01=off", "delta H-01 can be 'on' or 'fixed', not 'off'"),
        ("linux+H-01=", "delta H-01 can be 'on' or 'fixed', not ''"),
        ("lean,skip", "unknown policy 'lean,skip'"),
    ],
    ids=repr,
)
def test_a_policy_that_there_is_not_says_which_there_are(name, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        dr.Machine(policy=name)


# --- the command ------------------------------------------------------------------------------------------------------


def test_policies_as_json_has_the_shape_of_the_design(cli_json):
    documents = cli_json("policies")
    assert documents == [row.to_dict() for row in ROWS]
    for document in documents:
        assert {"name", "host", "kvm", "deltas"} <= set(document)
        assert all(list(delta) == ["id", "state", "line"] for delta in document["deltas"])


def test_the_listing_has_every_policy_every_delta_and_what_they_are(cli):
    done = cli("policies")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    assert "…" not in done.stdout
    for row in ROWS:
        (line,) = [line for line in lines if line.startswith(f" {row.name} ")]
        assert line.split()[:3] == [row.name, row.host, row.kvm]
    words = " ".join(done.stdout.split())
    for delta in {(delta.id, delta.line) for row in ROWS for delta in row.deltas}:
        assert " ".join(delta) in words


def test_the_listing_needs_no_unicode(cli):
    done = cli("policies", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()
