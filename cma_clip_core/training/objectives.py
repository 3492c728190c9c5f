"""What is trained: the labels of all attributes at once, or which picture and which text belong together."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import open_clip
import pyarrow as pa
import torch
from torch import Tensor, nn

from cma_clip_core.catalog.examples import ExampleIndex, stream_shuffled, stream_side
from cma_clip_core.catalog.label_mentions import SpokenFinder
from cma_clip_core.config import ModelConfig
from cma_clip_core.errors import DataError
from cma_clip_core.evaluation.evaluate import evaluate
from cma_clip_core.evaluation.learnable import count_labels, unlearnable
from cma_clip_core.evaluation.metrics import accuracy_error, mean_accuracy
from cma_clip_core.inputs.batches import Batch, Inputs, LabelEncoder, Labels, Prepared, augment, prepare, without_names
from cma_clip_core.inputs.devices import precision
from cma_clip_core.inputs.distributed import World
from cma_clip_core.inputs.frozen_towers import FrozenTowers
from cma_clip_core.inputs.memory import release
from cma_clip_core.inputs.oom_halving import Halving
from cma_clip_core.inputs.prefetch import prefetch
from cma_clip_core.model.backbone import Backbone
from cma_clip_core.model.class_layout import ClassLayout
from cma_clip_core.model.tokenizer import Tokenizer
from cma_clip_core.training.loop import Score

LARGEST_SCALE = float(np.log(100.0))  # of CLIP's temperature, as its authors clip it
RETRIEVAL = 256  # products whose pictures a text is compared with in validation


class TrainingBatches:
    """The training side of the examples, as batches: the same ones in every epoch of that number."""

    def __init__(self, index: ExampleIndex, config: ModelConfig, layout: ClassLayout, tokenizer: Tokenizer) -> None:
        self.index, self.config, self.layout, self.tokenizer = index, config, layout, tokenizer
        self.encoder, self.spoken = LabelEncoder(layout), SpokenFinder(layout.taxonomy)
        self.frozen: FrozenTowers | None = None

    def __call__(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yield an epoch's batches (from 1) from number `first` (from 0) on: drawn at random, of like length, in random
        order.
        """
        for buffer in self._buffers(epoch, first):
            yield from buffer

    def stream(self, epoch: int, first: int, last: int, *, ahead: bool) -> Iterator[Batch | None]:
        """Yield the batches of the epochs up to `last`, from number `first` of `epoch` on; None after each epoch.

        With `ahead` the next buffer is prepared while one is given out, for which there is one more in memory: else a GPU
        waits for it.
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
        for buffer, examples in enumerate(stream_shuffled(self.index, "train", training.shuffle_buffer, order)):
            count = -(-examples.num_rows // training.batch_size)
            if number + count > first:  # else all of it was trained on before
                # A random stream of its own for each buffer: what is skipped need not be drawn.
                rng = np.random.default_rng([training.seed, epoch, buffer])
                yield self._prepare(examples, rng, max(first - number, 0))
            number += count

    def _prepare(self, examples: pa.RecordBatch, rng: np.random.Generator, first: int) -> Iterator[Batch]:
        """Prepare a buffer's examples now, and return what yields its batches from number `first` on."""
        training = self.config.training
        title_only = None
        if training.title_only and "text" not in training.freeze:
            title_only = rng.random(examples.num_rows) < training.title_only
        labels = self.encoder.encode(examples.column("labels").to_pylist())
        shown = examples
        if training.name_dropout and "text" not in training.freeze:
            chosen = labels.targets.numpy() > 0
            # Without a picture nothing else could answer.
            chosen &= examples.column("image").is_valid().to_numpy(zero_copy_only=False)[:, None]
            shown = without_names(examples, self.spoken, chosen & (rng.random(chosen.shape) < training.name_dropout))
        prepared = prepare(shown, self.config, self.tokenizer, title_only)
        products = examples.column("product_id").to_pylist()
        positions = examples.column("position").to_numpy()
        augment(prepared, training, rng)
        batches = prepared.by_length(training.batch_size)
        order = rng.permutation(len(batches))[first:]

        def cut() -> Iterator[Batch]:
            for rows in (batches[at] for at in order):
                inputs, which = prepared.inputs(rows, self.tokenizer), torch.from_numpy(rows)
                yield Batch(
                    [products[row] for row in rows],
                    inputs if self.frozen is None else self.frozen.add_to(inputs, positions[rows]),
                    Labels(labels.targets[which], labels.labelled[which]),
                )
            release()

        return cut()


class MultiTask:
    """The labels of all attributes at once: the mean of the cross entropies of all labels of a batch."""

    exact_in_parts = True

    def __init__(
        self,
        model: nn.Module,
        index: ExampleIndex,
        config: ModelConfig,
        layout: ClassLayout,
        tokenizer: Tokenizer,
        device: torch.device,
    ) -> None:
        self.model, self.index, self.config, self.layout = model, index, config, layout
        self.tokenizer, self.device = tokenizer, device
        self.examples = index.count("train")
        self.frozen: FrozenTowers | None = None
        self.batches = TrainingBatches(index, config, layout, tokenizer)
        counts, balance = count_labels(index, layout), config.training.class_balance
        self.weights = class_weights(counts, layout, balance).to(device) if balance else None
        self.not_learnt = unlearnable(counts, layout, config.selection.least_labels)
        self.learnt = torch.tensor([a.name not in self.not_learnt for a in layout.attributes])

    def use(self, frozen: FrozenTowers | None) -> None:
        """Take from here what frozen towers give, in training and validation, instead of running them."""
        self.frozen = self.batches.frozen = frozen

    def loss(self, part: Batch, whole: Batch) -> Tensor:
        """Return the sum of the part's losses over the number of labels of the whole batch."""
        output = self.model(*part.inputs)
        labelled = part.labels.labelled & self.learnt.to(part.labels.labelled.device)
        smoothing = self.config.training.label_smoothing
        total = self.layout.loss(output.logits, part.labels.targets, labelled, smoothing, self.weights)
        for logits, there in output.alone.values():
            alone = self.layout.loss(logits, part.labels.targets, labelled & there[:, None], smoothing, self.weights)
            total = total + self.config.training.alone_loss * alone
        return total / (whole.labels.labelled & self.learnt).sum().clamp(min=1)

    def validate(self) -> Score:
        """Return the mean accuracy of the attributes that are learnt on the validation side."""
        found = evaluate(
            self.model,
            self.index,
            "validation",
            self.config,
            self.layout,
            self.tokenizer,
            self.device,
            frozen=self.frozen,
        )
        learnt = {name: p for name, p in found.items() if name not in self.not_learnt}
        return Score(mean_accuracy(learnt), accuracy_error(learnt))


def class_weights(counts: npt.NDArray[np.float64], layout: ClassLayout, balance: float) -> Tensor:
    """Return the weight of each value in the loss [C]: count ** -balance, of mean 1 over an attribute's labels.

    A power between none (0) and the inverse frequency (1), as Mahajan et al. 2018 draw hashtags (there 0.5).
    """
    weights = np.ones(layout.classes)
    for part in layout.slices:
        n = counts[part]
        if n.sum():
            raw = np.maximum(n, 1) ** -balance
            weights[part] = raw * n.sum() / (raw * n).sum()
    return torch.from_numpy(weights.astype(np.float32))


class Contrastive:
    """Which picture and which text belong together: CLIP's own loss, by open_clip (Radford et al. 2021, figure 3).

    The others of a batch are what each pair is told apart from, whichever process has them; with micro-batches, the
    others of the micro-batch. Products without a picture or a text are left out.
    """

    exact_in_parts = False

    def __init__(
        self,
        model: Backbone,
        index: ExampleIndex,
        config: ModelConfig,
        layout: ClassLayout,
        tokenizer: Tokenizer,
        device: torch.device,
        world: World | None = None,
    ) -> None:
        self.model: nn.Module = _Towers(model)
        self.world = world or World()
        self.towers, self.index, self.config, self.tokenizer, self.device = model, index, config, tokenizer, device
        model.train_projections(True)
        self.examples = index.count("train")
        self.batches = TrainingBatches(index, config, layout, tokenizer)
        self._loss = open_clip.ClipLoss()

    def loss(self, part: Batch, whole: Batch) -> Tensor:
        """Return the part's loss, weighted by its share of the batch.

        Every process works out the loss of all processes' pairs; of its gradient each has what flows through its own
        vectors, and the first one what flows through the temperature, so that their sum is the whole gradient.
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
        return loss if world.is_first else loss - loss.detach()  # the value counts once, the gradient everywhere

    @torch.inference_mode()
    def validate(self) -> Score:
        """Return the share of validation products whose text's nearest picture, of `RETRIEVAL` products', is their own.

        The side's pairs are compared in whole groups, however they lie in files; those after the last one are left out. Where
        there is no whole group, all pairs are compared.

        Raises:
            DataError: there are no two validation products with both a picture and a text.
        """
        self.model.eval()
        right = seen = 0

        def vectors(inputs: Inputs) -> tuple[Tensor, Tensor]:
            with precision(self.device):
                text = self.towers.text_features(inputs.ids, inputs.lengths)
                return text, self.towers.image_features(inputs.pixels)

        halving = Halving(self.device, RETRIEVAL)
        for inputs in prefetch(self._groups()):
            text, image = halving.run(vectors, inputs)  # whole again: all are compared, however few fit at a time
            best = (text @ image.T).argmax(dim=1)
            right, seen = right + int((best == torch.arange(len(best))).sum()), seen + len(best)
        if not seen:
            raise DataError(
                "no two validation products have both a picture and a text: there is nothing to pretrain on"
            )
        share = right / seen
        return Score(share, math.sqrt(share * (1 - share) / seen))

    def _groups(self) -> Iterator[Inputs]:
        """Yield the validation side's pairs, `RETRIEVAL` at a time; fewer only where there are no more of them in all."""
        held: list[Prepared] = []
        waiting, any_whole = 0, False
        for examples, _ in stream_side(self.index, "validation"):
            prepared = prepare(examples, self.config, self.tokenizer)
            pairs = np.flatnonzero(prepared.text_present & prepared.image_present)
            while len(pairs):
                chosen, pairs = np.split(pairs, [RETRIEVAL - waiting])
                held.append(prepared.take(chosen))
                waiting += len(chosen)
                if waiting == RETRIEVAL:
                    yield _inputs(held, self.tokenizer)
                    held, waiting, any_whole = [], 0, True
        if waiting > 1 and not any_whole:
            yield _inputs(held, self.tokenizer)


def _inputs(parts: list[Prepared], tokenizer: Tokenizer) -> Inputs:
    joined = Prepared.join(parts)
    return joined.inputs(np.arange(len(joined)), tokenizer)


class _Towers(nn.Module):
    """The towers under the name they have in every model, so that parameter groups know them."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
