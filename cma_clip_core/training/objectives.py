"""Training objectives: the labels of all attributes, or the contrast of matching pictures and texts."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import open_clip
import pyarrow as pa
import torch
from torch import Tensor, nn

from cma_clip_core.catalog.examples import stream_shuffled, stream_side
from cma_clip_core.catalog.label_mentions import SpokenFinder
from cma_clip_core.errors import DataError
from cma_clip_core.evaluation.evaluate import evaluate
from cma_clip_core.evaluation.learnable import count_labels, unlearnable
from cma_clip_core.evaluation.metrics import accuracy_error, mean_accuracy
from cma_clip_core.inputs.batches import Batch, Inputs, LabelEncoder, Labels, Prepared, augment, prepare, without_names
from cma_clip_core.inputs.compute import Compute
from cma_clip_core.inputs.devices import precision
from cma_clip_core.inputs.frozen_towers import FrozenTowers
from cma_clip_core.inputs.learning_problem import LearningProblem
from cma_clip_core.inputs.memory import release
from cma_clip_core.inputs.oom_halving import Halving
from cma_clip_core.inputs.prefetch import prefetch
from cma_clip_core.model.backbone import Backbone
from cma_clip_core.model.class_layout import ClassLayout
from cma_clip_core.model.tokenizer import Tokenizer
from cma_clip_core.training.loop import Score

LARGEST_SCALE = float(np.log(100.0))  # upper limit of CLIP's log scale of the logits, as in the paper
RETRIEVAL = 256  # products whose pictures are compared with a text in validation


class TrainingBatches:
    """Batches of the training side. An epoch's number decides its batches."""

    def __init__(self, problem: LearningProblem) -> None:
        self.problem, self.config = problem, problem.config
        self.encoder, self.spoken = LabelEncoder(problem.layout), SpokenFinder(problem.taxonomy)
        self.frozen: FrozenTowers | None = None

    def __call__(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yield the random batches of an epoch (counted from 1), from number `first` (counted from 0) on, in random order.

        The texts of a batch have similar lengths.
        """
        for buffer in self._buffers(epoch, first):
            yield from buffer

    def stream(self, epoch: int, first: int, last: int, *, ahead: bool) -> Iterator[Batch | None]:
        """Yield the batches of the epochs up to `last`, from number `first` of `epoch` on, and None after each epoch.

        With `ahead`, the next buffer is prepared while one is read, which takes memory for one more. Otherwise a GPU would
        wait for it.
        """
        buffers = self._buffers_and_ends(epoch, first, last)
        for buffer in prefetch(buffers, depth=1) if ahead else buffers:
            if buffer is None:
                yield None
            else:
                yield from buffer

    def _buffers_and_ends(self, epoch: int, first: int, last: int) -> Iterator[Iterator[Batch] | None]:
        for number in range(epoch, last + 1):
            yield from self._buffers(number, first if number == epoch else 0)
            yield None

    def _buffers(self, epoch: int, first: int) -> Iterator[Iterator[Batch]]:
        training = self.config.training
        order = np.random.default_rng([training.seed, epoch])
        number = 0
        for buffer, examples in enumerate(stream_shuffled(self.problem.index, "train", training.shuffle_buffer, order)):
            count = -(-examples.num_rows // training.batch_size)
            if number + count > first:  # otherwise the whole buffer was trained on before
                # Each buffer has its own random stream, so that skipped buffers need no draws.
                rng = np.random.default_rng([training.seed, epoch, buffer])
                yield self._prepare(examples, rng, max(first - number, 0))
            number += count

    def _prepare(self, examples: pa.RecordBatch, rng: np.random.Generator, first: int) -> Iterator[Batch]:
        """Prepare a buffer's examples at once, and return an iterator over its batches from number `first` on."""
        training = self.config.training
        title_only = None
        if training.title_only and "text" not in training.freeze:
            title_only = rng.random(examples.num_rows) < training.title_only
        labels = self.encoder.encode(examples.column("labels").to_pylist())
        shown = examples
        if training.name_dropout and "text" not in training.freeze:
            chosen = labels.targets.numpy() > 0
            # Only with a picture: otherwise nothing is left to answer from.
            chosen &= examples.column("image").is_valid().to_numpy(zero_copy_only=False)[:, None]
            shown = without_names(examples, self.spoken, chosen & (rng.random(chosen.shape) < training.name_dropout))
        tokenizer = self.problem.tokenizer
        prepared = prepare(shown, self.config, tokenizer, title_only)
        products = examples.column("product_id").to_pylist()
        positions = examples.column("position").to_numpy()
        augment(prepared, training, rng)
        batches = prepared.by_length(training.batch_size)
        order = rng.permutation(len(batches))[first:]

        def cut() -> Iterator[Batch]:
            for rows in (batches[number] for number in order):
                inputs, row_tensor = prepared.inputs(rows, tokenizer), torch.from_numpy(rows)
                yield Batch(
                    [products[row] for row in rows],
                    inputs if self.frozen is None else self.frozen.add_to(inputs, positions[rows]),
                    Labels(labels.targets[row_tensor], labels.labelled[row_tensor]),
                )
            release()

        return cut()


class MultiTask:
    """The multi-task objective: the mean of the cross entropies of all labels of a batch."""

    exact_in_parts = True

    def __init__(self, model: nn.Module, problem: LearningProblem, device: torch.device) -> None:
        self.model, self.problem, self.device = model, problem, device
        config, index, self.layout = problem.config, problem.index, problem.layout
        self.training = config.training
        self.examples = index.count("train")
        self.frozen: FrozenTowers | None = None
        self.batches = TrainingBatches(problem)
        counts, balance = count_labels(index, self.layout), self.training.class_balance
        self.weights = class_weights(counts, self.layout, balance).to(device) if balance else None
        self.not_learnt = unlearnable(counts, self.layout, config.selection.least_labels)
        self.learnt = torch.tensor([a.name not in self.not_learnt for a in self.layout.attributes])

    def use(self, frozen: FrozenTowers | None) -> None:
        """Use cached outputs of frozen towers in training and validation, instead of running the towers."""
        self.frozen = self.batches.frozen = frozen

    def loss(self, part: Batch, whole: Batch) -> Tensor:
        """Return the sum of the part's losses, divided by the number of labels of the whole batch."""
        output = self.model(*part.inputs)
        labelled = part.labels.labelled & self.learnt.to(part.labels.labelled.device)
        smoothing = self.training.label_smoothing
        total = self.layout.loss(output.logits, part.labels.targets, labelled, smoothing, self.weights)
        for logits, present in output.alone.values():
            alone = self.layout.loss(logits, part.labels.targets, labelled & present[:, None], smoothing, self.weights)
            total = total + self.training.alone_loss * alone
        return total / (whole.labels.labelled & self.learnt).sum().clamp(min=1)

    def validate(self) -> Score:
        """Return the mean accuracy of the learnt attributes on the validation side."""
        predictions = evaluate(self.model, self.problem, "validation", self.device, frozen=self.frozen)
        learnt = {name: p for name, p in predictions.items() if name not in self.not_learnt}
        return Score(mean_accuracy(learnt), accuracy_error(learnt))


def class_weights(counts: npt.NDArray[np.float64], layout: ClassLayout, balance: float) -> Tensor:
    """Return the weight of each value in the loss [C]: count ** -balance, scaled to a mean of 1 over an attribute's labels.

    With a balance of 0 all values weigh the same, and with 1 inversely to their frequency. Mahajan et al. 2018 sample
    hashtags with 0.5.
    """
    weights = np.ones(layout.classes)
    for part in layout.slices:
        n = counts[part]
        if n.sum():
            raw = np.maximum(n, 1) ** -balance
            weights[part] = raw * n.sum() / (raw * n).sum()
    return torch.from_numpy(weights.astype(np.float32))


class Contrastive:
    """The contrastive objective of CLIP, as implemented by open_clip (Radford et al. 2021, figure 3).

    Each pair of picture and text is contrasted with the other pairs of the batch, over all processes; with micro-batches,
    with those of the micro-batch. Products without a picture or a text are left out.
    """

    exact_in_parts = False

    def __init__(self, model: Backbone, problem: LearningProblem, compute: Compute) -> None:
        self.model: nn.Module = _Towers(model)
        self.towers, self.problem, self.device, self.world = model, problem, compute.device, compute.world
        model.train_projections(True)
        self.examples = problem.index.count("train")
        self.batches = TrainingBatches(problem)
        self._loss = open_clip.ClipLoss()

    def loss(self, part: Batch, whole: Batch) -> Tensor:
        """Return the part's loss, weighted by its share of the batch.

        Every process computes the loss over the pairs of all processes. Its gradient flows only through its own vectors,
        and in the first process also through the temperature. So the gradients of all processes sum to the whole gradient.
        """
        inputs, world = part.inputs, self.world
        rows = (inputs.text_present & inputs.image_present).nonzero().squeeze(1)
        text = image = torch.zeros(0, 0, device=self.device)
        if len(rows):
            text = self.towers.text_features(inputs.ids[rows], inputs.lengths[rows]).float()
            image = self.towers.image_features(inputs.pixels[rows]).float()
        text, image = world.gather_rows(text), world.gather_rows(image)
        share = float(world.sum(torch.tensor(float(len(part)), device=self.device))) / len(whole)
        if len(text) < 2:
            return torch.zeros((), device=self.device)
        scale = self.towers.logit_scale.clamp(max=LARGEST_SCALE).exp()
        loss: Tensor = self._loss(image, text, scale if world.is_first else scale.detach()) * share
        # Count the value once, and the gradient in every process.
        return loss if world.is_first else loss - loss.detach()

    @torch.inference_mode()
    def validate(self) -> Score:
        """Return the share of validation products whose text is nearest to their own picture, among `RETRIEVAL` pictures.

        The pairs of the side are compared in groups of `RETRIEVAL`. An incomplete last group is left out, unless it is the
        only group.

        Raises:
            DataError: no two validation products have both a picture and a text.
        """
        self.model.eval()
        right = seen = 0

        def vectors(inputs: Inputs) -> tuple[Tensor, Tensor]:
            with precision(self.device):
                text = self.towers.text_features(inputs.ids, inputs.lengths)
                return text, self.towers.image_features(inputs.pixels)

        halving = Halving(self.device, RETRIEVAL)
        for inputs in prefetch(self._groups()):
            text, image = halving.run(vectors, inputs)  # the whole group, even if less fits into memory at a time
            best = (text @ image.T).argmax(dim=1)
            right, seen = right + int((best == torch.arange(len(best))).sum()), seen + len(best)
        if not seen:
            raise DataError(
                "no two validation products have both a picture and a text: there is nothing to pretrain on"
            )
        share = right / seen
        return Score(share, math.sqrt(share * (1 - share) / seen))

    def _groups(self) -> Iterator[Inputs]:
        """Yield the pairs of the validation side, `RETRIEVAL` at a time; fewer only if the whole side has fewer."""
        config, tokenizer = self.problem.config, self.problem.tokenizer
        held: list[Prepared] = []
        waiting, any_whole = 0, False
        for examples, _ in stream_side(self.problem.index, "validation"):
            prepared = prepare(examples, config, tokenizer)
            pairs = np.flatnonzero(prepared.text_present & prepared.image_present)
            while len(pairs):
                chosen, pairs = np.split(pairs, [RETRIEVAL - waiting])
                held.append(prepared.take(chosen))
                waiting += len(chosen)
                if waiting == RETRIEVAL:
                    yield _inputs(held, tokenizer)
                    held, waiting, any_whole = [], 0, True
        if waiting > 1 and not any_whole:
            yield _inputs(held, tokenizer)


def _inputs(parts: list[Prepared], tokenizer: Tokenizer) -> Inputs:
    joined = Prepared.join(parts)
    return joined.inputs(np.arange(len(joined)), tokenizer)


class _Towers(nn.Module):
    """The towers under the name `backbone`, by which `parameter_groups` recognises them in every model."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
