"""A user's program under the type checkers. Never run."""

from pathlib import Path
from typing import assert_type

import debugreg as dr

d7 = dr.DR7(0x000D0402)
assert_type(d7[0], dr.Slot | None)
assert_type(d7.arm(0, "w", 8).arm(slot=1, type="x", enable="local"), dr.DR7)
assert_type(d7.disarm(0), dr.DR7)
assert_type(d7.ge, bool)
assert_type(d7.reserved, tuple[int, ...])
assert_type(d7 | 1, int)
assert_type(dr.encode_dr7(0, len=8, type="w"), int)
assert_type(next(slot.len for slot in d7 if slot is not None) + 1, int)

slot = d7[0]
if slot is not None:
    d7.arm(1, slot.type, slot.len, slot.enable)
    enable, kind, length = slot

d7.arm(0, "q")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
d7.arm(0, "w", 3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

d6 = dr.DR6()
assert_type(d6.hits, tuple[int, ...])
assert_type(d6.events, int)
assert_type(dr.DR6.from_events(0x4001), dr.DR6)

try:
    pass
except dr.errors.TraceError as error:
    assert_type(error.path, str | None)
    assert_type(error.line, int | None)
    assert_type(error.allowed, tuple[str, ...])
except dr.DebugregError as error:
    assert_type(error.column, int | None)

m = dr.Machine(cpus=2, vendor="amd", policy="linux", slots=4, paranoid=2, hypervisor=True, fred=False)
assert_type(m.cpus, tuple[dr.Cpu, ...])
assert_type(m.cost, dr.Cost)
assert_type(m.clock, int)
assert_type(m.policy, str)
assert_type(m.vendor, str)
qemu = m.task("qemu", cpu=0, caps="root", bits=64)
assert_type(qemu, dr.Task)
assert_type(qemu.running, bool)
assert_type(qemu.name, str)

cpu = m.cpus[0]
cpu.sched_switch(qemu)
cpu.sched_switch(None)
cpu.refresh()
assert_type(cpu.index, int)
assert_type(cpu.running, dr.Task | None)
assert_type(cpu.breakpoints_active, bool)
assert_type(cpu.registers, dr.Registers)
assert_type(cpu.hardware.dr7[0], dr.Slot | None)
assert_type(cpu.owed.dr6.hits, tuple[int, ...])
dr0, _, _, _, dr6, dr7 = cpu.registers
assert_type((dr0, dr6, dr7), tuple[int, dr.DR6, dr.DR7])
held = cpu.slots[0]
assert_type(held, dr.Held | None)
if held is not None:
    owner, scope, since = held
    assert_type(owner, dr.Counter | None)
    assert_type((scope, since), tuple[str, int])

try:
    a = qemu.perf_event_open(bp_type="w", bp_addr=0x1000, bp_len=8, on="cpu0", name="A", pinned=True)
except dr.Refusal as refusal:
    assert_type(refusal.errno, int | None)
    assert_type(refusal.rule, str)
    assert_type(refusal.holders, tuple[dr.Counter, ...])
except OSError:
    pass
else:
    assert_type(a, dr.Counter)
    assert_type(a.count, int)
    assert_type(a.active, bool)
    assert_type(a.scope + a.name, str)
    a.disable()
    a.enable()
    a.close()
    assert_type({a: 1}[a], int)

qemu.perf_event_open(bp_type="io", bp_addr=0, bp_len=1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
qemu.perf_event_open("w", 0, 1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
m.task("sh", caps="god")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
m.vcpu("v1", task="qemu")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
dr.Machine(vendor="via")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

v = m.vcpu("v0", task=qemu)
assert_type(v, dr.Vcpu)
with v.run() as entered, m.measure() as cost:
    assert_type(entered, dr.Vcpu)
    out = m.do("v0 store 0x2000 8")
    assert_type(out, dr.Outcome)
assert_type(cost.dr_writes + cost.weighted(weight=10), int)
assert_type(cost.to_dict(), dict[str, int])
assert_type(v.in_guest, bool)
assert_type(v.own, dr.Registers)
if out:
    assert_type(out.hits, tuple[dr.Counter, ...])
    assert_type(out.exception, str | None)
    assert_type(out.dr6, dr.DR6 | None)
    assert_type(out.steps, tuple[str, ...])
    assert_type(out.ok, bool | None)
    assert_type(out.value, int | None)
    assert_type(out.registers, dr.Registers | None)
    assert_type((out.errno, out.rule), tuple[str | None, str | None])

for report in dr.run("x.scn", policies=["skip", "linux"], vendor="intel", steps=True):
    assert_type(report, dr.ScenarioReport)
    assert_type(report.ok, bool)
    assert_type([step.observed for step in report.steps if step.ok is False], list[str | None])
dr.run(["x.scn", Path("y.scn")])
dr.run(Path("x.scn"), policies=("linux",))

for replay in dr.replay("trace.txt.gz", verify=True, progress=print):
    assert_type(replay, dr.Replay)
    assert_type(replay.cost, dr.Cost)
    assert_type({phase.name: phase.cost for phase in replay.phases}, dict[str, dr.Cost])
    assert_type(replay.law("entry-quiet").failures, int)
    assert_type(replay.lower_bound, bool)
    if replay.verify is not None and not replay.verify:
        assert_type([difference.line for difference in replay.verify.differences], list[int])
        assert_type(replay.verify.install.exact, bool)

comparison = dr.compare(policies=["lean"], weight=20)
assert_type(comparison, dr.Comparison)
assert_type(comparison.cheapest, dr.Replay | None)
assert_type(comparison.ratio(comparison.replays[0]), float | None)


def tell(policy: str, done: int, total: int) -> None:
    assert_type(f"{policy} {done / total:.0%}", str)


dr.compare(Path("trace.txt.gz"), vendor="amd", progress=tell)

assert_type(dr.policies(), list[dr.PolicyRow])
for row in dr.policies():
    assert_type(row.name + row.host + row.kvm + row.line, str)
    assert_type([delta.id + delta.state + delta.line for delta in row.deltas], list[str])
