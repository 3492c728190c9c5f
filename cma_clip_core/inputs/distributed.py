"""Data parallel training by `torchrun`: who takes part, which rows each takes, and the sum of their gradients.

Every process reads the same batches and takes its share of the rows; gradients are summed before each step. The loss
is a sum over labels divided by the labels of the whole batch, so that any number of processes takes the same step as
one process does with the whole batch.
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

# The others wait while the first one validates, or runs frozen towers. That one of them is gone, the launcher sees at once.
_PATIENCE: Final = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class World:
    """The processes that train together."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among those of this machine

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files and shows the progress."""
        return self.rank == 0

    @property
    def is_first_here(self) -> bool:
        """Whether this process is the first one of its machine, whose disk the others elsewhere need not see."""
        return self.local_rank == 0

    def rows(self, batch: int) -> slice:
        """Return this process's rows of a batch."""
        return slice(self.rank, batch, self.size)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum the gradients of all processes; one that is missing here counts as zero, and one that is missing in all stays so.

        Adam moves by its momentum where a gradient is zero, and not where there is none: as one process alone would.
        """
        if self.size == 1:
            return
        wanted = [p for p in parameters if p.requires_grad]
        there = torch.tensor([float(p.grad is not None) for p in wanted], device=wanted[0].device)
        # One message for all: a model of hundreds of small tensors would pay each one's latency.
        flat = torch.cat([there, *((torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in wanted)])
        distributed.all_reduce(flat)
        anywhere, *parts = torch.split(flat, [len(wanted), *(p.numel() for p in wanted)])
        for p, n, part in zip(wanted, anywhere.tolist(), parts, strict=True):
            p.grad = part.view_as(p) if n else None

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            distributed.barrier()

    @contextlib.contextmanager
    def first_before_others(self) -> Iterator[None]:
        """Let the first process do the work in this context, and the others after it: what it wrote, they find."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()

    @contextlib.contextmanager
    def with_threads_of_all(self) -> Iterator[None]:
        """Give the first process the others' threads in this context, while they wait for it."""
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
        """Return the values of all processes, of one shape, side by side [size, ...]."""
        if self.size == 1:
            return value[None]
        held = _where_messages_go(value.contiguous())
        found = [torch.empty_like(held) for _ in range(self.size)]
        distributed.all_gather(found, held)
        return torch.stack(found).to(value.device)

    def gather_rows(self, own: Tensor) -> Tensor:
        """Return the rows of all processes, process by process; the own ones with their gradient, others as constants.

        Args:
            own: [B, W]; B may differ from process to process, and be 0, W then too.
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
        held = _where_messages_go(torch.tensor([value], dtype=torch.float64))
        distributed.broadcast(held, 0)
        return float(held.item())

    def broadcast_object(self, value: T) -> T:
        """Return the first process's value: something small that can be pickled."""
        held = [value]
        if self.size > 1:
            distributed.broadcast_object_list(held, 0)
        return held[0]

    def broadcast_state(self, state: Any) -> Any:
        """Return the first process's state: plain values and tensors on the CPU, in dictionaries and lists of any depth.

        Tensors are sent one by one, so that one at a time alone is held twice. What the others give is not looked at.
        """
        if self.size == 1:
            return state
        content = io.BytesIO()
        sender = _WithoutTensors(content)
        if self.is_first:
            sender.dump(state)
        held = [content.getvalue()]
        distributed.broadcast_object_list(held, 0)
        reader = _WithNewTensors(io.BytesIO(held[0]))
        found, tensors = (state, sender.tensors) if self.is_first else (reader.load(), reader.tensors)
        for tensor in tensors:
            message = _where_messages_go(tensor.contiguous())
            distributed.broadcast(message, 0)
            if not self.is_first:
                tensor.copy_(message)
        return found


class _WithoutTensors(pickle.Pickler):
    """Leaves tensors out, but for what they are like."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.tensors: list[Tensor] = []  # that were left out

    def persistent_id(self, value: Any) -> tuple[Any, ...] | None:
        if not isinstance(value, Tensor):
            return None
        self.tensors.append(value)
        return tuple(value.shape), value.stride(), value.dtype


class _WithNewTensors(pickle.Unpickler):
    """Puts new tensors where some were left out."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.tensors: list[Tensor] = []  # with nothing in them yet

    def persistent_load(self, like: tuple[Any, ...]) -> Tensor:
        shape, stride, dtype = like
        self.tensors.append(torch.empty_strided(shape, stride, dtype=dtype))
        return self.tensors[-1]


def _where_messages_go(value: Tensor) -> Tensor:
    """Return `value` where the processes' messages are read from: NCCL takes those of a GPU alone."""
    return value.cuda() if distributed.get_backend() == "nccl" else value


def join(device: torch.device) -> World:
    """Join the processes that `torchrun` started; alone where it started none."""
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return World()
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not distributed.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, timeout=_PATIENCE)
    return World(distributed.get_rank(), distributed.get_world_size(), int(os.environ["LOCAL_RANK"]))


def leave() -> None:
    """Leave the processes joined before, if any."""
    if distributed.is_initialized():
        distributed.destroy_process_group()
