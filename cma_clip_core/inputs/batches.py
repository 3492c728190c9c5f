"""Conversion of examples to model inputs: the one code path of training, evaluation and tagging.

Letters of shapes: B batch, T text tokens, K attributes, C classes of all attributes, H x W pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from cma_clip_core.arrays import Bools, Pixels
from cma_clip_core.catalog.examples import read_pixels
from cma_clip_core.catalog.label_mentions import TEXT_FIELDS, SpokenFinder
from cma_clip_core.catalog.labels import LabelReader, LabelRows
from cma_clip_core.config import ModelConfig, TrainingConfig
from cma_clip_core.model.backbone import Sequence
from cma_clip_core.model.bag_of_words import BagOfWords, Terms, pad_terms
from cma_clip_core.model.class_layout import ClassLayout
from cma_clip_core.model.tokenizer import Tokenizer, compose


@dataclass(slots=True)
class Inputs:
    """Model inputs of some products: the arguments of `CmaClip.forward`."""

    ids: Tensor  # [B, T] int64
    lengths: Tensor  # [B] int64
    text_present: Tensor  # [B] bool
    pixels: Tensor  # [B, H, W, 3] uint8
    image_present: Tensor  # [B] bool
    text: Sequence | None = None  # cached output of a frozen text tower (cma_clip_core.inputs.frozen_towers)
    image: Sequence | None = None  # cached output of a frozen image tower
    # [B, N] int64 and float32: the terms of each text and their weights, for a model that reads them (Ensemble)
    terms: Tensor | None = None
    term_weights: Tensor | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    def rows(self, rows: slice | Tensor) -> Inputs:
        """Return some of the products: a slice, or where a mask [B] is True."""
        return self._each(lambda tensor: tensor[rows])

    def to(self, device: torch.device) -> Inputs:
        """Return the inputs on `device`."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        def changed(sequence: Sequence | None) -> Sequence | None:
            return sequence and Sequence(*(None if part is None else change(part) for part in sequence))  # type: ignore[arg-type]

        return Inputs(
            change(self.ids), change(self.lengths), change(self.text_present), change(self.pixels),
            change(self.image_present), changed(self.text), changed(self.image),
            None if self.terms is None else change(self.terms),
            None if self.term_weights is None else change(self.term_weights),
        )  # fmt: skip

    def __iter__(self) -> Iterator[Any]:
        yield from (self.ids, self.lengths, self.text_present, self.pixels, self.image_present)
        if self.text is not None or self.image is not None or self.terms is not None:
            yield from (self.text, self.image)
        if self.terms is not None:
            yield from (self.terms, self.term_weights)


@dataclass(slots=True)
class Labels:
    """The catalog's labels of some products."""

    targets: Tensor  # [B, C] float32, 1 at the values a product has
    labelled: Tensor  # [B, K] bool, False where the catalog gives no value, or the attribute does not apply

    def to(self, device: torch.device) -> Labels:
        """Return the labels on `device`."""
        return Labels(self.targets.to(device), self.labelled.to(device))


@dataclass(slots=True)
class Batch:
    """Some labelled products for training."""

    products: list[str]  # ids, for error messages
    inputs: Inputs
    labels: Labels

    def __len__(self) -> int:
        return len(self.products)

    def rows(self, rows: slice) -> Batch:
        """Return some of the products."""
        return Batch(
            self.products[rows],
            self.inputs.rows(rows),
            Labels(self.labels.targets[rows], self.labels.labelled[rows]),
        )

    def to(self, device: torch.device) -> Batch:
        """Return the batch on `device`."""
        return Batch(self.products, self.inputs.to(device), self.labels.to(device))


@dataclass(slots=True)
class Prepared:
    """Some products, tokenised and decoded, before they are split into batches."""

    texts: list[list[int]]  # token ids of each product
    text_present: Bools  # [B]
    pixels: Pixels  # [B, H, W, 3]; zeros where there is no picture
    image_present: Bools  # [B]
    terms: list[Terms] | None = None  # of each product's text; None: no bag of words reads them

    def __len__(self) -> int:
        return len(self.texts)

    def inputs(self, rows: npt.NDArray[np.int64], tokenizer: Tokenizer) -> Inputs:
        """Return some of the products as model inputs."""
        ids, lengths = tokenizer.pad([self.texts[row] for row in rows])
        terms = None if self.terms is None else pad_terms([self.terms[row] for row in rows])
        return Inputs(
            torch.from_numpy(ids),
            torch.from_numpy(lengths),
            torch.from_numpy(self.text_present[rows]),
            torch.from_numpy(self.pixels[rows]),
            torch.from_numpy(self.image_present[rows]),
            terms=None if terms is None else torch.from_numpy(terms[0]),
            term_weights=None if terms is None else torch.from_numpy(terms[1]),
        )

    def take(self, rows: npt.NDArray[np.int64]) -> Prepared:
        """Return a copy of some of the products, so that the others need not stay in memory."""
        texts = [self.texts[row] for row in rows]
        return Prepared(texts, self.text_present[rows], self.pixels[rows], self.image_present[rows])

    @classmethod
    def join(cls, parts: list[Prepared]) -> Prepared:
        """Return the products of one or more parts, concatenated."""
        return cls(
            [text for part in parts for text in part.texts],
            np.concatenate([part.text_present for part in parts]),
            np.concatenate([part.pixels for part in parts]),
            np.concatenate([part.image_present for part in parts]),
        )

    def by_length(self, batch_size: int) -> list[npt.NDArray[np.int64]]:
        """Split the products into batches of similar text length, to save padding. Deterministic."""
        order = np.argsort([len(text) for text in self.texts], kind="stable")
        return [order[at : at + batch_size] for at in range(0, len(order), batch_size)]


def prepare(
    examples: pa.RecordBatch,
    config: ModelConfig,
    tokenizer: Tokenizer,
    title_only: Bools | None = None,
    bag: BagOfWords | None = None,
) -> Prepared:
    """Return examples (columns product_id, title, brand, description, image) as tokens and pixels.

    Args:
        examples: [B] rows.
        config: chooses the text fields and the picture size.
        tokenizer: the tokenizer of that configuration.
        title_only: [B], True to read the title only, if the configuration reads titles and the product has one.
        bag: a vocabulary; if given, the terms of each text are looked up too, beyond the end of the context.

    Raises:
        DataError: a picture does not have the model's size.
    """
    columns = (examples.column(name).to_pylist() for name in ("title", "brand", "description"))
    rows = zip(*columns, itertools.repeat(False, len(examples)) if title_only is None else title_only, strict=True)
    texts = [
        (title_alone and compose(title, "", "", config.text)) or compose(title, brand, description, config.text)
        for title, brand, description, title_alone in rows
    ]
    pixels, image_present = read_pixels(examples, config.picture)
    text_present = np.array([bool(text) for text in texts], dtype=np.bool_)
    terms = None if bag is None else [bag.encode(text) for text in texts]
    return Prepared([tokenizer.encode(text) for text in texts], text_present, pixels, image_present, terms)


def without_names(examples: pa.RecordBatch, spoken: SpokenFinder, chosen: Bools) -> pa.RecordBatch:
    """Return examples whose texts no longer name the chosen labels.

    Args:
        examples: [B] rows.
        spoken: finder that knows the names.
        chosen: [B, C], True at the values whose names are left out.
    """
    texts = spoken.leave_out(zip(*(examples.column(f).to_pylist() for f in TEXT_FIELDS), strict=True), chosen)
    for field, column in zip(TEXT_FIELDS, zip(*texts, strict=True), strict=True):
        position = examples.schema.get_field_index(field)
        schema_field = examples.schema.field(position)
        examples = examples.set_column(position, schema_field, pa.array(column, schema_field.type))
    return examples


class LabelEncoder:
    """Encoder of the catalog's labels as the model's targets."""

    def __init__(self, layout: ClassLayout) -> None:
        self._reader = LabelReader(layout.taxonomy)

    def rows(self, examples: pa.RecordBatch) -> LabelRows:
        """Return the labels of `examples` as arrays, unlisted values included. Raises DataError as `encode` does."""
        return self._reader.read(*(examples.column(name).to_pylist() for name in ("labels", "unknown_labels")))

    def encode(self, labels: Iterable[Iterable[tuple[str, list[str]]]]) -> Labels:
        """Return labels as tensors; for each product they are attribute names with their values.

        Raises:
            DataError: a label is not in the taxonomy.
        """
        rows = self._reader.read(labels)  # training needs no unlisted values
        return Labels(torch.from_numpy(rows.targets.astype(np.float32)), torch.from_numpy(rows.labelled))


def augment(prepared: Prepared, config: TrainingConfig, rng: np.random.Generator) -> None:
    """Augment `prepared` in place: drop words and modalities, mirror and shift pictures. Our choice, not the paper's.

    Frozen towers get no word dropout, mirroring or shifts. Their outputs are the same in every epoch and can be cached.
    """
    rows = len(prepared)
    if config.text_dropout or config.image_dropout:
        both = prepared.text_present & prepared.image_present
        draw = rng.random(rows)
        no_text = both & (draw < config.text_dropout)
        no_image = both & (draw > 1 - config.image_dropout) & ~no_text  # no product loses its only modality
        prepared.text_present = prepared.text_present & ~no_text
        prepared.image_present = prepared.image_present & ~no_image
    if config.word_dropout and "text" not in config.freeze:
        lengths = [len(text) for text in prepared.texts]
        keep = (
            rng.random(sum(lengths)) >= config.word_dropout
        )  # one call gives the same draws as one call for each text
        ends = np.cumsum(lengths)
        keep[ends - 1] = keep[ends - lengths] = True  # start and end tokens
        kept = iter(keep.tolist())
        prepared.texts = [list(itertools.compress(text, kept)) for text in prepared.texts]
    if "image" in config.freeze or not (config.flip or config.shift):
        return
    if not prepared.pixels.flags.writeable:
        prepared.pixels = prepared.pixels.copy()
    pixels = prepared.pixels
    if config.flip:
        chosen = rng.random(rows) < 0.5
        pixels[chosen] = pixels[chosen, :, ::-1]
    if config.shift:
        moves = rng.integers(-config.shift, config.shift + 1, size=(rows, 2))
        for row in np.flatnonzero(prepared.image_present & moves.any(axis=1)):
            pixels[row] = _move(pixels[row], int(moves[row, 0]), int(moves[row, 1]))


def _move(pixels: Pixels, down: int, right: int) -> Pixels:
    """Return the picture shifted; its edge pixels fill the uncovered area."""
    height, width = pixels.shape[:2]
    down, right = max(1 - height, min(height - 1, down)), max(1 - width, min(width - 1, right))
    moved = np.empty_like(pixels)
    # Copy whole blocks of memory. Pixel by pixel, this would take a quarter of the time to prepare a product.
    top, left = max(down, 0), max(right, 0)
    bottom, end = height + min(down, 0), width + min(right, 0)
    moved[top:bottom, left:end] = pixels[top - down : bottom - down, left - right : end - right]
    moved[top:bottom, :left] = pixels[top - down : bottom - down, :1]
    moved[top:bottom, end:] = pixels[top - down : bottom - down, -1:]
    moved[:top] = moved[top : top + 1]
    moved[bottom:] = moved[bottom - 1 : bottom]
    return moved
