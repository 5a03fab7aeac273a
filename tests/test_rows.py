"""Arrays of events: the same as one by one, all or none."""

import re
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import state

import debugreg as dr

K = dr.events()

POLICIES = ["linux", "lean", "skip", "perf-sched", "linux-2.6.33", "pvm"]


def machine(policy="linux"):
    """Two CPUs, three tasks, a vCPU, a breakpoint of a task and one of a CPU."""
    m = dr.Machine(cpus=2, policy=policy)
    a, b, _ = m.task("a", cpu=0), m.task("b", cpu=0), m.task("c", cpu=1)
    m.vcpu("v", task=a)
    b.perf_event_open(bp_type="w", bp_addr=0x1000, bp_len=8)
    m.do("c perf_event_open bp_type=w bp_addr=0x2000 bp_len=4 on=cpu1")
    return m


def array(*rows):
    """Return an array of rows: event, detail, cpu, who, value."""
    return np.array(list(rows), dr.event_dtype())


ROWS = st.lists(
    st.one_of(
        st.tuples(st.just(K["sched_switch"]), st.just(0), st.integers(0, 1), st.integers(0, 3), st.just(0)),
        st.tuples(
            st.sampled_from([K["vm_entry"], K["vm_exit"]]), st.integers(0, 2), st.just(0), st.just(0), st.just(0)
        ),
        st.tuples(
            st.sampled_from([K["access"], K["kernel_access"]]),
            st.sampled_from([0, 33, 34]),
            st.just(0),
            st.integers(1, 3),
            st.sampled_from([0x1000, 0x2000]),
        ),
        st.tuples(
            st.sampled_from([K["mov_to_dr"], K["mov_from_dr"]]),
            st.sampled_from([0, 6, 7]),
            st.just(0),
            st.just(0),
            st.sampled_from([0x1000, 0x400, 0x90401, 0xFFFF0FF0]),
        ),
        st.tuples(st.just(K["guest_access"]), st.sampled_from([0, 34]), st.just(0), st.just(0), st.just(0x1000)),
        st.tuples(st.just(K["migrate"]), st.just(0), st.integers(0, 1), st.integers(1, 3), st.just(0)),
        st.tuples(st.sampled_from([K["enable"], K["disable"]]), st.just(0), st.just(0), st.just(0), st.just(0)),
        st.tuples(st.sampled_from([K["refresh"], K["nmi"]]), st.just(0), st.integers(0, 1), st.just(0), st.just(0)),
    ),
    max_size=40,
)


def performed(m, rows):
    """Perform what makes sense of rows one by one, and return that, and what came of it."""
    sensible, outcomes = [], []
    for row in rows:
        try:
            outcomes.append(m.run(array(row)).outcomes)
        except ValueError:
            continue
        sensible.append(row)
    return sensible, np.concatenate([*outcomes, np.empty(0, dr.outcome_dtype())])


@given(ROWS, st.sampled_from(POLICIES))
def test_an_array_is_its_events_one_after_the_other(rows, policy):
    one, other, quick = machine(policy), machine(policy), machine(policy)
    with one.measure() as cost:
        sensible, outcomes = performed(one, rows)
    ran = other.run(array(*sensible))
    assert ran.outcomes.tolist() == outcomes.tolist()
    assert quick.run(array(*sensible), outcomes=False) == (ran.cost, None)
    assert ran.cost == cost
    assert one.clock == other.clock == quick.clock
    assert repr(state(one)) == repr(state(other)) == repr(state(quick))


def test_rows_are_what_the_methods_say():
    m, n = machine(), machine()
    rows = array((K["sched_switch"], 0, 0, 2, 0), (K["access"], 34, 0, 2, 0x1000), (K["access"], 34, 0, 2, 0x3000))
    hits = m.run(rows).outcomes
    said = [n.do("cpu0 sched_switch b"), n.do("b store 0x1000 8"), n.do("b store 0x3000 8")]
    assert hits["value"].tolist() == [len(one.hits) for one in said] == [0, 1, 0]
    assert repr(state(m)) == repr(state(n))


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ((99, 0, 0, 0, 0), "event must be 0 to 16 (got 99)"),
        ((K["sched_switch"], 0, 2, 1, 0), "cpu must be 0 to 1 (got 2)"),
        ((K["sched_switch"], 0, 0, 9, 0), "task must be 0 to 3 (got 9)"),
        ((K["sched_switch"], 0, 0, 3, 0), "c belongs to cpu1: migrate comes first"),
        ((K["vm_entry"], 0, 0, 1, 0), "vcpu must be 0 to 0 (got 1)"),
        ((K["vm_exit"], 3, 0, 0, 0), "detail must be 0 to 2 (got 3)"),
        ((K["vm_exit"], 0, 0, 0, 0), "the guest of v is not running: cpu0 runs b; vm_entry comes first"),
        ((K["close"], 0, 0, 7, 0), "counter must be 0 to 1 (got 7)"),
        ((K["access"], 35, 0, 1, 0), "what an access does must be 0 to 2 (got 3)"),
        ((K["access"], 2, 0, 1, 0), "there is no access of no bytes"),
        ((K["mov_to_dr"], 8, 0, 0, 0), "dr must be 0 to 7 (got 8)"),
    ],
)
@pytest.mark.parametrize("outcomes", [True, False])
def test_a_row_that_makes_no_sense_is_named_and_nothing_is_performed(row, why, outcomes):
    m = machine()
    before, clock = state(m), m.clock
    with pytest.raises(ValueError, match=re.escape(f"row 1: {why}")):
        m.run(array((K["sched_switch"], 0, 0, 2, 0), row), outcomes=outcomes)
    assert m.clock == clock
    assert state(m) == before


def test_the_row_that_is_named_is_that_of_the_whole_array():
    rows = np.resize(array((K["sched_switch"], 0, 0, 2, 0), (K["sched_switch"], 0, 0, 1, 0)), 40_001)
    rows[40_000] = (K["vm_exit"], 0, 0, 0, 0)
    with pytest.raises(ValueError, match="row 40000: "):
        machine().run(rows)


def test_layouts():
    assert dr.event_dtype().itemsize == dr.outcome_dtype().itemsize == 16
    m = machine()
    rows = np.resize(array((K["sched_switch"], 0, 0, 2, 0), (K["nmi"], 0, 1, 0, 0)), 6)
    assert m.run(rows[::2]).outcomes.shape == (3,)
    assert m.run(rows[:0]).outcomes.shape == (0,)
    with pytest.raises(TypeError, match=re.escape("rows must be of dtype event_dtype() (got int64)")):
        m.run([1, 2, 3])


def test_others_run_meanwhile_and_who_uses_the_machine_is_noticed():
    m = machine()
    rows = np.resize(array((K["sched_switch"], 0, 0, 2, 0), (K["sched_switch"], 0, 0, 1, 0)), 4_000_000)
    found = []

    def run():
        try:
            found.append(m.run(rows, outcomes=False))
        except RuntimeError as error:
            found.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    turns = 0
    while thread.is_alive():
        turns += 1
        if turns == 2:
            m.do("cpu1 nmi")
    thread.join()
    assert turns > 2
    assert found == ["another thread has used the machine meanwhile: nothing was performed"]
