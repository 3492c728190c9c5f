"""Choice, for each attribute, of the members of the ensemble that answer, and of their weights.

The candidates are each linear member alone, both linear members together, CMA-CLIP alone, and CMA-CLIP with the linear
members' answer added. They are compared by the log loss of their calibrated answers, on products that no member was
fitted to. A candidate with more parts must be better by more than a standard error, or the simpler one stays: the bag
of words first. So the choice follows no luck of the few products that pass a threshold, which are then promised.
It must also accept at least as many right values under the same promise.

The logits of several members are divided by their own temperatures before they are weighted, so equal weights mean an
equal say.

Letters of shapes: n products with a value, C values of one attribute.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from cma_clip_core.arrays import Bools, Doubles
from cma_clip_core.config import SelectionConfig
from cma_clip_core.evaluation.calibration import fit_temperature, losses
from cma_clip_core.evaluation.candidates import candidates
from cma_clip_core.evaluation.choose_thresholds import choose_threshold
from cma_clip_core.evaluation.predictions import Predictions
from cma_clip_core.model.ensemble import CMA_CLIP, GUESS, MEMBERS, PICTURES, UNLIKELY, WORDS
from cma_clip_core.model_documents import AttributeMethod, CandidateScore, Threshold

WEIGHTS: Final = (0.25, 0.5, 1.0, 2.0)  # of the members that are added to another one


@dataclass(slots=True)
class Choice:
    """The answer to one attribute."""

    method: AttributeMethod
    coefficients: dict[str, float]  # of each chosen member: the factor of its logits
    predictions: Predictions  # of the chosen members together, on products that they were not fitted to
    threshold: Threshold


@dataclass(slots=True)
class _Candidate:
    weights: dict[str, float]  # by member
    coefficients: dict[str, float]  # by member
    predictions: Predictions
    temperature: float

    def losses_on(self, products: Bools) -> Doubles:
        return losses(self.predictions.take(products), self.temperature)


def choose_method(
    linear: Mapping[str, Predictions], cma: Predictions | None, selection: SelectionConfig, *, cross_validated: bool
) -> Choice:
    """Choose the members that answer an attribute.

    Args:
        linear: predictions of the linear members, by name, all for the same products in the same order.
        cma: predictions of CMA-CLIP on the validation products; None: it is no candidate.
        selection: the settings of the thresholds.
        cross_validated: whether `linear` covers the training side too, by cross-fitting.

    Raises:
        ValueError: there is no candidate.
    """
    scores: dict[str, CandidateScore] = {}
    # Where a member sees nothing, it has no say: these products do not tell how confident it is.
    temperatures = {name: fit_temperature(p.take(p.lambdas.sum(axis=1) > 0)) for name, p in linear.items()}
    chosen = _choose_linear(linear, temperatures, scores, selection) if linear else None
    if cma is not None:
        temperatures[CMA_CLIP] = fit_temperature(cma)
        alone = _candidate({CMA_CLIP: cma}, {CMA_CLIP: 1.0}, temperatures)
        scores[_name(alone)] = _score(alone, selection)
        chosen = alone if chosen is None else _choose_with_cma(linear, alone, chosen, temperatures, scores, selection)
    if chosen is None:
        raise ValueError("no member has predictions")
    cross_validated = cross_validated and CMA_CLIP not in chosen.weights
    method = AttributeMethod(
        weights=chosen.weights, cross_validated=cross_validated, products=len(chosen.predictions), candidates=scores
    )
    threshold = choose_threshold(chosen.predictions, chosen.temperature, selection)
    return Choice(method, chosen.coefficients, chosen.predictions, threshold)


def pool(
    parts: Mapping[str, Predictions], weights: Mapping[str, float], coefficients: Mapping[str, float]
) -> Predictions:
    """Return the predictions of some members together, as `Ensemble.forward` computes them.

    Args:
        parts: predictions of the members, for the same products in the same order.
        weights: the weight of each member that has a say.
        coefficients: the factor of each of these members' logits.
    """
    first = next(iter(parts.values()))
    sees = {name: parts[name].lambdas.sum(axis=1) > 0 for name in weights}
    nothing = ~np.any(list(sees.values()), axis=0)
    logits, lambdas = np.zeros_like(first.logits), np.zeros_like(first.lambdas)
    shares = np.zeros(len(first), np.float32)
    for name, weight in weights.items():
        counts = np.where(nothing, np.float32(GUESS), sees[name].astype(np.float32))
        logits += np.float32(coefficients[name]) * parts[name].logits * counts[:, None]
        lambdas += np.float32(weight) * parts[name].lambdas * sees[name][:, None]
        shares += np.float32(weight) * sees[name]
    if first.attribute.multi_valued:
        logits += np.float32(UNLIKELY) * nothing[:, None]
    lambdas = (lambdas / np.maximum(shares, np.float32(1e-9))[:, None]).astype(np.float32)
    return replace(first, logits=logits, lambdas=lambdas)


def _candidate(
    parts: Mapping[str, Predictions], weights: Mapping[str, float], temperatures: Mapping[str, float]
) -> _Candidate:
    ordered = {name: weights[name] for name in MEMBERS if name in weights}
    # Alone, a member keeps its own logits.
    coefficients = {name: w if len(ordered) == 1 else w / temperatures[name] for name, w in ordered.items()}
    predictions = pool(parts, ordered, coefficients)
    return _Candidate(ordered, coefficients, predictions, fit_temperature(predictions))


def _choose_linear(
    linear: Mapping[str, Predictions],
    temperatures: Mapping[str, float],
    scores: dict[str, CandidateScore],
    selection: SelectionConfig,
) -> _Candidate:
    alone = [_candidate(linear, {name: 1.0}, temperatures) for name in (WORDS, PICTURES) if name in linear]
    together = []
    if len(alone) > 1:
        grid = [{WORDS: 1.0, PICTURES: weight} for weight in WEIGHTS]
        together = [_best([_candidate(linear, weights, temperatures) for weights in grid])]
    for each in (*alone, *together):
        scores[_name(each)] = _score(each, selection)
    wanted = scores[_name(alone[0])].recall or 0.0
    challengers = [
        each
        for each in (*alone[1:], *together)
        if _is_better(each, alone[0]) and (scores[_name(each)].recall or 0.0) >= wanted
    ]
    return _best(challengers) if challengers else alone[0]


def _choose_with_cma(
    linear: Mapping[str, Predictions],
    cma: _Candidate,
    simple: _Candidate,
    temperatures: Mapping[str, float],
    scores: dict[str, CandidateScore],
    selection: SelectionConfig,
) -> _Candidate:
    """Return the better of the chosen linear members `simple` and the best candidate with CMA-CLIP."""
    common, validation = _aligned(cma.predictions, simple.predictions)
    parts = {name: p.take(validation) for name, p in linear.items()} | {CMA_CLIP: common}
    together = _best(
        [
            _candidate(parts, {CMA_CLIP: 1.0} | {name: weight * w for name, w in simple.weights.items()}, temperatures)
            for weight in WEIGHTS
        ]
    )
    scores[_name(together)] = _score(together, selection)
    restricted = replace(simple, predictions=simple.predictions.take(validation))
    alone = replace(cma, predictions=common)
    best = together if _is_better(together, alone) else alone
    kept, wanted = scores[_name(best)].recall or 0.0, scores[_name(simple)].recall or 0.0
    if not _is_better(best, restricted) or kept < wanted:
        return simple
    return cma if best is alone else best


def _aligned(cma: Predictions, others: Predictions) -> tuple[Predictions, Bools]:
    """Return CMA-CLIP's predictions for the products that `others` cover too, in their order, and these among `others`."""
    row_of = {product: row for row, product in enumerate(cma.products.tolist())}
    rows = np.array([row_of.get(product, -1) for product in others.products.tolist()], dtype=np.int64)
    return cma.take(rows[rows >= 0]), rows >= 0


def _best(several: list[_Candidate]) -> _Candidate:
    """Return the candidate with the lowest loss, the first among equals."""
    return min(several, key=lambda each: _mean_loss(each))


def _mean_loss(candidate: _Candidate) -> float:
    listed = candidate.predictions.has_target
    return float(candidate.losses_on(listed).mean()) if listed.any() else 0.0


def _is_better(one: _Candidate, other: _Candidate) -> bool:
    """Return whether the loss of `one` is lower than that of `other` by more than a standard error, family by family."""
    listed = one.predictions.has_target
    gain = other.losses_on(listed) - one.losses_on(listed)
    if not len(gain) or one.weights == other.weights:
        return False
    _, family = np.unique(one.predictions.families[listed], return_inverse=True)
    spread = np.bincount(family, gain - gain.mean())
    return bool(gain.mean() > np.sqrt(np.sum(spread**2)) / len(gain))


def _name(candidate: _Candidate) -> str:
    return AttributeMethod(weights=candidate.weights, products=0).name


def _score(candidate: _Candidate, selection: SelectionConfig) -> CandidateScore:
    threshold = choose_threshold(candidate.predictions, candidate.temperature, selection)
    proposed = candidates(candidate.predictions, candidate.temperature)
    right = proposed.right & proposed.accepted(threshold.limits(candidate.predictions.attribute))
    return CandidateScore(
        weights=candidate.weights,
        log_loss=_mean_loss(candidate),
        recall=float(right.sum()) / proposed.positives if proposed.positives else None,
        products=len(candidate.predictions),
    )
