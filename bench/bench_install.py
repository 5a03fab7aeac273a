"""What does it take to put breakpoints into registers and to take them out again?

One: a counter of the running task is disabled and enabled. Four: they leave with their task and come back with it.
"""

from itertools import repeat

from .bench_switch import there_and_back
from .sides import PURE, PYTHON, RUST, Operation, PureHost, RustHost, batch, counted, each_side


def out_and_in(host, n):
    """Disable the counter and enable it."""
    (counter,) = host.counters
    for _ in repeat(None, n):
        counter.disable()
        counter.enable()


ONE = Operation(
    "uninstall and install of one",
    cost=(3, 0, 0, 0, 0),
    sides={
        RUST: batch("install"),
        PYTHON: counted(out_and_in, RustHost(breakpoints=1)),
        PURE: counted(out_and_in, PureHost(breakpoints=1)),
    },
)
FOUR = Operation(
    "uninstall and install of four",
    cost=(12, 0, 0, 0, 0),
    sides={
        RUST: batch("switch-4"),
        PYTHON: counted(there_and_back, RustHost(breakpoints=4)),
        PURE: counted(there_and_back, PureHost(breakpoints=4)),
    },
)


@each_side(ONE, FOUR)
def test_breakpoints_out_of_registers_and_in_again(benchmark, operation, side):
    """An install writes two registers, an uninstall one."""
    operation.measure(benchmark, side)
