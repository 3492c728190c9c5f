"""The one training loop: of CMA-CLIP, of its ablations, of fine-tuned CLIP, and of the towers' pretraining.

What is trained is an `Objective`. The loop gives it batches in a seeded order, accumulates gradients over micro-batches,
sums them over processes, clips, steps, validates after each epoch, keeps the best weights or the last, and writes checkpoints
from which a killed training goes on exactly as if it had not been killed.
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
AHEAD = 4  # batches that are made before they are asked for
AHEAD_APART = 16  # by a process: it can be silent for as long as it takes to copy a buffer's pictures


class Batches(Protocol):
    """What is trained on. It may be sent to another process."""

    def stream(self, epoch: int, first: int, last: int, *, ahead: bool) -> Iterator[Batch | None]:
        """Yield the batches of the epochs (from 1) up to `last`, from number `first` (from 0) of `epoch` on: the same ones
        every time; None after each epoch. `ahead`: what makes them may use one more thread and more memory.
        """
        ...


class Score(NamedTuple):
    """How good a model is on the validation side."""

    value: float  # higher is better
    error: float  # its standard error


class Objective(Protocol):
    """What is trained, and by which loss."""

    model: nn.Module
    examples: int  # on the training side
    # Whether the losses of a batch's parts sum up to that of the batch, however it is cut. False: the examples of a part
    # are compared with each other, over all processes, so that other parts are another loss.
    exact_in_parts: bool

    @property
    def batches(self) -> Batches:
        """What it is trained on."""
        ...

    def loss(self, part: Batch, whole: Batch) -> Tensor:
        """Return what a part adds to the loss of the whole batch."""
        ...

    def validate(self) -> Score:
        """Return how good the model is on the validation side."""
        ...


@dataclass(slots=True)
class Fitted:
    """What the loop gives: the weights of the epoch that is kept, and the course of the training."""

    weights: dict[str, Tensor]
    best_epoch: int = 0  # the one kept, counted from 1; 0: the weights it began with
    best_score: float = -math.inf
    epochs: list[Epoch] = field(default_factory=list)
    not_learnt: dict[str, str] = field(default_factory=dict)  # attribute: why
    validation: dict[str, Predictions] = field(default_factory=dict)  # what the model says of the validation side
    judging_seconds: float = 0.0  # what that took

    @property
    def seconds(self) -> float:
        """What the epochs took, those before a resume too."""
        return sum(epoch.seconds for epoch in self.epochs)


@dataclass(slots=True)
class _Progress:
    """Where training is: after `step` batches of epoch `epoch`."""

    epoch: int = 1
    step: int = 0
    seen: int = 0  # examples of this epoch
    loss_sum: float = 0.0  # over them
    seconds: float = 0.0  # spent on this epoch, before the last resume too


class Loop:
    """A training under way."""

    def __init__(
        self,
        objective: Objective,
        config: TrainingConfig,
        compute: Compute,
        *,
        folder: Path | None = None,
        fits: str = "",
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
        apart: bool | None = None,
    ) -> None:
        """Prepare a training, or the rest of one that was killed.

        Args:
            objective: what is trained; its model is on the device of `compute`.
            config: the training settings.
            compute: the device, and the processes that train together.
            folder: for checkpoints and TensorBoard logs; None: neither is written. That of the first process alone is
                read and written: the others need not see it.
            fits: fingerprint of all that decides the course of the training; a checkpoint must have the same.
            checkpoint_seconds: least time between checkpoints; one is written after each epoch in any case.
            apart: whether a process of its own makes the batches, or a thread; None: a process for a GPU.

        Raises:
            CheckpointError: the first process's `folder` holds a checkpoint that is broken or of another training; in all
                processes alike.
        """
        self.objective, self.config, self.folder, self.fits = objective, config, folder, fits
        self.device, self.world = compute.device, compute.world
        self.show = compute.progress and self.world.is_first
        self.checkpoint_seconds = checkpoint_seconds
        self.apart = self.device.type == "cuda" if apart is None else apart
        self.micro = config.micro_batch or config.batch_size
        self.optimizer = make_optimizer(objective.model, config)
        self.at = _Progress()
        self.fitted = Fitted(self._weights())
        self.scalars = Scalars(None, 0)
        if folder is not None:
            read = self._first_alone(partial(load_checkpoint, folder / CHECKPOINT, fits))
            if (state := self.world.broadcast_state(read)) is not None:
                self._restore(state)

    def run(self) -> Fitted:
        """Train to the end and return the best epoch, or the last one.

        The last one is kept even where an earlier one is better on validation, by no more than a standard error (as the
        one-standard-error rule has it: Breiman et al. 1984, "Classification and Regression Trees", 3.4.3). By then the
        learning rate has come down to zero, and the best of several scores is the luckiest, too.

        Raises:
            DivergedError: a loss is no number; names the batch. The last checkpoint is from before it.
            CheckpointError: a checkpoint cannot be written; the last good one is kept. In all processes alike.
            DeviceError: not even one example fits into the device's memory.
        """
        logs = None if self.folder is None or not self.world.is_first else self.folder / LOGS
        # Points of steps after the checkpoint that training goes on from are taken back: they come again.
        self.scalars = Scalars(logs, purge_step=self._seen() + 1)
        try:
            with closing(self.stream()) as stream:
                while self.at.epoch <= self.config.epochs and not self._is_stale():
                    self._epoch(stream)
        finally:
            self.scalars.close()
        return self.fitted

    def stream(self) -> Generator[Batch | None]:
        """Return the batches of all epochs that are left, made ahead; None after each epoch."""
        at, apart = self.at, self.apart
        make = partial(self.objective.batches.stream, at.epoch, at.step, self.config.epochs, ahead=apart)
        return in_process(make, AHEAD_APART) if apart else prefetch(make(), AHEAD)

    def _is_stale(self) -> bool:
        patience = self.config.patience
        stale = patience is not None and len(self.fitted.epochs) - self.fitted.best_epoch >= patience
        if stale:
            log.info("no better since epoch %d: training stops early", self.fitted.best_epoch)
        return stale

    def _epoch(self, stream: Iterator[Batch | None]) -> None:
        at, config, total = self.at, self.config, self.objective.examples
        started = saved = time.perf_counter()
        spent = at.seconds
        train_mode(self.objective.model)
        with tqdm(
            total=total, initial=at.seen, desc=f"epoch {at.epoch}/{config.epochs}", unit="ex", disable=not self.show
        ) as bar:
            while (batch := next(stream)) is not None:
                set_learning_rate(self.optimizer, (at.epoch - 1 + at.seen / total) / config.epochs, config.warmup)
                loss = self.step(batch)
                at.step, at.seen, at.loss_sum = at.step + 1, at.seen + len(batch), at.loss_sum + loss * len(batch)
                now = time.perf_counter()
                at.seconds = spent + now - started
                bar.update(len(batch))
                bar.set_postfix(loss=f"{at.loss_sum / at.seen:.3f}", refresh=False)
                rates = {
                    "learning_rate": self.optimizer.param_groups[-1]["lr"],
                    "examples_per_second": at.seen / at.seconds,
                }
                self.scalars.add({"loss": loss} | rates, self._seen())
                if self._is_time_to_save(now - saved):
                    self._save()
                    saved = time.perf_counter()
        score, error = map(self.world.broadcast, self._validate() if self.world.is_first else (0.0, 0.0))
        at.seconds = spent + time.perf_counter() - started
        done = Epoch(loss=at.loss_sum / max(at.seen, 1), validation=score, seconds=at.seconds, examples=at.seen)
        self.fitted.epochs.append(done)
        is_last = at.epoch == config.epochs
        best = self.fitted.best_score
        if score >= best - error if is_last else score > best:
            self.fitted.weights, self.fitted.best_epoch, self.fitted.best_score = self._weights(), at.epoch, score
        log.info(
            "epoch %d/%d: loss %.4f, validation %.4f, %.0f examples/s",
            at.epoch, config.epochs, done.loss, score, done.examples / done.seconds,
        )  # fmt: skip
        self.scalars.add({"validation": score}, at.epoch * total)
        self.at = _Progress(at.epoch + 1)
        self._save()

    def _validate(self) -> Score:
        with self.world.with_threads_of_all():
            return self.objective.validate()

    def step(self, batch: Batch) -> float:
        """Take one step on a batch and return its loss. Raises as `run`."""
        own = batch.rows(self.world.rows(len(batch)))
        while True:
            self.optimizer.zero_grad(set_to_none=True)
            try:
                loss = self._accumulate(own, batch)
                break
            except torch.OutOfMemoryError as error:
                self._halve(len(own), error)
            torch.cuda.empty_cache()  # outside of the handler, where the error still holds the tensors
        value = float(self.world.sum(loss))
        parameters = [p for p in self.objective.model.parameters() if p.requires_grad]
        try:
            self.world.sum_gradients(parameters)
            norm = nn.utils.clip_grad_norm_(parameters, self.config.clip_norm)
        except torch.OutOfMemoryError as error:  # the sum has one more copy of all gradients
            raise DeviceError(
                f"{self.device}: the gradients' sum and norm do not fit into its memory beside the model; set a smaller "
                "micro_batch, use a smaller model, or freeze a tower"
            ) from error
        if not (math.isfinite(value) and math.isfinite(float(norm))):
            raise DivergedError(self._diverged(batch, value, float(norm)))
        try:
            self.optimizer.step()
        except torch.OutOfMemoryError as error:  # the first one makes the optimizer's own numbers, two a weight
            raise DeviceError(
                f"{self.device}: the optimizer's state does not fit into its memory beside the model; use a smaller model, "
                "or freeze a tower"
            ) from error
        return value

    def _halve(self, rows: int, error: torch.OutOfMemoryError) -> None:
        """Take fewer of so many examples at a time from now on, and say what that changes."""
        exact = self.objective.exact_in_parts
        if not exact and self.world.size > 1:
            # The others wait for this one's part of the comparison and would have to forget theirs.
            raise DeviceError(
                f"{self.device}: {self.micro} examples at a time do not fit into its memory; set a smaller micro_batch, "
                "or batch_size: processes that compare their examples with each other cannot change it on the way"
            ) from error
        least = 1 if exact else 2  # one example alone cannot be told apart from others
        if min(self.micro, rows) <= least:
            few = "one example fits" if exact else "two examples fit"
            raise DeviceError(
                f"{self.device}: not even {few} into its memory; use a smaller model, picture or text"
            ) from error
        self.micro = max(least, min(self.micro, rows) // 2)
        what = (
            "the batch stays the same"
            if exact
            else "each is told apart from these alone, no longer from the whole batch: training takes another course, and "
            "what it gives is not that of the batch size in the configuration"
        )
        log.warning("out of memory: %d examples at a time from now on; %s", self.micro, what)

    def _accumulate(self, own: Batch, whole: Batch) -> Tensor:
        total = torch.zeros((), device=self.device)
        # Where parts are compared over the processes, each takes as many of them, even if its last ones are empty.
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
            there = self.world.broadcast(float((self.folder / CHECKPOINT).exists()))  # all diverge at once
            kept = (
                f" The last good checkpoint is {self.folder / CHECKPOINT}." if there else " There is no checkpoint yet."
            )
        products = ", ".join(batch.products[:5]) + (", ..." if len(batch) > 5 else "")
        return (
            f"training diverged in epoch {self.at.epoch}, batch {self.at.step + 1} ({len(batch)} products: {products}): "
            f"loss {loss}, gradient norm {norm}. Lower the learning rates in the configuration, or look at these "
            f"products.{kept}"
        )

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.detach().cpu().clone() for name, value in self.objective.model.state_dict().items()}

    def _seen(self) -> int:
        """Return how many examples were trained on, each as often as it was: where TensorBoard's points are."""
        return (self.at.epoch - 1) * self.objective.examples + self.at.seen

    def _is_time_to_save(self, seconds: float) -> bool:
        """Whether a checkpoint is due, so many seconds after the last: the first process's clock says so for all."""
        return self.folder is not None and bool(self.world.broadcast(float(seconds >= self.checkpoint_seconds)))

    def _save(self) -> None:
        """Write a checkpoint: the first process does, with the random state of each."""
        if self.folder is None:
            return
        random = self.world.gather(torch.get_rng_state())
        random_cuda = self.world.gather(torch.cuda.get_rng_state()) if self.device.type == "cuda" else None
        self._first_alone(partial(self._write, self.folder / CHECKPOINT, random, random_cuda))

    def _write(self, path: Path, random: Tensor, random_cuda: Tensor | None) -> None:
        self.scalars.flush()  # what is before the checkpoint does not come again
        at, fitted = self.at, self.fitted
        state = {
            "fits": self.fits,
            "at": [at.epoch, at.step, at.seen, at.loss_sum, at.seconds],
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
        """Return what the first process's disk gives; None in the others. What is wrong there is raised in all of them.

        They would wait for it else, and end without knowing why.
        """
        found, error = None, None
        if self.world.is_first:
            try:
                found = do()
            except CheckpointError as raised:
                error = raised
        if (told := self.world.broadcast_object(error)) is not None:
            raise error or told
        return found

    def _restore(self, state: dict[str, Any]) -> None:
        self.objective.model.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.micro = state["micro"]
        self.at = _Progress(*state["at"])
        epochs = [Epoch.model_validate(epoch) for epoch in state["epochs"]]
        best_epoch, best_score = state["best"]
        self.fitted = Fitted(state["best_weights"], best_epoch, best_score, epochs)
        rank = self.world.rank
        torch.set_rng_state(state["random"][rank].clone())  # torch reads from where the storage begins, not the view
        if state["random_cuda"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["random_cuda"][rank].clone())
        log.info("training goes on in epoch %d, after %d examples of it", self.at.epoch, self.at.seen)


def train_mode(model: nn.Module) -> None:
    """Put what is trained into training mode; a frozen part keeps its running statistics, and drops nothing out."""
    model.train()
    for part in model.modules():
        parameters = list(part.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            part.eval()
