"""How cheap is it to ask whether anything is set?

That is the question behind the mail's whole list: a hook that may skip its work asks first. In the kernel it is one
load and a mask; here it is besides, from Python, a call.
"""

from itertools import repeat

from .sides import EMPTY, PURE, PYTHON, RUST, Operation, PureHost, RustHost, batch, counted, each_side, uncounted


def ask(host, n):
    """Ask whether a breakpoint is active; one is."""
    cpu = host.cpu
    for _ in repeat(None, n):
        active = cpu.breakpoints_active
    assert active is True


def ask_nothing(host, n):
    """Get a property of the same class that does nothing."""
    cpu = host.cpu
    for _ in repeat(None, n):
        active = cpu._nothing
    assert active is False


SKIP = Operation(
    "skip test",
    cost=(0, 0, 0, 0, 0),
    sides={
        RUST: batch("skip"),
        PYTHON: counted(ask, RustHost(breakpoints=1)),
        EMPTY: uncounted(ask_nothing, RustHost(breakpoints=1)),
        PURE: counted(ask, PureHost(breakpoints=1)),
    },
    n=1_000_000,
)


@each_side(SKIP)
def test_asking_whether_a_breakpoint_is_active(benchmark, operation, side):
    """One host breakpoint is set."""
    operation.measure(benchmark, side)
