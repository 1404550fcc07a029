"""Reading several items ahead of the one that is used, so that one late answer of a store does not hold up all."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

READING_THREADS = 16


def read_ahead(
    read: Callable[[T], R], items: Iterable[T], *, threads: int = READING_THREADS, kept: int = 2 * READING_THREADS
) -> Iterator[R]:
    """Yield `read(item)` of every item, in order; `threads` are read at a time, and at most `kept` are held."""
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            waiting.append(pool.submit(read, item))
            if len(waiting) == kept:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
