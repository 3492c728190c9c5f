"""The training loop of CMA-CLIP, its ablations, fine-tuned CLIP, and the pretraining of towers.

The loop trains an `Objective`:
- It reads batches in a seeded order, accumulates gradients over micro-batches and sums them over processes.
- It clips the gradients, takes a step, and validates after each epoch.
- It keeps the best weights, or the last.
- It writes checkpoints. A killed training resumes from them exactly as if it had not been killed.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from cma_clip_core.config import TrainingConfig
from cma_clip_core.errors import CheckpointError, DeviceError, DivergedError
from cma_clip_core.evaluation.predictions import Predictions
from cma_clip_core.inputs.batches import Batch
from cma_clip_core.inputs.checkpoints import CHECKPOINT, load_checkpoint, save_checkpoint
from cma_clip_core.inputs.compute import Compute
from cma_clip_core.inputs.devices import precision
from cma_clip_core.inputs.prefetch import in_process, prefetch
from cma_clip_core.model_documents import Epoch
from cma_clip_core.training.optimizer import make_optimizer, set_learning_rate
from cma_clip_core.training.tensorboard import LOGS, Scalars

log = logging.getLogger(__name__)

T = TypeVar("T")

CHECKPOINT_SECONDS = 300.0
AHEAD = 4  # prefetched batches
AHEAD_IN_PROCESS = 16  # prefetched by a process, which pauses while it copies the pictures of a buffer


class Batches(Protocol):
    """The batches of a training. They may be sent to another process."""

    def stream(self, epoch: int, first: int, last: int, *, ahead: bool) -> Iterator[Batch | None]:
        """Yield the batches of several epochs, and None after each epoch. The same arguments give the same batches.

        Args:
            epoch: the first epoch, counted from 1.
            first: the first batch of that epoch, counted from 0.
            last: the last epoch.
            ahead: allow one more thread and more memory for prefetching.
        """
        ...


class Score(NamedTuple):
    """The quality of a model on the validation side."""

    value: float  # higher is better
    error: float  # its standard error


class Objective(Protocol):
    """A model, its training batches and its loss."""

    model: nn.Module
    examples: int  # on the training side
    # Whether the losses of the parts of a batch sum to the loss of the batch, for any parts. False: the examples of a part
    # are compared with each other, over all processes, so that other parts give another loss.
    exact_in_parts: bool

    @property
    def batches(self) -> Batches:
        """The training batches."""
        ...

    def loss(self, part: Batch, whole: Batch) -> Tensor:
        """Return the contribution of a part to the loss of the whole batch."""
        ...

    def validate(self) -> Score:
        """Return the score of the model on the validation side."""
        ...


@dataclass(slots=True)
class Fitted:
    """The result of the loop: the weights of the kept epoch, and the course of the training."""

    weights: dict[str, Tensor]
    best_epoch: int = 0  # the kept epoch, counted from 1; 0: the initial weights
    best_score: float = -math.inf
    epochs: list[Epoch] = field(default_factory=list)
    not_learnt: dict[str, str] = field(default_factory=dict)  # attribute: reason
    validation: dict[str, Predictions] = field(default_factory=dict)  # predictions on the validation side
    judging_seconds: float = 0.0  # time to compute them

    @property
    def seconds(self) -> float:
        """The duration of all epochs, including those before a resume."""
        return sum(epoch.seconds for epoch in self.epochs)


@dataclass(slots=True)
class _Progress:
    """The position of a training: after `step` batches of epoch `epoch`."""

    epoch: int = 1
    step: int = 0
    seen: int = 0  # examples of this epoch
    loss_sum: float = 0.0  # over these examples
    seconds: float = 0.0  # spent on this epoch, including the time before a resume


class Loop:
    """A training in progress."""

    def __init__(
        self,
        objective: Objective,
        config: TrainingConfig,
        compute: Compute,
        *,
        folder: Path | None = None,
        fingerprint: str = "",
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
        separate_process: bool | None = None,
    ) -> None:
        """Prepare a training, or resume one that was killed.

        Args:
            objective: the model, its batches and its loss; the model is on the device of `compute`.
            config: the training settings.
            compute: the device, and the processes that train together.
            folder: for checkpoints and TensorBoard logs; None: neither is written. Only the first process reads and writes
                it; the others need no access.
            fingerprint: hash of everything that decides the course of the training; a checkpoint must have the same.
            checkpoint_seconds: least time between checkpoints; one is written after each epoch in any case.
            separate_process: prepare the batches in a process, not in a thread; None: in a process if the device is a GPU.

        Raises:
            CheckpointError: `folder` holds a checkpoint that is broken or belongs to another training. It is raised in all
                processes.
        """
        self.objective, self.config, self.folder, self.fingerprint = objective, config, folder, fingerprint
        self.device, self.world = compute.device, compute.world
        self.show = compute.progress and self.world.is_first
        self.checkpoint_seconds = checkpoint_seconds
        self.separate_process = self.device.type == "cuda" if separate_process is None else separate_process
        self.micro = config.micro_batch or config.batch_size
        self.optimizer = make_optimizer(objective.model, config)
        self.progress = _Progress()
        self.fitted = Fitted(self._weights())
        self.scalars = Scalars(None, 0)
        if folder is not None:
            read = self._first_alone(partial(load_checkpoint, folder / CHECKPOINT, fingerprint))
            if (state := self.world.broadcast_state(read)) is not None:
                self._restore(state)

    def run(self) -> Fitted:
        """Train to the end and return the result with the weights of the last epoch, or of the best one.

        The last epoch is kept unless an earlier one is better on validation by more than a standard error (the
        one-standard-error rule: Breiman et al. 1984, "Classification and Regression Trees", 3.4.3). In the last epoch the
        learning rate has fallen to zero, and the best of several scores is partly luck.

        Raises:
            DivergedError: the loss or the gradient is infinite or NaN; names the batch. The last checkpoint precedes it.
            CheckpointError: a checkpoint cannot be written; the last good one is kept. It is raised in all processes.
            DeviceError: not even one example fits into the device's memory.
        """
        logs = None if self.folder is None or not self.world.is_first else self.folder / LOGS
        # Drop the points after the checkpoint: training repeats their steps.
        self.scalars = Scalars(logs, purge_step=self._seen() + 1)
        try:
            with closing(self.stream()) as stream:
                while self.progress.epoch <= self.config.epochs and not self._is_stale():
                    self._epoch(stream)
        finally:
            self.scalars.close()
        return self.fitted

    def stream(self) -> Generator[Batch | None]:
        """Prefetch the batches of all remaining epochs, and None after each epoch."""
        progress = self.progress
        make = partial(
            self.objective.batches.stream,
            progress.epoch,
            progress.step,
            self.config.epochs,
            ahead=self.separate_process,
        )
        return in_process(make, AHEAD_IN_PROCESS) if self.separate_process else prefetch(make(), AHEAD)

    def _is_stale(self) -> bool:
        patience = self.config.patience
        stale = patience is not None and len(self.fitted.epochs) - self.fitted.best_epoch >= patience
        if stale:
            log.info("no improvement since epoch %d: training stops early", self.fitted.best_epoch)
        return stale

    def _epoch(self, stream: Iterator[Batch | None]) -> None:
        progress, config, total = self.progress, self.config, self.objective.examples
        started = saved = time.perf_counter()
        spent = progress.seconds
        train_mode(self.objective.model)
        with tqdm(
            total=total,
            initial=progress.seen,
            desc=f"epoch {progress.epoch}/{config.epochs}",
            unit="ex",
            disable=not self.show,
        ) as bar:
            while (batch := next(stream)) is not None:
                set_learning_rate(
                    self.optimizer, (progress.epoch - 1 + progress.seen / total) / config.epochs, config.warmup
                )
                loss = self.step(batch)
                progress.step += 1
                progress.seen += len(batch)
                progress.loss_sum += loss * len(batch)
                now = time.perf_counter()
                progress.seconds = spent + now - started
                bar.update(len(batch))
                bar.set_postfix(loss=f"{progress.loss_sum / progress.seen:.3f}", refresh=False)
                rates = {
                    "learning_rate": self.optimizer.param_groups[-1]["lr"],
                    "examples_per_second": progress.seen / progress.seconds,
                }
                self.scalars.add({"loss": loss} | rates, self._seen())
                if self._is_time_to_save(now - saved):
                    self._save()
                    saved = time.perf_counter()
        score, error = map(self.world.broadcast, self._validate() if self.world.is_first else (0.0, 0.0))
        progress.seconds = spent + time.perf_counter() - started
        done = Epoch(
            loss=progress.loss_sum / max(progress.seen, 1),
            validation=score,
            seconds=progress.seconds,
            examples=progress.seen,
        )
        self.fitted.epochs.append(done)
        is_last = progress.epoch == config.epochs
        best = self.fitted.best_score
        if score >= best - error if is_last else score > best:
            self.fitted.weights, self.fitted.best_epoch, self.fitted.best_score = self._weights(), progress.epoch, score
        log.info(
            "epoch %d/%d: loss %.4f, validation %.4f, %.0f examples/s",
            progress.epoch, config.epochs, done.loss, score, done.examples / done.seconds,
        )  # fmt: skip
        self.scalars.add({"validation": score}, progress.epoch * total)
        self.progress = _Progress(progress.epoch + 1)
        self._save()

    def _validate(self) -> Score:
        with self.world.with_threads_of_all():
            return self.objective.validate()

    def step(self, batch: Batch) -> float:
        """Take one step on a batch and return its loss. Raises the errors of `run`."""
        own = batch.rows(self.world.rows(len(batch)))
        while True:
            self.optimizer.zero_grad(set_to_none=True)
            try:
                loss = self._accumulate(own, batch)
                break
            except torch.OutOfMemoryError as error:
                self._halve(len(own), error)
            torch.cuda.empty_cache()  # after the handler, in which the error still holds the tensors
        value = float(self.world.sum(loss))
        parameters = [p for p in self.objective.model.parameters() if p.requires_grad]
        try:
            self.world.sum_gradients(parameters)
            norm = nn.utils.clip_grad_norm_(parameters, self.config.clip_norm)
        except torch.OutOfMemoryError as error:  # the sum needs one more copy of all gradients
            raise DeviceError(
                f"{self.device}: the gradients' sum and norm do not fit into its memory beside the model; set a smaller "
                "micro_batch, use a smaller model, or freeze a tower"
            ) from error
        if not (math.isfinite(value) and math.isfinite(float(norm))):
            raise DivergedError(self._diverged(batch, value, float(norm)))
        try:
            self.optimizer.step()
        except torch.OutOfMemoryError as error:  # the first step allocates the optimizer's state
            raise DeviceError(
                f"{self.device}: the optimizer's state does not fit into its memory beside the model; use a smaller model, "
                "or freeze a tower"
            ) from error
        return value

    def _halve(self, rows: int, error: torch.OutOfMemoryError) -> None:
        """Halve the micro-batch after `rows` examples did not fit, and log the effect."""
        exact = self.objective.exact_in_parts
        if not exact and self.world.size > 1:
            # The other processes wait for this one's part of the comparison, and would have to discard theirs.
            raise DeviceError(
                f"{self.device}: {self.micro} examples at a time do not fit into its memory; set a smaller micro_batch, "
                "or batch_size: processes that compare their examples with each other cannot change it during training"
            ) from error
        least = 1 if exact else 2  # a contrastive loss needs two examples
        if min(self.micro, rows) <= least:
            few = "one example fits" if exact else "two examples fit"
            raise DeviceError(
                f"{self.device}: not even {few} into its memory; use a smaller model, picture or text"
            ) from error
        self.micro = max(least, min(self.micro, rows) // 2)
        effect = (
            "the batch stays the same"
            if exact
            else "each is compared with these alone, no longer with the whole batch: training takes another course, and its "
            "result is not that of the configured batch size"
        )
        log.warning("out of memory: %d examples at a time from now on; %s", self.micro, effect)

    def _accumulate(self, own: Batch, whole: Batch) -> Tensor:
        total = torch.zeros((), device=self.device)
        # If parts are compared across processes, all processes need equally many parts, even if the last ones are empty.
        rows = len(own) if self.objective.exact_in_parts else -(-len(whole) // self.world.size)
        for first in range(0, rows, self.micro):
            part = own.rows(slice(first, first + self.micro)).to(self.device)
            with precision(self.device):
                loss = self.objective.loss(part, whole)
            if loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def _diverged(self, batch: Batch, loss: float, norm: float) -> str:
        kept = ""
        if self.folder is not None:
            exists = self.world.broadcast(float((self.folder / CHECKPOINT).exists()))  # all processes diverge together
            kept = (
                f" The last good checkpoint is {self.folder / CHECKPOINT}."
                if exists
                else " There is no checkpoint yet."
            )
        products = ", ".join(batch.products[:5]) + (", ..." if len(batch) > 5 else "")
        return (
            f"training diverged in epoch {self.progress.epoch}, batch {self.progress.step + 1} ({len(batch)} products: {products}): "
            f"loss {loss}, gradient norm {norm}. Lower the learning rates in the configuration, or look at these "
            f"products.{kept}"
        )

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.detach().cpu().clone() for name, value in self.objective.model.state_dict().items()}

    def _seen(self) -> int:
        """Return the number of examples trained on, with repetitions: the x axis of TensorBoard."""
        return (self.progress.epoch - 1) * self.objective.examples + self.progress.seen

    def _is_time_to_save(self, seconds: float) -> bool:
        """Return whether a checkpoint is due `seconds` after the last one, by the first process's clock."""
        return self.folder is not None and bool(self.world.broadcast(float(seconds >= self.checkpoint_seconds)))

    def _save(self) -> None:
        """Write a checkpoint in the first process, with the random state of every process."""
        if self.folder is None:
            return
        random = self.world.gather(torch.get_rng_state())
        random_cuda = self.world.gather(torch.cuda.get_rng_state()) if self.device.type == "cuda" else None
        self._first_alone(partial(self._write, self.folder / CHECKPOINT, random, random_cuda))

    def _write(self, path: Path, random: Tensor, random_cuda: Tensor | None) -> None:
        self.scalars.flush()  # a resumed training does not repeat the steps before the checkpoint
        progress, fitted = self.progress, self.fitted
        state = {
            "fits": self.fingerprint,
            "at": [progress.epoch, progress.step, progress.seen, progress.loss_sum, progress.seconds],
            "epochs": [epoch.model_dump() for epoch in fitted.epochs],
            "best": [fitted.best_epoch, fitted.best_score],
            "best_weights": fitted.weights,
            "weights": self.objective.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "micro": self.micro,
            "random": random,
            "random_cuda": random_cuda,
        }
        save_checkpoint(path, state)

    def _first_alone(self, do: Callable[[], T]) -> T | None:
        """Call `do` in the first process and return its result there; return None in the others.

        A CheckpointError is raised in all processes. Otherwise the others would wait, and end without a reason.
        """
        result, error = None, None
        if self.world.is_first:
            try:
                result = do()
            except CheckpointError as raised:
                error = raised
        if (broadcast := self.world.broadcast_object(error)) is not None:
            raise error or broadcast
        return result

    def _restore(self, state: dict[str, Any]) -> None:
        self.objective.model.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.micro = state["micro"]
        self.progress = _Progress(*state["at"])
        epochs = [Epoch.model_validate(epoch) for epoch in state["epochs"]]
        best_epoch, best_score = state["best"]
        self.fitted = Fitted(state["best_weights"], best_epoch, best_score, epochs)
        rank = self.world.rank
        torch.set_rng_state(state["random"][rank].clone())  # torch ignores the offset of a view
        if state["random_cuda"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["random_cuda"][rank].clone())
        log.info("training resumes in epoch %d, after %d examples of it", self.progress.epoch, self.progress.seen)


def train_mode(model: nn.Module) -> None:
    """Put the trained parts of a model into training mode. Frozen parts keep their running statistics and have no dropout."""
    model.train()
    for part in model.modules():
        parameters = list(part.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            part.eval()
