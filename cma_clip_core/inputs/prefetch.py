"""Prefetching iterators: a thread, or a separate process if a GPU waits for the items.

A thread shares the interpreter with the training step. On a CPU that costs almost nothing, because the step runs in
libraries that release the interpreter. A GPU, however, gets its kernels one by one from the interpreter, and waits
whenever a thread holds it.
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
    """Yield `items`; a thread prepares up to `depth` of them in advance.

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
    """Yield the items of `make()`, which a separate process prepares in advance.

    `depth` items wait here, and three more are in transit.

    `make` is pickled and sent to that process. An error there is raised here. Closing the iterator ends the process. It
    also ends when this process does.
    """
    loader: DataLoader[bytes] = DataLoader(
        _Stream(make),
        batch_size=None,
        num_workers=1,
        prefetch_factor=2,
        multiprocessing_context="spawn",  # a CUDA context does not survive a fork
        generator=torch.Generator(),  # otherwise the loader would draw from this process's random numbers
    )
    sent = iter(loader)
    # A thread receives the items early. A finished item cannot be fetched while the other interpreter is busy, which
    # may take half a second when it copies a buffer's pictures.
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
    """Pickler that sends tensors as bytes.

    Torch itself sends tensors in shared memory. The receiver must then ask the sender for each of them, and wait for
    the sender's busy interpreter: five milliseconds a batch.
    """

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return NotImplemented
        if value.dtype == torch.bfloat16:  # numpy has no bfloat16
            return _bfloat16, (value.view(torch.int16).numpy(),)
        return torch.from_numpy, (value.numpy(),)


def _bfloat16(bits: npt.NDArray[np.int16]) -> Tensor:
    return torch.from_numpy(bits).view(torch.bfloat16)


def _bytes_of(item: object) -> bytes:
    buffer = io.BytesIO()
    _ByValue(buffer, protocol=5).dump(item)
    return buffer.getvalue()


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
