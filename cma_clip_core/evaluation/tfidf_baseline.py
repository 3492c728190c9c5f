"""The text baseline: TF-IDF of the text and a logistic regression for each attribute (scikit-learn).

It reads the same fields as the models it is compared with, but all of their words. The regularisation of
each attribute's regression is chosen on validation, as a model's epoch is.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from tqdm import tqdm

from cma_clip_core.catalog.examples import ExampleIndex, stream_side
from cma_clip_core.catalog.label_mentions import SpokenFinder
from cma_clip_core.catalog.splits import Side
from cma_clip_core.config import TextConfig
from cma_clip_core.errors import NothingToLearnError
from cma_clip_core.evaluation.evaluate import Columns, label_columns, split_attributes
from cma_clip_core.evaluation.predictions import Predictions
from cma_clip_core.inputs.batches import LabelEncoder
from cma_clip_core.model.class_layout import ClassLayout
from cma_clip_core.model.tokenizer import compose

log = logging.getLogger(__name__)

UNSEEN = -30.0  # logit of a value that no training product has: a probability of zero
INVERSE_REGULARISATIONS: Final = (1.0, 10.0)  # C: scikit-learn's default, and one that suits texts that name the value
ALWAYS = 30.0  # logit of a value of a multi-valued attribute that all products have: a probability of one

# Single-valued: one regression over all classes; None if only one class was seen. Multi-valued: one regression per value;
# None for a value that all products have.
_Model: TypeAlias = LogisticRegression | list[LogisticRegression | None] | None


@dataclass(slots=True)
class TextBaseline:
    """A fitted vocabulary and, for each attribute, its linear model and the classes seen in training."""

    layout: ClassLayout
    text: TextConfig
    vectorizer: TfidfVectorizer
    models: dict[str, tuple[npt.NDArray[np.int64], _Model]]  # attribute: classes seen in training, fitted model

    def predict(self, index: ExampleIndex, side: Side) -> dict[str, Predictions]:
        """Return the baseline's predictions for the labelled products of a side, by attribute name."""
        texts, columns = _read(index, side, self.layout, self.text)
        features = self.vectorizer.transform(texts)
        logits = np.full((len(texts), self.layout.classes), UNSEEN, dtype=np.float32)
        for name, (classes, model) in self.models.items():
            part = self.layout.slices[self.layout.position[name]]
            logits[:, part.start + classes] = _logits(classes, model, features)
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
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True, dtype=np.float32)
    try:
        features = vectorizer.fit_transform(texts)
    except ValueError as error:  # scikit-learn raises it for an empty vocabulary
        raise NothingToLearnError(
            f"no two training products have a word in common in {', '.join(text.fields)}: there is no text to learn from"
        ) from error
    unseen, judged = _read(index, "validation", layout, text)
    held_back = vectorizer.transform(unseen)
    models: dict[str, tuple[npt.NDArray[np.int64], _Model]] = {}
    attributes = list(zip(layout.attributes, layout.slices, strict=True))
    for k, (attribute, part) in enumerate(tqdm(attributes, desc="TF-IDF + LR", unit="attribute", disable=not progress)):
        if attribute.name in not_learnt:
            continue
        rows = np.flatnonzero(columns["labelled"][:, k])
        targets = columns["targets"][rows, part]
        seen = np.flatnonzero(targets.any(axis=0))
        if not len(seen):
            continue
        judged_rows = np.flatnonzero(judged["labelled"][:, k])
        right = judged["targets"][judged_rows, part][:, seen]
        best: _Model = None
        most = -1
        for c in inverse_regularisations if len(judged_rows) else inverse_regularisations[:1]:
            model = _fit(features[rows], targets[:, seen], attribute.multi_valued, c)
            hits = 0
            if len(judged_rows):
                chosen = _logits(seen, model, held_back[judged_rows]).argmax(axis=1)
                hits = int(right[np.arange(len(judged_rows)), chosen].sum())
            if hits > most:
                best, most = model, hits
        models[attribute.name] = seen, best
    return TextBaseline(layout, text, vectorizer, models)


def _fit(features: Any, targets: npt.NDArray[np.bool_], multi_valued: bool, inverse_regularisation: float) -> _Model:
    """Fit an attribute's regressions on features [n, words] and targets [n, C] of the classes seen in training."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # more steps would change only rounding
        regression = LogisticRegression(C=inverse_regularisation, max_iter=300)
        if multi_valued:
            return [None if one.all() else clone(regression).fit(features, one) for one in targets.T]
        return regression.fit(features, targets.argmax(axis=1)) if targets.shape[1] > 1 else None


def _logits(classes: npt.NDArray[np.int64], model: _Model, features: Any) -> npt.NDArray[np.float64]:
    """Return an attribute's logits [n, C] for features [n, words], for the classes seen in training."""
    if isinstance(model, list):
        rows = features.shape[0]
        scores = [np.full(rows, ALWAYS) if one is None else one.decision_function(features) for one in model]
        return np.stack(scores, axis=1)
    if model is None:
        return np.zeros((features.shape[0], len(classes)))
    logits: npt.NDArray[np.float64] = model.predict_log_proba(features)
    return logits


def _read(index: ExampleIndex, side: Side, layout: ClassLayout, text: TextConfig) -> tuple[list[str], Columns]:
    encoder, spoken = LabelEncoder(layout), SpokenFinder(layout.taxonomy)
    texts: list[str] = []
    parts: list[Columns] = []
    for examples, families in stream_side(index, side):
        fields = (examples.column(name).to_pylist() for name in ("title", "brand", "description"))
        texts += [compose(title, brand, words, text) for title, brand, words in zip(*fields, strict=True)]
        parts.append(label_columns(examples, families, encoder, spoken))
    return texts, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
