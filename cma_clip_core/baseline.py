"""The baseline any sceptic asks for: TF-IDF of the text and a logistic regression for each attribute (scikit-learn).

It reads the same fields as the models it is compared with, and all of their words, however many.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from tqdm import tqdm

from cma_clip_core.batches import LabelEncoder
from cma_clip_core.classes import ClassLayout
from cma_clip_core.config import TextConfig
from cma_clip_core.errors import NothingToLearnError
from cma_clip_core.evaluation import Columns, label_columns, split_attributes
from cma_clip_core.examples import ExampleIndex, stream_side
from cma_clip_core.predictions import Predictions
from cma_clip_core.splits import Side
from cma_clip_core.spoken import SpokenFinder
from cma_clip_core.tokens import compose

log = logging.getLogger(__name__)

UNSEEN = -30.0  # logit of a value that no training product has: a probability of nothing
ALWAYS = 30.0  # of one of several values that all of them have: a probability of one


@dataclass(slots=True)
class TextBaseline:
    """A fitted vocabulary and, for each attribute, the classes seen in training and their linear model."""

    layout: ClassLayout
    text: TextConfig
    vectorizer: TfidfVectorizer
    models: dict[str, tuple[npt.NDArray[np.int64], Any]]  # attribute: classes, and one model, or one for each

    def predict(self, index: ExampleIndex, side: Side) -> dict[str, Predictions]:
        """Return what the baseline says of the labelled products of a side, by attribute name."""
        texts, columns = _read(index, side, self.layout, self.text)
        features = self.vectorizer.transform(texts)
        logits = np.full((len(texts), self.layout.classes), UNSEEN, dtype=np.float32)
        for name, (classes, model) in self.models.items():
            part = self.layout.slices[self.layout.position[name]]
            if self.layout.taxonomy[name].multi_valued:
                for c, one in zip(classes, model, strict=True):
                    logits[:, part.start + c] = ALWAYS if one is None else one.decision_function(features)
            elif model is None:
                logits[:, part.start + classes[0]] = 0.0
            else:
                logits[:, part.start + classes] = model.predict_log_proba(features)
        columns["logits"] = logits
        columns["lambdas"] = np.tile(np.array([1, 0], np.float32), (len(texts), len(self.layout.attributes), 1))
        return split_attributes(self.layout, [columns])


def fit_text_baseline(
    index: ExampleIndex, layout: ClassLayout, text: TextConfig, *, not_learnt: Collection[str] = (),
    inverse_regularisation: float = 10.0, progress: bool = True,
) -> TextBaseline:  # fmt: skip
    """Fit the baseline on the training side.

    Args:
        index: the labelled products.
        layout: the classes.
        text: which fields are read, in which order.
        not_learnt: attributes that are left out (cma_clip_core.learnable): of all their values it says that none is.
        inverse_regularisation: C of the logistic regressions.
        progress: show a progress bar.

    Raises:
        NothingToLearnError: there is no text, or no word that two products have.
    """
    texts, columns = _read(index, "train", layout, text)
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True, dtype=np.float32)
    try:
        features = vectorizer.fit_transform(texts)
    except ValueError as error:  # scikit-learn's word for an empty vocabulary
        raise NothingToLearnError(
            f"no two training products have a word in common in {', '.join(text.fields)}: there is no text to learn from"
        ) from error
    models: dict[str, tuple[npt.NDArray[np.int64], Any]] = {}
    attributes = list(zip(layout.attributes, layout.slices, strict=True))
    for k, (attribute, part) in enumerate(tqdm(attributes, desc="TF-IDF + LR", unit="attribute", disable=not progress)):
        if attribute.name in not_learnt:
            continue
        rows = np.flatnonzero(columns["labelled"][:, k])
        targets = columns["targets"][rows, part]
        seen = np.flatnonzero(targets.any(axis=0))
        if attribute.multi_valued:
            always = targets.all(axis=0)
            fitted = [None if always[c] else _fit(features[rows], targets[:, c], inverse_regularisation) for c in seen]
            models[attribute.name] = seen, fitted
        elif len(seen):
            one = _fit(features[rows], targets.argmax(axis=1), inverse_regularisation) if len(seen) > 1 else None
            models[attribute.name] = seen, one
    return TextBaseline(layout, text, vectorizer, models)


def _fit(features: Any, classes: npt.NDArray[Any], inverse_regularisation: float) -> LogisticRegression:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # what is left to gain after so many steps is rounding
        return LogisticRegression(C=inverse_regularisation, max_iter=300).fit(features, classes)


def _read(index: ExampleIndex, side: Side, layout: ClassLayout, text: TextConfig) -> tuple[list[str], Columns]:
    encoder, spoken = LabelEncoder(layout), SpokenFinder(layout.taxonomy)
    texts: list[str] = []
    parts: list[Columns] = []
    for examples, families in stream_side(index, side):
        fields = (examples.column(name).to_pylist() for name in ("title", "brand", "description"))
        texts += [compose(title, brand, words, text) for title, brand, words in zip(*fields, strict=True)]
        parts.append(label_columns(examples, families, encoder, spoken))
    return texts, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
