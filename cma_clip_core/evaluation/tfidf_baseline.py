"""The text baseline: TF-IDF of the text and a logistic regression for each attribute.

It reads the same fields as the models it is compared with, but all of their words. The regularisation of
each attribute's regression is chosen on validation, as a model's epoch is.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from tqdm import tqdm

from cma_clip_core.catalog.examples import ExampleIndex, stream_side
from cma_clip_core.catalog.label_mentions import SpokenFinder
from cma_clip_core.catalog.splits import Side
from cma_clip_core.config import TextConfig
from cma_clip_core.errors import NothingToLearnError
from cma_clip_core.evaluation.evaluate import Columns, label_columns, split_attributes
from cma_clip_core.evaluation.linear_models import UNSEEN, LinearModel, fit_linear, term_matrix
from cma_clip_core.evaluation.predictions import Predictions
from cma_clip_core.inputs.batches import LabelEncoder
from cma_clip_core.model.bag_of_words import BagOfWords
from cma_clip_core.model.class_layout import ClassLayout
from cma_clip_core.model.tokenizer import compose

INVERSE_REGULARISATIONS: Final = (1.0, 10.0)  # C: scikit-learn's default, and one that suits texts that name the value


@dataclass(slots=True)
class TextBaseline:
    """A fitted vocabulary, and the linear model of each attribute."""

    layout: ClassLayout
    text: TextConfig
    bag: BagOfWords
    models: dict[str, LinearModel]

    def predict(self, index: ExampleIndex, side: Side) -> dict[str, Predictions]:
        """Return the baseline's predictions for the labelled products of a side, by attribute name."""
        texts, columns = _read(index, side, self.layout, self.text)
        features = term_matrix([self.bag.encode(text) for text in texts], len(self.bag))
        logits = np.full((len(texts), self.layout.classes), UNSEEN, dtype=np.float32)
        for name, model in self.models.items():
            logits[:, self.layout.slices[self.layout.position[name]]] = model.logits(features)
        columns["logits"] = logits
        columns["lambdas"] = np.tile(np.array([1, 0], np.float32), (len(texts), len(self.layout.attributes), 1))
        return split_attributes(self.layout, [columns])


def fit_text_baseline(
    index: ExampleIndex, layout: ClassLayout, text: TextConfig, *, not_learnt: Collection[str] = (),
    inverse_regularisations: Sequence[float] = INVERSE_REGULARISATIONS, progress: bool = True,
) -> TextBaseline:  # fmt: skip
    """Fit the baseline on the training side; each attribute keeps the C that is most accurate on validation.

    Args:
        index: the labelled products.
        layout: the classes.
        text: the text fields that are read, in order.
        not_learnt: attributes to leave out (cma_clip_core.evaluation.learnable); all their values get a probability of zero.
        inverse_regularisations: values of C to try, rising.
        progress: show a progress bar.

    Raises:
        NothingToLearnError: there is no text, or no word that two products share.
    """
    texts, columns = _read(index, "train", layout, text)
    bag = fit_bag(texts, text)
    features = term_matrix([bag.encode(each) for each in texts], len(bag))
    unseen, judged = _read(index, "validation", layout, text)
    held_back = term_matrix([bag.encode(each) for each in unseen], len(bag))
    models: dict[str, LinearModel] = {}
    attributes = list(zip(layout.attributes, layout.slices, strict=True))
    for k, (attribute, part) in enumerate(tqdm(attributes, desc="TF-IDF + LR", unit="attribute", disable=not progress)):
        rows = np.flatnonzero(columns["labelled"][:, k])
        if attribute.name in not_learnt or not len(rows):
            continue
        judged_rows = np.flatnonzero(judged["labelled"][:, k])
        right = judged["targets"][judged_rows, part]
        most = -1
        for c in inverse_regularisations if len(judged_rows) else inverse_regularisations[:1]:
            model = fit_linear(features[rows], columns["targets"][rows, part], attribute.multi_valued, c)
            chosen = model.logits(held_back[judged_rows]).argmax(axis=1)
            hits = int(right[np.arange(len(judged_rows)), chosen].sum())
            if hits > most:
                models[attribute.name], most = model, hits
    return TextBaseline(layout, text, bag, models)


def fit_bag(texts: Sequence[str], text: TextConfig) -> BagOfWords:
    """Return the vocabulary of `texts`. Raises NothingToLearnError if no two of them share a word."""
    bag = BagOfWords.fit(texts)
    if not len(bag):
        raise NothingToLearnError(
            f"no two training products have a word in common in {', '.join(text.fields)}: there is no text to learn from"
        )
    return bag


def _read(index: ExampleIndex, side: Side, layout: ClassLayout, text: TextConfig) -> tuple[list[str], Columns]:
    encoder, spoken = LabelEncoder(layout), SpokenFinder(layout.taxonomy)
    texts: list[str] = []
    parts: list[Columns] = []
    for examples, families in stream_side(index, side):
        fields = (examples.column(name).to_pylist() for name in ("title", "brand", "description"))
        texts += [compose(title, brand, words, text) for title, brand, words in zip(*fields, strict=True)]
        parts.append(label_columns(examples, families, encoder, spoken))
    return texts, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
