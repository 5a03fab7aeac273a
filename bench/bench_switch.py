"""What does a task switch cost, and what does it cost those who have set nothing?

From a task to another and back: two switches.
"""

from itertools import repeat

from .sides import EMPTY, PURE, PYTHON, RUST, Operation, PureHost, RustHost, batch, counted, each_side, uncounted


def there_and_back(host, n):
    """Switch to the other task and back."""
    cpu, one, other = host.cpu, host.one, host.other
    for _ in repeat(None, n):
        cpu.sched_switch(other)
        cpu.sched_switch(one)


def call_and_call_back(host, n):
    """Call a method of the same class and signature that does nothing."""
    cpu, one, other = host.cpu, host.one, host.other
    for _ in repeat(None, n):
        cpu._nothing_with(other)
        cpu._nothing_with(one)


BREAKPOINT = Operation(
    "task switch and back, a breakpoint set",
    cost=(3, 0, 0, 0, 0),
    sides={
        RUST: batch("switch"),
        PYTHON: counted(there_and_back, RustHost(breakpoints=1)),
        PURE: counted(there_and_back, PureHost(breakpoints=1)),
    },
)
NOTHING = Operation(
    "task switch and back, nothing set",
    cost=(0, 0, 0, 0, 2),
    sides={
        RUST: batch("switch-nothing"),
        PYTHON: counted(there_and_back, RustHost(breakpoints=0)),
        EMPTY: uncounted(call_and_call_back, RustHost(breakpoints=0)),
        PURE: counted(there_and_back, PureHost(breakpoints=0)),
    },
)


@each_side(BREAKPOINT, NOTHING)
def test_a_task_switch_and_back(benchmark, operation, side):
    """With nothing set both switches are counted as skipped."""
    operation.measure(benchmark, side)
