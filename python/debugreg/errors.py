"""What can go wrong with a user's input. Misuse of a function is a plain `TypeError` or `ValueError`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["DebugregError", "PolicyError", "ScenarioError", "TraceError", "WorldError"]


class DebugregError(Exception):
    """The root of every error of this package.

    Its text is one line, `PATH:LINE:COLUMN: MESSAGE: found FOUND, allowed: ALLOWED`, without what is not known.

    Args:
        message: What is wrong.
        path: The file in which it is.
        line: Its line, from 1.
        column: Its column, from 1.
        found: What stands there.
        allowed: What could stand there.

    Example:
        >>> print(DebugregError("no such kind", path="x.scn", line=3, column=7, found="wr", allowed=["w", "rw"]))
        x.scn:3:7: no such kind: found 'wr', allowed: w, rw
    """

    def __init__(
        self,
        message: str,
        *,
        path: str | None = None,
        line: int | None = None,
        column: int | None = None,
        found: str | None = None,
        allowed: Iterable[str] = (),
    ) -> None:
        super().__init__(message)
        self.path = path
        self.line = line
        self.column = column
        self.found = found
        self.allowed = tuple(allowed)

    def __str__(self) -> str:
        place = [str(part) for part in (self.path, self.line, self.column) if part is not None]
        details = [] if self.found is None else [f"found {self.found!r}"]
        if self.allowed:
            details.append(f"allowed: {', '.join(self.allowed)}")
        message = f"{self.args[0]}: {', '.join(details)}" if details else str(self.args[0])
        return ": ".join([":".join(place), message] if place else [message])


class ScenarioError(DebugregError, ValueError):
    """A scenario cannot be read, or asks for what cannot be."""


class TraceError(DebugregError, ValueError):
    """A trace cannot be read."""


class PolicyError(DebugregError, RuntimeError):
    """A policy written in Python cannot be loaded, has raised an exception, or remembers what it must not."""


class WorldError(DebugregError, RuntimeError):
    """A world is not available: the message says what is missing."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with what was known by then.

    Args:
        so_far: What the function would have returned, of what it had finished.
    """

    def __init__(self, so_far: object) -> None:
        super().__init__()
        self.so_far = so_far
