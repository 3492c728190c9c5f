"""Linear members of an ensemble: logistic regressions on the bag of words and on pretrained picture features.

With few products, the validation side alone is too small to promise much. So up to `MOST_CROSS_FITTED` products, the training
and validation sides are cross-fitted together. Their families are split into folds, and each fold is predicted by
regressions that were fitted to the others. Weights and thresholds are chosen on these predictions. The published
regressions are fitted to all of these products. With more products, the regressions are fitted to the training side and
predict the validation side, as CMA-CLIP does.

Letters of shapes: n products, F features, C values of one attribute, K attributes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from tqdm import tqdm

from cma_clip_core.arrays import Bools, Floats, Integers
from cma_clip_core.catalog.examples import read_pixels, stream_side
from cma_clip_core.catalog.label_mentions import SpokenFinder
from cma_clip_core.catalog.splits import SIDES, Side
from cma_clip_core.errors import NothingToLearnError
from cma_clip_core.evaluation.calibration import fit_temperature, log_loss
from cma_clip_core.evaluation.evaluate import Columns, label_columns
from cma_clip_core.evaluation.linear_models import UNSEEN, LinearModel, fit_linear, term_matrix
from cma_clip_core.evaluation.predictions import Predictions
from cma_clip_core.evaluation.tfidf_baseline import INVERSE_REGULARISATIONS, fit_bag
from cma_clip_core.inputs.batches import LabelEncoder
from cma_clip_core.inputs.compute import Compute
from cma_clip_core.inputs.devices import move_to, precision
from cma_clip_core.inputs.learning_problem import LearningProblem
from cma_clip_core.model.bag_of_words import BagOfWords
from cma_clip_core.model.ensemble import PICTURES, WORDS
from cma_clip_core.model.picture_features import PictureFeatures, encode_present
from cma_clip_core.model.tokenizer import compose

log = logging.getLogger(__name__)

MOST_CROSS_FITTED: Final = (
    5000  # products on the training and validation sides; beyond, five times the fits would cost minutes
)
MOST_LEARNT_FROM: Final = 50_000  # products of all sides; bounds the memory and the time of the fits
FOLDS: Final = 5
# C of the regression on standardised picture features: there are more features than products in a small shop.
_PICTURE_REGULARISATIONS: Final = (0.001, 0.01)
_BATCH: Final = 64  # pictures in a pass of the network


@dataclass(slots=True)
class Member:
    """A fitted linear member.

    Attributes:
        models: the regression of each attribute that can be learnt.
        judged: its predictions by attribute, for products that the regressions of that prediction were not fitted to.
        bag: the vocabulary, if it is the bag of words.
        network: the network, if it reads pictures.
        mean: [F] and `scale` [F] standardise the picture features.
        scale: see `mean`.
    """

    name: str
    models: dict[str, LinearModel]
    judged: dict[str, Predictions]
    bag: BagOfWords | None = None
    network: PictureFeatures | None = None
    mean: Floats | None = None
    scale: Floats | None = None


@dataclass(slots=True)
class _Products:
    """The products that members are fitted to and judged on, in one order."""

    columns: Columns
    texts: list[str]
    features: Floats | None  # [n, F], of the pictures
    image_present: Bools
    fits: list[tuple[Bools, Bools]]  # for each fold, the products [n] to fit to, and those to predict
    final: Bools  # [n], the products that the published regressions are fitted to


def is_cross_fitted(problem: LearningProblem) -> bool:
    """Return whether the products are so few that the training and validation sides are cross-fitted."""
    return problem.index.count("train") + problem.index.count("validation") <= MOST_CROSS_FITTED


def fit_members(
    problem: LearningProblem,
    compute: Compute,
    *,
    words: bool,
    network: PictureFeatures | None,
    not_learnt: Sequence[str],
) -> tuple[list[Member], dict[str, str]]:
    """Fit the linear members.

    Args:
        problem: the configuration, the classes and the examples.
        compute: the device, and whether to show progress.
        words: fit the bag of words.
        network: the pretrained network whose features are read; None: do not fit picture features.
        not_learnt: attributes to leave out.

    Returns:
        The members, and the reason for each one that has nothing to learn from.
    """
    if network is not None:
        network = move_to(network, compute.device)
    products = _read(problem, network, compute)
    members, left_out = [], {}
    if words:
        try:
            bag = fit_bag(products.texts, problem.config.text)
            features = term_matrix([bag.encode(text) for text in products.texts], len(bag))
            known = np.diff(features.indptr) > 0
            member = Member(WORDS, {}, {}, bag=bag)
            members.append(
                _fit(
                    member,
                    features,
                    known,
                    (1, 0),
                    INVERSE_REGULARISATIONS,
                    problem,
                    products,
                    compute,
                    not_learnt,
                )
            )
        except NothingToLearnError as error:
            left_out[WORDS] = str(error)
    if network is not None and products.features is not None:
        own = products.final & products.image_present
        if own.sum() < 2:
            left_out[PICTURES] = "fewer than two products have a picture"
        else:
            mean = products.features[own].mean(axis=0)
            scale = products.features[own].std(axis=0) + np.float32(1e-6)
            standardised = np.where(products.image_present[:, None], (products.features - mean) / scale, np.float32(0))
            member = Member(PICTURES, {}, {}, network=network, mean=mean, scale=scale)
            members.append(
                _fit(
                    member, standardised, products.image_present, (0, 1), _PICTURE_REGULARISATIONS, problem, products, compute,
                    not_learnt,
                )
            )  # fmt: skip
    return members, left_out


def _read(problem: LearningProblem, network: PictureFeatures | None, compute: Compute) -> _Products:
    index = problem.index.sample(MOST_LEARNT_FROM) if len(problem.index.row) > MOST_LEARNT_FROM else problem.index
    encoder, spoken = LabelEncoder(problem.layout), SpokenFinder(problem.taxonomy)
    texts: list[str] = []
    parts: list[Columns] = []
    features: list[Floats] = []
    sides: tuple[Side, ...] = ("train", "validation")
    total = sum(index.count(side) for side in sides)
    with tqdm(
        total=total, desc="picture features", unit="product", disable=not compute.progress or network is None
    ) as bar:
        for side in sides:
            for examples, families in stream_side(index, side):
                fields = (examples.column(name).to_pylist() for name in ("title", "brand", "description"))
                texts += [
                    compose(title, brand, words, problem.config.text)
                    for title, brand, words in zip(*fields, strict=True)
                ]
                columns = label_columns(examples, families, encoder, spoken)
                columns["image_present"] = np.asarray(examples.column("image").is_valid())
                columns["side"] = np.full(len(families), SIDES.index(side))
                if network is not None:
                    features += _features(network, *read_pixels(examples, problem.config.picture), compute, bar)
                parts.append(columns)
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    training = columns["side"] == SIDES.index("train")
    if is_cross_fitted(problem):
        fold = _folds(columns["families"])
        fits = [(fold != number, fold == number) for number in range(FOLDS)]
        final = np.ones(len(texts), np.bool_)
    else:
        fits, final = [(training, ~training)], training
    return _Products(
        columns, texts, np.concatenate(features) if features else None, columns["image_present"], fits, final
    )


@torch.inference_mode()
def _features(network: PictureFeatures, pixels: Any, present: Bools, compute: Compute, bar: Any) -> list[Floats]:
    parts = []
    for start in range(0, len(pixels), _BATCH):
        rows = slice(start, start + _BATCH)
        with precision(compute.device):
            batch, exists = torch.tensor(pixels[rows]), torch.from_numpy(present[rows])
            parts.append(
                encode_present(network, batch.to(compute.device), exists.to(compute.device)).float().cpu().numpy()
            )
        bar.update(len(parts[-1]))
    return parts


def _folds(families: Integers) -> Integers:
    """Return the fold [n] of each product: whole families, dealt in a fixed random order, the largest first."""
    names, counts = np.unique(families, return_counts=True)
    order = np.random.default_rng(0).permutation(len(names))
    order = order[np.argsort(-counts[order], kind="stable")]
    sizes = np.zeros(FOLDS, np.int64)
    fold_of = np.zeros(len(names), np.int64)
    for family in order:
        fold_of[family] = sizes.argmin()
        sizes[fold_of[family]] += counts[family]
    return np.asarray(fold_of[np.searchsorted(names, families)])


def _fit(
    member: Member,
    features: Any,
    present: Bools,
    modality: tuple[int, int],
    regularisations: Sequence[float],
    problem: LearningProblem,
    products: _Products,
    compute: Compute,
    not_learnt: Sequence[str],
) -> Member:
    """Fit the regressions of a member, with the C of each attribute that has the lowest loss on products not fitted to."""
    layout, columns = problem.layout, products.columns
    lambdas = present[:, None] * np.array(modality, np.float32)
    learnt = [(k, a) for k, a in enumerate(layout.attributes) if a.name not in not_learnt]
    for k, attribute in tqdm(learnt, desc=member.name, unit="attribute", disable=not compute.progress):
        targets = columns["targets"][:, layout.slices[k]]
        usable = columns["labelled"][:, k] & present
        if not (usable & products.final).any():
            continue
        judged = columns["given"][:, k] & np.any([predicted for _, predicted in products.fits], axis=0)
        best = np.inf
        for c in regularisations:
            logits = np.full(targets.shape, UNSEEN, np.float32)
            for fitted, predicted in products.fits:
                if (rows := usable & fitted).any():
                    model = fit_linear(features[rows], targets[rows], attribute.multi_valued, c)
                    logits[predicted] = model.logits(features[predicted])
            predictions = Predictions(
                attribute, columns["products"][judged], columns["families"][judged], logits[judged], targets[judged],
                columns["named"][:, layout.slices[k]][judged], lambdas[judged],
            )  # fmt: skip
            listed = predictions.with_target()
            loss = log_loss(listed, fit_temperature(listed)) if len(listed) else 0.0
            if loss < best:
                best, chosen = loss, c
                member.judged[attribute.name] = predictions
        rows = usable & products.final
        if len(products.fits) > 1 or chosen != c:  # otherwise the last regression is the wanted one
            model = fit_linear(features[rows], targets[rows], attribute.multi_valued, chosen)
        member.models[attribute.name] = model
    return member
