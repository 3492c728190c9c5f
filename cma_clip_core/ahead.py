"""Items made ahead of their use: by a thread, or by a process of its own where a GPU waits for them.

A thread shares the interpreter with the training step. On a CPU, where the step is spent in libraries that leave it free,
that costs next to nothing; a GPU is fed by the interpreter alone, kernel by kernel, and waits whenever a thread has it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, IterableDataset

Item = TypeVar("Item")


def prefetch(items: Iterable[Item], depth: int = 2) -> Generator[Item]:
    """Yield `items`, which a thread makes ahead, at most `depth` of them: the forward pass leaves the interpreter free.

    An error in the thread is raised here. Closing the iterator ends the thread.
    """
    ready: queue.Queue[Any] = queue.Queue(maxsize=depth)
    stop = threading.Event()
    end = object()

    def offer(item: object) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for item in items:
                if not offer(item):
                    return
            offer(end)
        except BaseException as error:
            offer(error)

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not end:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()


def in_process(make: Callable[[], Iterator[Item]], depth: int = 2) -> Generator[Item]:
    """Yield the items of `make()`, which a process of its own makes ahead, at most `depth` of them, in shared memory.

    `make` is sent there, and what it needs with it. An error there is raised here. Closing the iterator ends the process;
    it ends by itself, too, when this one does.
    """
    loader: DataLoader[Item] = DataLoader(
        _Stream(make),
        batch_size=None,
        num_workers=1,
        prefetch_factor=depth,
        multiprocessing_context="spawn",  # a CUDA context does not survive a fork
        generator=torch.Generator(),  # else this process's own random numbers would be drawn from
    )
    items = iter(loader)
    try:
        for item in items:
            if isinstance(item, _Failed):
                raise item.error
            yield item
    finally:
        del items  # ends the process


@dataclass(frozen=True, slots=True)
class _Failed:
    error: Exception


class _Stream(IterableDataset[Any], Generic[Item]):
    def __init__(self, make: Callable[[], Iterator[Item]]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[Item | _Failed]:
        try:
            yield from self.make()
        except Exception as error:
            yield _Failed(error)
