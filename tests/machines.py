"""What the tests of `Machine` do again and again."""

from __future__ import annotations

__all__ = ["fill", "state", "watch"]


def watch(task, address=0x1000, **options):
    return task.perf_event_open(**{"bp_type": "w", "bp_addr": address, "bp_len": 8} | options)


def fill(task, count=4, **options):
    return [watch(task, 0x1000 + 8 * n, **options) for n in range(count)]


def state(machine):
    """Return everything that a refused event must not change."""
    return [(cpu.slots, cpu.registers, cpu.hardware, cpu.owed, cpu.breakpoints_active) for cpu in machine.cpus]
