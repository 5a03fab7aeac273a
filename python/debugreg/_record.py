"""What a kernel is asked to trace so that `replay` can read it: events and probes, in an instance of tracefs.

The names of the probes are those that `replay` knows (rust/trace/src/ftrace/probe.rs). Whatever the kernel does not
offer (kprobes, KVM, BTF) it is traced without; `Recorder.lacking` says what that is.
"""

from __future__ import annotations

import os

from debugreg._btf import offset_of

TYPE_CHECKING = False  # What `typing` calls so, without the import.
if TYPE_CHECKING:
    from typing import Self

__all__ = ["Recorder"]

NAME = "debugreg"
"""Of the instance, and of the group of the probes: nobody else's are touched."""

MOUNTS = ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")
BTF = "/sys/kernel/btf/vmlinux"

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
ATTR = "flags=+40({0}):x64 bp_type=+52({0}):u32 bp_addr=+56({0}):x64 bp_len=+64({0}):u64"
DEBUGREGS = " ".join(f"db{n}=+{8 * n}($arg):x64" for n in range(4)) + " dr6=+32($arg):x64 dr7=+40($arg):x64"
GUEST_DEBUG = " ".join(f"dr{n}=+{8 + 8 * n}(%si):x64" for n in (0, 1, 2, 3, 7))

# An event probe on the entry of a system call, or a kprobe on the first of these functions that there is.
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
FUNCTIONS = {
    "set_guest_debug": (("kvm_arch_vcpu_ioctl_set_guest_debug",), f"control=+0(%si):x32 {GUEST_DEBUG}"),
    "guest_dr7": (("svm_set_dr7", "vmx_set_dr7"), "value=%si:x64"),
    "guest_set_dr": (("kvm_set_dr",), "reg=%si:s32 value=%dx:x64"),
    "install": (
        ("arch_install_hw_breakpoint",),
        "addr=+{bp_addr}(%di):x64 type=+{bp_type}(%di):u32 len=+{bp_len}(%di)",
    ),
    "uninstall": (("arch_uninstall_hw_breakpoint",), "addr=+{bp_addr}(%di):x64"),
    "restore": (("hw_breakpoint_restore",), ""),
    "guest_sync": (("svm_sync_dirty_debug_regs", "vmx_sync_dirty_debug_regs"), ""),
    "hit": (("perf_bp_event",), "addr=+{bp_addr}(%di):x64"),
}


class Recorder:
    """A recording. Use it as a context: nothing of it is left in tracefs.

    Args:
        size: KiB of buffer for each CPU.

    Raises:
        OSError: There is no tracefs, or this user cannot have it.
    """

    def __init__(self, size: int = 16384) -> None:
        self.root = next((mount for mount in MOUNTS if os.path.exists(f"{mount}/instances")), MOUNTS[0])
        self.instance = f"{self.root}/instances/{NAME}"
        self.size = size
        self.lacking: list[str] = []
        self._probes: list[str] = []

    def __enter__(self) -> Self:
        """Set everything up; nothing is traced yet."""
        os.mkdir(self.instance)
        try:
            self._set_up()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Remove everything."""
        os.rmdir(self.instance)
        for name in self._probes:
            _write(f"{self.root}/dynamic_events", f"-:{NAME}/{name}", append=True)
        self._probes.clear()

    def start(self) -> None:
        """Forget what there is, and trace."""
        _write(f"{self.instance}/trace", "")
        _write(f"{self.instance}/tracing_on", "1")

    def stop(self) -> bytes:
        """Trace no more, and return the lines."""
        _write(f"{self.instance}/tracing_on", "0")
        with open(f"{self.instance}/trace", "rb") as file:
            return file.read()

    def _set_up(self) -> None:
        _write(f"{self.instance}/tracing_on", "0")
        _write(f"{self.instance}/buffer_size_kb", str(self.size))
        for event, condition in EVENTS.items():
            self._enable(event, condition)
        for name, (event, fetched, condition) in SYSCALLS.items():
            self._probe(name, f"e:{NAME}/{name} syscalls.{event} {fetched}", condition)
        places = _places()
        for name, (functions, fetched) in FUNCTIONS.items():
            if "{" in fetched and not places:
                self.lacking.append(name)
                continue
            definitions = (f"p:{NAME}/{name} {function} {fetched.format(**places)}" for function in functions)
            if not any(self._probe(name, definition) for definition in definitions):
                self.lacking.append(name)

    def _probe(self, name: str, definition: str, condition: str = "") -> bool:
        try:
            _write(f"{self.root}/dynamic_events", definition, append=True)
        except OSError:
            return False
        self._probes.append(name)
        self._enable(f"{NAME}/{name}", condition)
        return True

    def _enable(self, event: str, condition: str) -> None:
        folder = f"{self.instance}/events/{event}"
        if not os.path.exists(folder):
            self.lacking.append(event.partition("/")[2])
            return
        if condition:
            _write(f"{folder}/filter", condition)
        _write(f"{folder}/enable", "1")


def _places() -> dict[str, int]:
    """Return where the attributes of a breakpoint are in `struct perf_event`; nothing if the kernel does not say."""
    try:
        with open(BTF, "rb") as file:
            attr = offset_of(file.read(), "perf_event", "attr")
    except OSError:
        return {}
    return {} if attr is None else {"bp_type": attr + 52, "bp_addr": attr + 56, "bp_len": attr + 64}


def _write(path: str, text: str, *, append: bool = False) -> None:
    descriptor = os.open(path, os.O_WRONLY | (os.O_APPEND if append else os.O_TRUNC))
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
