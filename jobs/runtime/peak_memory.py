"""Peak memory of a step, including its child processes: Spark's JVM and Python workers."""

from __future__ import annotations

import contextlib
import multiprocessing
import threading
from collections.abc import Iterator
from typing import Final

import psutil

_SECONDS: Final = 0.5  # between two measurements, which cost 2 ms each


class PeakMemory:
    """The peak of the resident memory of this process and its descendants, in bytes, updated while `watch` is open.

    In a process of a pool, the parent process and all its descendants count instead. Pages that processes share count
    in each of them, so the value tends to be too high.
    """

    def __init__(self) -> None:
        self.bytes = 0
        parent = multiprocessing.parent_process()
        self._process = psutil.Process(None if parent is None else parent.pid)

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Measure the memory at intervals until the block ends."""
        done = threading.Event()

        def work() -> None:
            while not done.wait(_SECONDS):
                self.measure()

        self.measure()
        watcher = threading.Thread(target=work, name="peak memory", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()
            self.measure()

    def measure(self) -> None:
        """Measure the memory once, and raise the peak if it is higher."""
        used = 0
        for process in (self._process, *self._process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):  # the process has ended in the meantime
                used += process.memory_info().rss
        self.bytes = max(self.bytes, used)
