"""What does a VM entry and exit cost the host, and what if it has set nothing?

The guest uses no breakpoints. The entry disarms DR7 if the host has one set, and the exit refreshes all six registers.
"""

from itertools import repeat

from .sides import PURE, PYTHON, RUST, Operation, PureHost, RustHost, batch, counted, each_side


def in_and_out(host, n):
    """Enter the guest and leave it."""
    vcpu = host.vcpu
    for _ in repeat(None, n):
        vcpu.vm_entry()
        vcpu.vm_exit()


BREAKPOINT = Operation(
    "VM entry and exit, a host breakpoint set",
    cost=(7, 0, 0, 0, 0),
    sides={
        RUST: batch("entry"),
        PYTHON: counted(in_and_out, RustHost(breakpoints=1)),
        PURE: counted(in_and_out, PureHost(breakpoints=1)),
    },
)
NOTHING = Operation(
    "VM entry and exit, nothing set",
    cost=(0, 0, 0, 0, 2),
    sides={
        RUST: batch("entry-nothing"),
        PYTHON: counted(in_and_out, RustHost(breakpoints=0)),
        PURE: counted(in_and_out, PureHost(breakpoints=0)),
    },
)


@each_side(BREAKPOINT, NOTHING)
def test_a_vm_entry_and_exit(benchmark, operation, side):
    """With nothing set both hooks are counted as skipped."""
    operation.measure(benchmark, side)
