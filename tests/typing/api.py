"""A user's program under the type checkers. Never run."""

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
