"""How fast is a kernel's trace read, and replayed under a policy?

The trace is the one that ships with the package. A replay has no counterpart in Python, but reading has: the pure
Python version takes the same lines apart and does nothing with them.
"""

import gzip
import re

import pytest

import debugreg as dr
from debugreg import _core
from debugreg._compare import shipped_trace

POLICY = "debian-6.12"
LINES = 24_024

_LINE = re.compile(r" *(.+)-(\d+) +\[(\d+)\] (\S+) +(\d+\.\d+): (\w+)(.*)")


def _read():
    trace, mistake = _core.Trace.read(shipped_trace())
    assert mistake is None
    return trace


TRACE = _read()
EVENTS = TRACE.replay(POLICY, None, False, None)[1]


def read():
    """Read the trace and the steps file beside it."""
    trace = _read()
    assert trace.rows == TRACE.rows
    assert trace.passed_over[0] == 0


def read_in_python():
    """Take every line apart: task, pid, CPU, flags, time, event, and what the event says by name."""
    with gzip.open(shipped_trace(), "rt") as text:
        matches = [_LINE.match(line) for line in text if not line.startswith("#")]
    lines = [(*match.groups(), dict(re.findall(r"(\w+)[=:] ?(\S+)", match[7]))) for match in matches if match]
    assert len(lines) == LINES


def replay():
    """Replay it."""
    _, events, *_ = TRACE.replay(POLICY, None, False, None)
    assert events == EVENTS


def replay_and_verify():
    """Replay it, and compare with what the kernel did."""
    result = TRACE.replay(POLICY, None, True, None)
    assert result[-1][-1] == []


def read_replay_and_verify():
    """Do all of it as a user does, with the result as Python's objects."""
    (result,) = dr.replay(shipped_trace(), policies=[POLICY], verify=True)
    assert result.verify


SIDES = {
    "read, pure Python": read_in_python,
    "read": read,
    "replay": replay,
    "replay and verify": replay_and_verify,
    "debugreg.replay, verify=True": read_replay_and_verify,
}


@pytest.mark.benchmark(group=f"the shipped trace: {LINES:,} lines, {EVENTS:,} events")
@pytest.mark.parametrize("side", SIDES)
def test_the_shipped_trace(benchmark, side):
    """Lines a second for what reads, events a second for what replays."""
    benchmark.extra_info["n"] = LINES if side.startswith("read") else EVENTS
    benchmark(SIDES[side])
    if benchmark.stats is not None:
        benchmark.extra_info["seconds_per_operation"] = benchmark.stats.stats.min / benchmark.extra_info["n"]
