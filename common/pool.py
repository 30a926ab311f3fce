"""Work in threads, on items that are drawn as they are needed."""

from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any, Callable, Iterable, Iterator


def in_threads(work: Callable[[Any], Any], items: Iterable, workers: int) -> Iterator[tuple]:
    """(item, work(item)) for each item, in the order in which they end.

    At most 2 * workers items are drawn and not done: there may be more than fit into memory.
    Raises the first error of `work`. Then, or where the caller stops (Ctrl-C), what has not begun
    never does, and what has is waited for: it may have been paid for.
    """
    items, running = iter(items), {}
    with ThreadPoolExecutor(workers) as pool:
        try:
            while True:
                for item in islice(items, 2 * workers - len(running)):
                    running[pool.submit(work, item)] = item
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        finally:
            pool.shutdown(cancel_futures=True)
