"""How much memory a step takes, that of Spark's JVM and of its Python workers with it: they are processes of their own."""

from __future__ import annotations

import contextlib
import multiprocessing
import threading
from collections.abc import Iterator
from typing import Final

import psutil

_SECONDS: Final = 0.5  # between two looks, of which each costs 2 ms


class PeakMemory:
    """The largest resident memory so far of this process and all below it, in bytes; while `watch` is open, it grows.

    Of one that another process of ours started to work beside others: of that one and all below it.

    Pages that processes share count in each, so it is rather too high than too low.
    """

    def __init__(self) -> None:
        self.bytes = 0
        parent = multiprocessing.parent_process()  # of processes that work together: all that it started count
        self._process = psutil.Process(None if parent is None else parent.pid)

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Look at the memory until the block ends."""
        done = threading.Event()

        def work() -> None:
            while not done.wait(_SECONDS):
                self.look()

        self.look()
        watcher = threading.Thread(target=work, name="peak memory", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()
            self.look()

    def look(self) -> None:
        """Take the memory of this moment into account."""
        used = 0
        for process in (self._process, *self._process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):  # it has ended meanwhile
                used += process.memory_info().rss
        self.bytes = max(self.bytes, used)
