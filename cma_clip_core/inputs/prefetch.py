"""Items made ahead of their use: by a thread, or by a process of its own where a GPU waits for them.

A thread shares the interpreter with the training step. On a CPU, where the step is spent in libraries that leave it free,
that costs next to nothing; a GPU is fed by the interpreter alone, kernel by kernel, and waits whenever a thread has it.
"""

from __future__ import annotations

import io
import pickle
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
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
    """Yield the items of `make()`, which a process of its own makes ahead: `depth` of them here, and three more on the way.

    `make` is sent there, and what it needs with it. An error there is raised here. Closing the iterator ends the process;
    it ends by itself, too, when this one does.
    """
    loader: DataLoader[bytes] = DataLoader(
        _Stream(make),
        batch_size=None,
        num_workers=1,
        prefetch_factor=2,
        multiprocessing_context="spawn",  # a CUDA context does not survive a fork
        generator=torch.Generator(),  # else this process's own random numbers would be drawn from
    )
    sent = iter(loader)
    # Received by a thread: what was made but is still over there cannot be had while that interpreter is busy, for up to half
    # a second where it copies a buffer's pictures.
    received = prefetch((pickle.loads(item) for item in sent), depth)
    try:
        for item in received:
            if isinstance(item, _Failed):
                raise item.error
            yield item
    finally:
        received.close()
        del sent  # ends the process


class _ByValue(pickle.Pickler):
    """Tensors as their bytes. As torch sends them, in shared memory, this process would have to ask that one for each, and wait
    until its interpreter, which is busy with the next, has a moment: five milliseconds a batch.
    """

    def reducer_override(self, found: Any) -> Any:
        if not isinstance(found, Tensor):
            return NotImplemented
        if found.dtype == torch.bfloat16:  # numpy has none
            return _bfloat16, (found.view(torch.int16).numpy(),)
        return torch.from_numpy, (found.numpy(),)


def _bfloat16(bits: npt.NDArray[np.int16]) -> Tensor:
    return torch.from_numpy(bits).view(torch.bfloat16)


def _bytes_of(item: object) -> bytes:
    sent = io.BytesIO()
    _ByValue(sent, protocol=5).dump(item)
    return sent.getvalue()


@dataclass(frozen=True, slots=True)
class _Failed:
    error: Exception


class _Stream(IterableDataset[Any], Generic[Item]):
    def __init__(self, make: Callable[[], Iterator[Item]]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[bytes]:
        try:
            for item in self.make():
                yield _bytes_of(item)
        except Exception as error:
            yield _bytes_of(_Failed(error))
