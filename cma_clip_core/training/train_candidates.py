"""Training of all candidate methods, and the choice of the best one for each attribute."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from torch import nn

from cma_clip_core.errors import DataError
from cma_clip_core.evaluation.learnable import find_unlearnable
from cma_clip_core.evaluation.predictions import Predictions
from cma_clip_core.inputs.compute import Compute
from cma_clip_core.inputs.learning_problem import LearningProblem
from cma_clip_core.model.ensemble import CMA_CLIP, MEMBERS, PICTURES, WORDS
from cma_clip_core.model.picture_features import PictureFeatures
from cma_clip_core.model_documents import AttributeMethod, Methods
from cma_clip_core.training.build_ensemble import build_ensemble
from cma_clip_core.training.choose_methods import Choice, choose_method
from cma_clip_core.training.fit import Trained, check_sides, fit, judge
from cma_clip_core.training.linear_members import Member, fit_members, is_cross_fitted
from cma_clip_core.training.loop import Fitted
from cma_clip_core.training.pretrained_pictures import MISSING, find_weights, load_picture_features

log = logging.getLogger(__name__)

_NOT_WANTED: Final = "it is not among the candidates that were asked for"


def train_candidates(
    problem: LearningProblem, compute: Compute, *, folder: Path | None = None, candidates: Sequence[str] = MEMBERS
) -> Trained:
    """Train the candidates, the cheapest first; keep the best for each attribute, and judge them together on the test side.

    Args:
        problem: the configuration, the classes and the examples.
        compute: the device, and the processes that train together; only the first one fits the linear members.
        folder: as for `fit`.
        candidates: names from `MEMBERS`. Several of them also answer together.

    Raises:
        DataError: a side of the split is empty, no attribute can be learnt, or no candidate has anything to learn from.
        ModelError: the weights of the picture features cannot be read.
        NothingToLearnError, DivergedError, CheckpointError, DeviceError: as `fit` raises them.
    """
    start = time.perf_counter()
    check_sides(problem.index)
    not_learnt = find_unlearnable(problem.index, problem.layout, problem.config.selection.least_labels)
    if len(not_learnt) == len(problem.layout.attributes):
        raise DataError(f"no attribute can be learnt: {'; '.join(f'{a}: {why}' for a, why in not_learnt.items())}")
    members, left_out = _fit_linear(problem, compute, candidates, not_learnt)
    linear_seconds = time.perf_counter() - start
    _log_early(members, problem, linear_seconds)
    cma: nn.Module | None = None
    fitted = Fitted({}, not_learnt=not_learnt)
    if CMA_CLIP in candidates:
        cma, fitted = fit(problem, compute, folder=folder)
    elif not members:
        raise DataError(f"no candidate has anything to learn from: {_words(left_out)}")
    fitted.judging_seconds += linear_seconds
    choices = _choose(members, fitted, problem)
    model = build_ensemble(problem.layout, members, cma, choices)
    predictions = {
        a.name: choices[a.name].predictions if a.name in choices else Predictions.empty(a)
        for a in problem.layout.attributes
    }
    methods = Methods(
        attributes={
            a.name: choices[a.name].method
            if a.name in choices
            else AttributeMethod(weights={CMA_CLIP: 1.0} if cma is not None else {}, products=0)
            for a in problem.layout.attributes
        },
        left_out=left_out,
    )
    for name, method in methods.attributes.items():
        log.info("%s is answered by %s", name, method.name)
    return judge(model.to(compute.device), fitted, problem, compute, predictions, methods)


def _fit_linear(
    problem: LearningProblem, compute: Compute, candidates: Sequence[str], not_learnt: dict[str, str]
) -> tuple[list[Member], dict[str, str]]:
    config = problem.config
    reads = {"image"} if config.method == "clip" else set(config.fusion.modalities)
    left_out = {name: _NOT_WANTED for name in MEMBERS if name not in candidates}
    for name, modality in ((WORDS, "text"), (PICTURES, "image")):
        if name in candidates and modality not in reads:
            left_out[name] = f"the configuration {config.name!r} reads no {modality}"
    network: PictureFeatures | None = None
    if PICTURES not in left_out:
        if (weights := find_weights()) is None:
            left_out[PICTURES] = MISSING
        else:
            network = load_picture_features(weights)
    members: list[Member] = []
    if WORDS not in left_out or network is not None:
        with compute.world.with_threads_of_all():
            members, empty = fit_members(
                problem, compute, words=WORDS not in left_out, network=network, not_learnt=tuple(not_learnt)
            )
        left_out |= empty
    for name, why in left_out.items():
        log.info("the candidate %s is left out: %s", name, why)
    return members, left_out


def _log_early(members: Sequence[Member], problem: LearningProblem, seconds: float) -> None:
    """Log what the linear members reach, before CMA-CLIP is trained."""
    for name, choice in _choose(members, Fitted({}), problem).items():
        for candidate, score in choice.method.candidates.items():
            log.info(
                "%s: %s accepts %.1f %% of the listed values rightly at a promised precision of %.2f (%d products%s)",
                name, candidate, 100 * (score.recall or 0), choice.threshold.target_precision, score.products,
                ", cross-fitted" if choice.method.cross_validated else " of the validation side",
            )  # fmt: skip
    if members:
        log.info("the linear candidates took %.0f s", seconds)


def _choose(members: Sequence[Member], fitted: Fitted, problem: LearningProblem) -> dict[str, Choice]:
    choices = {}
    for attribute in problem.layout.attributes:
        name = attribute.name
        linear = {member.name: member.judged[name] for member in members if name in member.judged}
        cma = None if name in fitted.not_learnt else fitted.validation.get(name)
        if linear or cma is not None:
            choices[name] = choose_method(
                linear, cma, problem.config.selection, cross_validated=is_cross_fitted(problem)
            )
    return choices


def _words(reasons: dict[str, str]) -> str:
    return "; ".join(f"{name}: {why}" for name, why in reasons.items())
