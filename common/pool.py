"""Work in threads, on items that are drawn as they are needed."""

from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Callable, Iterable, Iterator


def in_threads(work: Callable[[Any], Any], items: Iterable, workers: int) -> Iterator[tuple]:
    """(item, work(item)) for each item, in the order in which they end.

    At most 2 * workers items are drawn and not done: there may be more than fit into memory.
    Raises the first error of `work`. Then, or where the caller stops (Ctrl-C), what has not begun
    never does, and what has is waited for: it may have been paid for.
    """
    running = {}
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                running[pool.submit(work, item)] = item
                yield from _ended(running, 2 * workers - 1)
            yield from _ended(running, 0)
        finally:
            pool.shutdown(cancel_futures=True)


def _ended(running: dict[Future, Any], at_most: int) -> Iterator[tuple]:
    """What has ended, until at most so many are running."""
    while len(running) > at_most:
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            yield running.pop(future), future.result()
