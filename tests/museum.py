"""The museum: bugs that the reference knows, each with a scope in which `check` finds it by itself.

A bug is a delta of a policy. It must be found in its scope with all laws on, and the same scope must be safe without
it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import debugreg as dr

__all__ = ["ENTRIES", "NOT_HERE", "Entry", "both"]


@dataclass(frozen=True)
class Entry:
    """A bug, and where to look for it."""

    id: str
    law: str
    """The law that it breaks first."""
    events: str = ""
    """The kinds of events that it takes."""
    vendor: str = "amd"
    base: str = "linux-fixed"
    """The policy without it."""
    delta: str = ""
    """How it is switched on; default: `ID=on`."""
    fix: str = ""
    """How it is switched off; default: it is off in the base."""
    scope: dict[str, object] = field(default_factory=dict)

    @property
    def bug(self) -> str:
        """The policy that has it."""
        return f"{self.base}+{self.delta or self.id + '=on'}"

    @property
    def fixed(self) -> str:
        """The policy that does not."""
        return f"{self.base}+{self.fix}" if self.fix else self.base

    def look(self, policy: str) -> dr.Verdict:
        """Explore a policy in this scope."""
        return dr.check(policy, vendor=self.vendor, events=self.events, **self.scope)  # type: ignore[arg-type]

    @property
    def line(self) -> str:
        """What it is, in a line."""
        if self.id in OTHER:
            return OTHER[self.id]
        (line,) = {delta.line for row in dr.policies() for delta in row.deltas if delta.id == self.id}
        return line


def _old(name: str) -> str:
    """Return a policy of the years before 3.15 with everything fixed that there was to fix."""
    (row,) = (row for row in dr.policies() if row.name == name)
    return "+".join([name, *(f"{d.id}=fixed" for d in row.deltas if d.id.startswith(("H", "Z")))])


HOST = {"vcpus": 0}
TWO = {"vcpus": 0, "slots": 2, "counters": 2}

OLD = _old("linux-2.6.33")

ENTRIES = [
    Entry("H-01", "guest-reads-own", "+guest-dr6,fastpath"),
    Entry("H-02", "guest-armed"),
    Entry("H-03", "dr6-true", "+guest-dr6,ptrace", vendor="intel"),
    Entry("H-04", "skip-free"),
    Entry("H-05", "entry-quiet"),
    Entry("H-06", "dr6-true", "entry,guest-dr,guest-dr6,guest-access,debug", base="linux-fixed+Z-9=on"),
    Entry("H-07", "dr6-true", "+debug-gd", vendor="intel"),
    Entry("H-08", "guest-reads-own", "+guest-cpl3", vendor="intel", base=OLD),
    Entry("H-09", "dr6-true", "+guest-dr6"),
    Entry("H-10", "guest-armed", "+ioctl"),
    Entry("H-11", "guest-reads-own", "+ioctl"),
    Entry("H-12", "guest-reads-own", "+ioctl-upper"),
    Entry("H-13", "guest-armed", "+init"),
    Entry("H-14", "guest-armed", "+task-switch"),
    Entry("H-15", "guest-reads-own", "+guest-gd"),
    Entry("H-16", "guest-reads-own", "+guest-dr5", vendor="intel", base=OLD),
    Entry("H-18", "no-loss", "+frame"),
    Entry("H-20", "no-loss", "+emulate,execute"),
    Entry("H-21", "dr6-true", "+emulate,execute"),
    Entry("H-26", "no-loss", "+nested"),
    Entry("H-27", "guest-armed", "+nested"),
    Entry("H-32", "dr6-true"),
    Entry("H-33", "guest-reads-own", base=OLD),
    Entry("Z-1", "guest-reads-own", "+exit-dr"),
    Entry("Z-2", "guest-armed", "+nested"),
    Entry("Z-3", "guest-armed", "+nested"),
    Entry("Z-4", "host-armed", delta="announce=fixed", fix="announce=on", scope={"kgdb": True}),
    Entry("Z-5", "guest-armed", "+debug-upper"),
    Entry("Z-6", "dr6-true", "+emulate,execute"),
    Entry("Z-7", "guest-reads-own", "+ioctl-reserved"),
    Entry("Z-8", "dr6-true", "+step"),
    Entry("Z-9", "dr6-true", "+guest-dr6,ptrace"),
    Entry("Z-10", "dr6-true", "+guest-step", scope={"disabled_match": True}),
    Entry("Z-11", "dr6-true", "+debug-gd", vendor="intel"),
    Entry("HB-01", "slots-sound", "open,open-cpu,close", scope=TWO | {"cpus": 2}),
    Entry("HB-02", "slots-sound", "open,open-invalid,close", scope=HOST),
    Entry("HB-03", "slots-sound", "open,close", scope=TWO | {"counters": 3}),
    Entry("HB-14", "slots-sound", "open-other,open-cpu,close,exit,switch", scope=TWO | {"counters": 3}),
    Entry("HB-22", "slots-sound", "open,open-on-cpu,open-cpu,close,hotplug", scope=HOST | {"cpus": 2, "counters": 3}),
    Entry("HB-23", "slots-sound", "open,open-on-cpu,close", scope=HOST | {"counters": 2}),
    Entry("HB-31", "no-loss", "open,close,access,switch,execute", scope=TWO | {"disabled_match": True}),
    Entry("wprobe-or", "host-armed", "register,wide-local,switch", fix="wprobe-or=fixed", scope=HOST),
]

OTHER = {
    "Z-4": "kgdb sets a breakpoint from an NMI around a guest's turn, and takes the registers for the host's",
}

NOT_HERE = {
    "H-17": "what goes wrong is RIP, and no debug register",
    "H-19": "it takes TF, MOV SS or STI blocking and a fault at one instruction, and no register differs",
    "H-22": "no register tells the two apart without KVM_SET_VCPU_EVENTS, which is not in the language",
    "H-23": "the address mask MSRs are not modelled",
    "H-24": "the bit is in DEBUGCTL",
    "H-25": "what leaks is memory, and no register",
    "H-28": "what is wrong is `pc`",
    "H-29": "it is how `linux-2.6.32` is written; kgdb is modelled from 2.6.33 on",
    "H-30": "no register",
    "H-31": "no register",
    "HB-34": "0 and 0x400 disarm alike: the hardware keeps bit 10 set",
}


@cache
def both(entry: Entry) -> tuple[dr.Verdict, dr.Verdict]:
    """Return the verdict with the bug, and without it."""
    return entry.look(entry.bug), entry.look(entry.fixed)


Entry.__hash__ = lambda self: hash(self.id)  # type: ignore[method-assign, assignment]
