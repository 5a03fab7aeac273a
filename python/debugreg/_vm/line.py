"""Messages over a serial line, each with its length before it. Both ends are one version of Python: marshal will do."""

from __future__ import annotations

import marshal
import os

TYPE_CHECKING = False  # What `typing` calls so, without the import.
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Line"]


class Line:
    """One end.

    Args:
        descriptor: What is read and written.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def send(self, message: tuple[Any, ...]) -> None:
        """Send a message of plain data."""
        data = marshal.dumps(message)
        data = len(data).to_bytes(4, "little") + data
        while data:
            data = data[os.write(self.descriptor, data) :]

    def receive(self, limit: float | None = None) -> tuple[Any, ...]:
        """Return the next message.

        Args:
            limit: How many seconds it may take.

        Raises:
            TimeoutError: It takes longer.
            EOFError: The other end is gone.
        """
        length = int.from_bytes(self._bytes(4, limit), "little")
        message: tuple[Any, ...] = marshal.loads(self._bytes(length, limit))  # noqa: S302 - the other end is ours
        return message

    def _bytes(self, count: int, limit: float | None) -> bytes:
        data = b""
        while len(data) < count:
            if limit is not None:
                self._wait(limit)
            part = os.read(self.descriptor, count - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def _wait(self, limit: float) -> None:
        from select import select

        if not select([self.descriptor], [], [], limit)[0]:
            raise TimeoutError
