"""The first process of the emulated machine: it loads kvm-amd, and performs scenarios that come over a serial line.

It runs on the interpreter and the package of the host, with no more of them than it imports.
"""

from __future__ import annotations

import os
import sys
import termios
from contextlib import nullcontext

from debugreg import _core
from debugreg._vm.line import Line
from debugreg._vm.record import Recorder

__all__ = ["main"]

PORT = "/dev/ttyS1"
"""The console is the other one."""

SETTINGS = {
    # What the scenarios are about unless they say otherwise; Debian's own default is 3.
    "/proc/sys/kernel/perf_event_paranoid": "2",
    # Scenarios have low addresses, and execve maps them again for tasks that have no rights.
    "/proc/sys/vm/mmap_min_addr": "0",
    # The tasks of the world are SCHED_FIFO, and whoever runs is busy: nobody is to be let in between.
    "/proc/sys/kernel/sched_rt_runtime_us": "-1",
    # Since 6.12 the scheduler has a second way to let others in (fair_server); older kernels lack these.
    "/sys/kernel/debug/sched/fair_server/cpu0/runtime": "0",
    "/sys/kernel/debug/sched/fair_server/cpu1/runtime": "0",
}


def main() -> None:
    """Answer messages for ever. The host ends it by ending the machine."""
    modules = [(name, _read(f"/modules/{name}")) for name in sorted(os.listdir("/modules"))]
    if trouble := _core.vm_boot(modules):
        sys.exit(trouble)
    for path, value in SETTINGS.items():
        if not os.path.exists(path):
            continue
        with open(path, "w", encoding="utf-8") as file:
            file.write(value)
    # Before the first breakpoint: the plugin sees only what has not been executed yet.
    _core.vm_watch(_read("/proc/kallsyms").decode())
    port = os.open(PORT, os.O_RDWR | os.O_NOCTTY)
    # Bytes as they are: no echo, no line discipline.
    settings = [0, 0, termios.CS8 | termios.CREAD | termios.CLOCAL, 0, termios.B115200, termios.B115200]
    termios.tcsetattr(port, termios.TCSANOW, [*settings, termios.tcgetattr(port)[6]])
    line = Line(port)
    line.send((os.uname().release,))
    (policy,) = line.receive()
    world = _core.KernelWorld(policy)
    recorder = Recorder()
    while True:
        text, hazardous, traced = line.receive()
        with recorder if traced else nullcontext():
            result, mistake = world.run(text, hazardous)
        line.send((result, mistake, recorder.lines() if traced else b""))


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
