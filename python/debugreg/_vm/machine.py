"""The emulated machine: QEMU, started, talked with and ended."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from contextlib import ExitStack
from socket import socketpair
from typing import TYPE_CHECKING, Any, Self

from debugreg import _core
from debugreg._vm import initramfs
from debugreg._vm.line import Line
from debugreg._vm.packages import find_emulator, find_kernel
from debugreg.errors import WorldError

if TYPE_CHECKING:
    from collections.abc import Callable
    from io import FileIO

__all__ = ["Machine"]

BOOT = 180.0
"""Seconds until the first process answers: 10 on an idle machine."""

ANSWER = 60.0
"""Seconds for anything else. The emulator may hang: then it is started again, once for a scenario."""

# nokaslr: addresses of a kernel are the same in every boot, so that logs of two boots can be compared.
APPEND = f"console=ttyS0 quiet nokaslr mitigations=off tsc=reliable panic=-1 LD_LIBRARY_PATH={initramfs.LIBRARIES}"


class Machine:
    """A machine that has booted, with the driver in it. Use it as a context: nothing is left of it.

    Args:
        series: Which kernel, a key of `packages.KERNELS`.
        tell: Called with a line about what takes long; without it nothing is fetched.

    Raises:
        WorldError: Something is missing, or it does not boot.
    """

    def __init__(self, series: str, tell: Callable[[str], None] | None) -> None:
        self._emulator, self.kernel = find_emulator(tell), find_kernel(series, tell)
        self._tell = tell
        self._start()

    def _start(self) -> None:
        emulator = self._emulator
        with ExitStack() as resources:
            self._console, self._errors, self._log = (
                resources.enter_context(_memory(name)) for name in ("console", "errors", "steps")
            )
            # Lines are added at the end, wherever the reader has made it end.
            fcntl.fcntl(self._log, fcntl.F_SETFL, os.O_APPEND)
            ours, theirs = socketpair()
            resources.enter_context(ours)
            self._line = Line(ours.fileno())
            with (
                theirs,
                _memory("steps.so", _core.vm_plugin()) as plugin,
                _memory("initramfs", initramfs.build(self.kernel.modules)) as archive,
            ):
                process = subprocess.Popen(
                    [*_guard(), *emulator.command, *self._options(plugin.fileno(), archive.fileno())],
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=self._errors.fileno(),
                    pass_fds=[file.fileno() for file in (plugin, archive, self._console, self._log)],
                    # Ctrl-C is for this process, which ends the emulator.
                    process_group=0,
                    env=os.environ | ({"LD_LIBRARY_PATH": emulator.libraries} if emulator.libraries else {}),
                )
            # At once: it has nothing to save.
            resources.callback(process.wait)
            resources.callback(process.kill)
            (self.release,) = self._receive(BOOT)
            self._line.send((self.kernel.policy,))
            self._resources = resources.pop_all()

    def __enter__(self) -> Self:
        """Return the machine."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the machine."""
        self.close()

    def perform(
        self,
        text: str,
        hazardous: bool,  # noqa: FBT001 - a callback
        traced: bool,  # noqa: FBT001
    ) -> tuple[Any, Any, bytes, bytes]:
        """Perform a scenario.

        Args:
            text: The scenario.
            hazardous: Whether to perform what can harm the machine.
            traced: Whether its kernel is to trace it.

        Returns:
            What `_core.KernelWorld.run` returned in the machine; the log, as `*.steps` writes it; the trace, if any.

        Raises:
            WorldError: It does not answer, nor after it was started again.
        """
        message = (text, hazardous, traced)
        try:
            return self._ask(message)
        except WorldError as error:
            if self._tell:
                self._tell(f"{error}; it is started again")
        self.close()
        self._start()
        try:
            return self._ask(message)
        except WorldError as error:
            # Which one it was is worth knowing.
            raise WorldError(f"{error}; in the scenario\n{text}") from None

    def _ask(self, message: tuple[Any, ...]) -> tuple[Any, Any, bytes, bytes]:
        self._log.truncate(0)
        try:
            self._line.send(message)
        except ConnectionError:
            raise self._ended() from None
        result, trouble, trace = self._receive(ANSWER)
        return result, trouble, self._steps(), trace

    def _steps(self) -> bytes:
        log = b""
        while part := os.pread(self._log.fileno(), 1 << 20, len(log)):
            log += part
        return log

    def close(self) -> None:
        """End it."""
        self._resources.close()

    def _options(self, plugin: int, archive: int) -> list[str]:
        return [
            *("-accel", "tcg,thread=multi", "-cpu", "EPYC", "-smp", "2", "-m", "1G"),
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-chardev", f"file,id=console,path=/dev/fd/{self._console.fileno()}", "-serial", "chardev:console"),
            *("-chardev", "stdio,id=line,signal=off", "-serial", "chardev:line"),
            *("-kernel", str(self.kernel.image), "-initrd", f"/dev/fd/{archive}", "-append", APPEND),
            *("-plugin", f"/dev/fd/{plugin},fd={self._log.fileno()}"),
        ]

    def _receive(self, limit: float) -> tuple[Any, ...]:
        try:
            return self._line.receive(limit)
        except TimeoutError:
            raise WorldError(f"the emulated machine has hung: no answer in {limit:.0f} s{self._last()}") from None
        except (EOFError, ConnectionError):
            raise self._ended() from None

    def _ended(self) -> WorldError:
        return WorldError(f"the emulated machine has ended by itself{self._last()}")

    def _last(self) -> str:
        """Return the last lines that the emulator and the machine said."""
        said = [os.pread(file.fileno(), 1 << 20, 0).decode(errors="replace") for file in (self._errors, self._console)]
        # After a panic the kernel prints its registers.
        said[1] = said[1].partition("Kernel panic")[0]
        last = [line.strip() for text in said for line in text.splitlines() if line.strip() and "warning:" not in line]
        return f"; its last words: {' | '.join(last[-3:])}" if last else ""


def _memory(name: str, content: bytes = b"") -> FileIO:
    """Return a file without a name: it ends with the last process that has it open."""
    file = os.fdopen(os.memfd_create(name), "w+b", buffering=0)
    file.write(content)
    return file


def _guard() -> list[str]:
    """Return a command before the command, by which the kernel ends the emulator together with this process."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL"] if setpriv else []
