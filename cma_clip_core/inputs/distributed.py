"""Data parallel training with `torchrun`: the processes, their rows of each batch, and the sum of their gradients.

Every process reads the same batches and takes its share of the rows. Gradients are summed before each step. The loss
is a sum over labels divided by the labels of the whole batch. So any number of processes takes the same step as one
process with the whole batch.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, distributed, nn

T = TypeVar("T")

# The other processes wait while the first one validates or runs frozen towers. The launcher notices a dead process
# itself.
_TIMEOUT: Final = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class World:
    """The processes that train together."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # rank among this machine's processes

    @property
    def is_first(self) -> bool:
        """True for the process that writes the files and shows the progress."""
        return self.rank == 0

    @property
    def is_first_here(self) -> bool:
        """True for the first process of each machine. Other machines may not see its disk."""
        return self.local_rank == 0

    def rows(self, batch: int) -> slice:
        """Return this process's rows of a batch."""
        return slice(self.rank, batch, self.size)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum the gradients of all processes.

        A gradient that only some processes have counts as zero in the others. One that no process has stays None: Adam
        moves a parameter by its momentum if the gradient is zero, but not if it is None, as in a single process.
        """
        if self.size == 1:
            return
        trained = [p for p in parameters if p.requires_grad]
        has_gradient = torch.tensor([float(p.grad is not None) for p in trained], device=trained[0].device)
        # Send one message for all, since each of hundreds of small tensors would cost a message's latency.
        flat = torch.cat(
            [has_gradient, *((torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trained)]
        )
        distributed.all_reduce(flat)
        counts, *parts = torch.split(flat, [len(trained), *(p.numel() for p in trained)])
        for p, n, part in zip(trained, counts.tolist(), parts, strict=True):
            p.grad = part.view_as(p) if n else None

    def wait(self) -> None:
        """Wait until all processes get here."""
        if self.size > 1:
            distributed.barrier()

    @contextlib.contextmanager
    def first_before_others(self) -> Iterator[None]:
        """Run this context in the first process before the others, which then find the files that it wrote."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()

    @contextlib.contextmanager
    def with_threads_of_all(self) -> Iterator[None]:
        """Give the first process the CPU threads of all processes in this context, while the others wait."""
        own = torch.get_num_threads()
        torch.set_num_threads(own * int(os.environ.get("LOCAL_WORLD_SIZE", self.size)))
        try:
            yield
        finally:
            torch.set_num_threads(own)

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of `value` over all processes."""
        if self.size > 1:
            value = value.clone()
            distributed.all_reduce(value)
        return value

    def gather(self, value: Tensor) -> Tensor:
        """Return the values of all processes, which have one shape, stacked [size, ...]."""
        if self.size == 1:
            return value[None]
        message = _on_message_device(value.contiguous())
        messages = [torch.empty_like(message) for _ in range(self.size)]
        distributed.all_gather(messages, message)
        return torch.stack(messages).to(value.device)

    def gather_rows(self, own: Tensor) -> Tensor:
        """Return the rows of all processes, process by process: own rows with their gradient, the others' as constants.

        Args:
            own: [B, W]; B may differ between processes. A process without rows may pass [0, 0].
        """
        if self.size == 1:
            return own
        shapes = self.gather(torch.tensor(own.shape, device=own.device)).tolist()
        rows, width = max(shape[0] for shape in shapes), max(shape[1] for shape in shapes)
        padded = own.new_zeros(rows, width)
        padded[: len(own), : own.shape[1]] = own.detach()
        parts = [part[: shape[0]] for part, shape in zip(self.gather(padded), shapes, strict=True)]
        if len(own):
            parts[self.rank] = own
        return torch.cat(parts)

    def broadcast(self, value: float) -> float:
        """Return the first process's value."""
        if self.size == 1:
            return value
        message = _on_message_device(torch.tensor([value], dtype=torch.float64))
        distributed.broadcast(message, 0)
        return float(message.item())

    def broadcast_object(self, value: T) -> T:
        """Return the first process's value, a small object that can be pickled."""
        message = [value]
        if self.size > 1:
            distributed.broadcast_object_list(message, 0)
        return message[0]

    def broadcast_state(self, state: Any) -> Any:
        """Return the first process's state: plain values and CPU tensors in nested dictionaries and lists.

        Tensors are sent one by one, so only one at a time is in memory twice. The other processes' `state` is ignored.
        """
        if self.size == 1:
            return state
        content = io.BytesIO()
        sender = _WithoutTensors(content)
        if self.is_first:
            sender.dump(state)
        pickled = [content.getvalue()]
        distributed.broadcast_object_list(pickled, 0)
        reader = _WithNewTensors(io.BytesIO(pickled[0]))
        received, tensors = (state, sender.tensors) if self.is_first else (reader.load(), reader.tensors)
        for tensor in tensors:
            message = _on_message_device(tensor.contiguous())
            distributed.broadcast(message, 0)
            if not self.is_first:
                tensor.copy_(message)
        return received


class _WithoutTensors(pickle.Pickler):
    """Pickler that writes only the shape, stride and type of tensors, not their content."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.tensors: list[Tensor] = []  # the tensors whose content was left out

    def persistent_id(self, value: Any) -> tuple[Any, ...] | None:
        if not isinstance(value, Tensor):
            return None
        self.tensors.append(value)
        return tuple(value.shape), value.stride(), value.dtype


class _WithNewTensors(pickle.Unpickler):
    """Unpickler that creates new tensors in place of those whose content was left out."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.tensors: list[Tensor] = []  # the new tensors, without content yet

    def persistent_load(self, description: tuple[Any, ...]) -> Tensor:
        shape, stride, dtype = description
        self.tensors.append(torch.empty_strided(shape, stride, dtype=dtype))
        return self.tensors[-1]


def _on_message_device(value: Tensor) -> Tensor:
    """Return `value` on the device that messages are sent from: NCCL sends only from a GPU."""
    return value.cuda() if distributed.get_backend() == "nccl" else value


def join(device: torch.device) -> World:
    """Join the processes that `torchrun` started; a world of one process if it started none."""
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return World()
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not distributed.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, timeout=_TIMEOUT)
    return World(distributed.get_rank(), distributed.get_world_size(), int(os.environ["LOCAL_RANK"]))


def leave() -> None:
    """Leave the processes joined by `join`, if any."""
    if distributed.is_initialized():
        distributed.destroy_process_group()
