"""Independent pieces of work, here or wherever an executor puts them: the same results, in the same order."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from concurrent.futures import Executor, Future

    Item = TypeVar("Item")
    Result = TypeVar("Result")

__all__ = ["each", "workers"]


@contextmanager
def workers(jobs: int) -> Generator[Executor | None]:
    """Have so many processes; 1 is this one, and needs none.

    They are started anew and not forked: a fork of a process with threads may wait for ever.

    Raises:
        ValueError: Not one.
    """
    if jobs < 1:
        msg = f"jobs must be at least 1 (got {jobs})"
        raise ValueError(msg)
    if jobs == 1:
        yield None
        return
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(jobs, get_context("spawn")) as executor:
        yield executor


def each(work: Callable[[Item], Result], items: Sequence[Item], executor: Executor | None) -> Iterator[Result]:
    """Return what comes of each piece of work, in their order.

    Args:
        work: A function of a module, so that it can be named to another process.
        items: Each small, and made to be pickled.
        executor: Any of `concurrent.futures`, or one like them; without it the work is done here, as it is asked for.

    Raises:
        TypeError: The executor runs subinterpreters, which cannot load this package.
    """
    if executor is None:
        yield from map(work, items)
        return
    if type(executor).__name__ == "InterpreterPoolExecutor":
        raise TypeError("debugreg cannot be loaded in a subinterpreter: use threads or processes")
    futures: list[Future[Result]] = [executor.submit(work, item) for item in items]
    try:
        for future in futures:
            yield future.result()
    finally:
        # After a mistake or Ctrl-C nobody wants the others.
        for future in futures:
            future.cancel()
