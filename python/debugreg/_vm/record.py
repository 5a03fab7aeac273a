"""What the kernel of an emulated machine is asked to trace so that `replay` can read it: an instance of tracefs.

The names of the probes are those that `replay` knows (rust/trace/src/ftrace/probe.rs).
"""

from __future__ import annotations

import os

from debugreg._vm.btf import offset_of

TYPE_CHECKING = False  # What `typing` calls so, without the import.
if TYPE_CHECKING:
    from typing import Self

__all__ = ["Recorder"]

NAME = "debugreg"
"""Of the instance, and of the group of the probes."""

TRACEFS = "/sys/kernel/tracing"
INSTANCE = f"{TRACEFS}/instances/{NAME}"
BTF = "/sys/kernel/btf/vmlinux"

SIZE = 16384
"""KiB of buffer for each CPU."""

KVM_RUN = 0xAE80
MODIFY_ATTRIBUTES = 0x4008240B
SET_DEBUGREGS = 0x4080AEA2

EVENTS = {
    "sched/sched_switch": "",
    "sched/sched_migrate_task": "",
    "sched/sched_process_fork": "",
    "sched/sched_process_exec": "",
    "sched/sched_process_exit": "",
    "kvm/kvm_entry": "",
    "kvm/kvm_exit": "",
    "kvm/kvm_userspace_exit": "",
    "syscalls/sys_enter_perf_event_open": "",
    "syscalls/sys_exit_perf_event_open": "",
    "syscalls/sys_enter_close": "",
    "syscalls/sys_exit_close": "",
    "syscalls/sys_enter_ioctl": f"cmd != {KVM_RUN:#x}",
    "syscalls/sys_enter_ptrace": "",
    "syscalls/sys_exit_ptrace": "",
}
"""Each with its filter."""

# Offsets in `struct perf_event_attr`, `struct kvm_debugregs` and `struct kvm_guest_debug` (include/uapi/linux).
BP_TYPE, BP_ADDR, BP_LEN = 52, 56, 64
ATTR = f"flags=+40({{0}}):x64 bp_type=+{BP_TYPE}({{0}}):u32 bp_addr=+{BP_ADDR}({{0}}):x64 bp_len=+{BP_LEN}({{0}}):u64"
DEBUGREGS = " ".join(f"db{n}=+{8 * n}($arg):x64" for n in range(4)) + " dr6=+32($arg):x64 dr7=+40($arg):x64"
GUEST_DEBUG = " ".join(f"dr{n}=+{8 + 8 * n}(%si):x64" for n in (0, 1, 2, 3, 7))

SYSCALLS = {
    "bp_open": (
        "sys_enter_perf_event_open",
        f"type=+0($attr_uptr):u32 {ATTR.format('$attr_uptr')} pid=$pid:s32 cpu=$cpu:s32",
        "",
    ),
    "bp_modify": (
        "sys_enter_ioctl",
        f"fd=$fd:s32 cmd=$cmd:x64 {ATTR.format('$arg')}",
        f"cmd == {MODIFY_ATTRIBUTES:#x}",
    ),
    "set_debugregs": ("sys_enter_ioctl", f"fd=$fd:s32 cmd=$cmd:x64 {DEBUGREGS}", f"cmd == {SET_DEBUGREGS:#x}"),
}
"""Event probes on entries of system calls: of which one, what is fetched, and the filter."""

FUNCTIONS = {
    "set_guest_debug": ("kvm_arch_vcpu_ioctl_set_guest_debug", f"control=+0(%si):x32 {GUEST_DEBUG}"),
    "guest_dr7": ("svm_set_dr7", "value=%si:x64"),
    "guest_set_dr": ("kvm_set_dr", "reg=%si:s32 value=%dx:x64"),
    "install": (
        "arch_install_hw_breakpoint",
        "addr=+{bp_addr}(%di):x64 type=+{bp_type}(%di):u32 len=+{bp_len}(%di):u64",
    ),
    "uninstall": ("arch_uninstall_hw_breakpoint", "addr=+{bp_addr}(%di):x64"),
    "restore": ("hw_breakpoint_restore", ""),
    "guest_sync": ("svm_sync_dirty_debug_regs", ""),
    "hit": ("perf_bp_event", "addr=+{bp_addr}(%di):x64"),
}
"""Kprobes: of which function, and what is fetched; of an event at its places in `struct perf_event`."""


class Recorder:
    """A recording.

    Raises:
        OSError: The kernel has not all of that.
    """

    def __init__(self) -> None:
        os.mkdir(INSTANCE)
        _write(f"{INSTANCE}/tracing_on", "0")
        _write(f"{INSTANCE}/buffer_size_kb", str(SIZE))
        for event, condition in EVENTS.items():
            _enable(event, condition)
        for name, (event, fetched, condition) in SYSCALLS.items():
            _define(name, f"e:{NAME}/{name} syscalls.{event} {fetched}", condition)
        with open(BTF, "rb") as file:
            attr = offset_of(file.read(), "perf_event", "attr")
        places = {"bp_type": attr + BP_TYPE, "bp_addr": attr + BP_ADDR, "bp_len": attr + BP_LEN}
        for name, (function, fetched) in FUNCTIONS.items():
            _define(name, f"p:{NAME}/{name} {function} {fetched.format(**places)}", "")

    def __enter__(self) -> Self:
        """Forget what there is, and trace."""
        _write(f"{INSTANCE}/trace", "")
        _write(f"{INSTANCE}/tracing_on", "1")
        return self

    def __exit__(self, *_: object) -> None:
        """Trace no more."""
        _write(f"{INSTANCE}/tracing_on", "0")

    def lines(self) -> bytes:
        """Return what was traced."""
        with open(f"{INSTANCE}/trace", "rb") as file:
            return file.read()


def _define(name: str, definition: str, condition: str) -> None:
    descriptor = os.open(f"{TRACEFS}/dynamic_events", os.O_WRONLY | os.O_APPEND)
    try:
        os.write(descriptor, definition.encode())
    finally:
        os.close(descriptor)
    _enable(f"{NAME}/{name}", condition)


def _enable(event: str, condition: str) -> None:
    if condition:
        _write(f"{INSTANCE}/events/{event}/filter", condition)
    _write(f"{INSTANCE}/events/{event}/enable", "1")


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
