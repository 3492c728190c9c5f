"""Judge the methods of an experiment on the same products, with intervals from the same bootstrap draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from cma_clip_core.evaluation.bootstrap import Drawn, RecallDraws, difference, draw_recalls, with_intervals
from cma_clip_core.evaluation.calibration import fit_temperature
from cma_clip_core.evaluation.choose_thresholds import choose_threshold
from cma_clip_core.evaluation.metrics import judge_all, method_metrics
from cma_clip_core.evaluation.predictions import Predictions
from cma_clip_core.model.methods import LABELS
from cma_clip_core.model_documents import Difference, Threshold
from jobs.training.experiment.results import NOISES, NOISY, SHARES, UNTRAINED, WHOLE, Judged
from jobs.training.experiment.setting import MethodOutcome, Setting, Trial, by_method, noisy_name


def against_whole(
    methods: dict[str, list[Trial]], draws: dict[str, RecallDraws], mean: Callable[[RecallDraws], Drawn]
) -> dict[str, Difference | None]:
    """Return the mean recall of CMA-CLIP minus that of each other method; None if no seed was run for both.

    All methods see the same draws of products. For each seed, each draw gives a difference of the two recalls. The interval
    is over the differences of all seeds together, so that it covers the chance of the products and of the training's seed.
    The point estimate is the mean of the measured differences. A method without seeds is compared with each seed of
    CMA-CLIP.
    """
    differences: dict[str, Difference | None] = {}
    for method in methods if WHOLE in methods else ():
        if method == WHOLE:
            continue
        others = {trial.seed_offset: trial for trial in methods[method]}
        pairs = [(whole, others.get(0 if method in UNTRAINED else whole.seed_offset)) for whole in methods[WHOLE]]
        both = [(mean(draws[whole.name]), mean(draws[other.name])) for whole, other in pairs if other is not None]
        differences[method] = difference(*(Drawn.pool(side) for side in zip(*both, strict=True))) if both else None
    return differences


def judge(
    setting: Setting, outcomes: dict[Trial, MethodOutcome], suffix: str
) -> tuple[Judged, dict[Trial, dict[str, Threshold]], dict[Trial, dict[str, Predictions]]]:
    """Judge the methods on the kind of text that `suffix` names (`Setting.readings`).

    Returns:
        The metrics, and each trial's thresholds and predictions on test.
    """
    fields = setting.readings[suffix].fields
    wanted, selection = setting.attributes, setting.problem.config.selection
    thresholds, tests = {}, {}
    for trial, outcome in outcomes.items():
        validation = outcome.read_predictions(f"validation{suffix}", setting.compared)
        thresholds[trial] = {a: choose_threshold(p := validation[a], fit_temperature(p), selection) for a in wanted}
        tests[trial] = outcome.read_predictions(f"test{suffix}", setting.compared)
    draws = draw_recalls({t.name: p for t, p in tests.items()}, {t.name: s for t, s in thresholds.items()}, fields)
    metrics = {
        t: with_intervals(method_metrics(LABELS[t.method], judge_all(tests[t], thresholds[t], fields)), draws[t.name])
        for t in outcomes
    }
    methods = by_method(outcomes)
    judged = Judged(
        text_fields=fields,
        methods=tuple(metrics[trials[0]] for trials in methods.values()),
        seeds={m: tuple(metrics[t] for t in trials) for m, trials in methods.items() if len(trials) > 1},
        against_whole=against_whole(methods, draws, RecallDraws.mean_all),
        against_whole_silent=against_whole(methods, draws, RecallDraws.mean_silent),
    )
    return judged, thresholds, tests


class UnderNoise(NamedTuple):
    """The fields of `Results` on perturbed inputs, under the same names."""

    noise: dict[str, dict[str, list[float]]]
    against_whole_noise: dict[str, dict[str, list[Difference | None]]]
    noise_by_attribute: dict[str, dict[str, list[float]]]


def judge_noise(
    setting: Setting,
    outcomes: dict[Trial, MethodOutcome],
    thresholds: dict[Trial, dict[str, Threshold]],
    tests: dict[Trial, dict[str, Predictions]],
    fields: Sequence[str],
) -> UnderNoise:
    """Judge the methods in NOISY on perturbed inputs, at each of SHARES. Memory holds the predictions of one share at a time."""
    trials = [trial for trial in outcomes if trial.method in NOISY]
    methods = by_method(trials)
    result = UnderNoise({name: {} for name in NOISES}, {name: {} for name in NOISES}, {name: {} for name in NOISES})
    plain = {t: judge_all(tests[t], thresholds[t], fields) for t in trials}
    for perturbation in NOISES:
        judged = {t: [plain[t]] for t in trials}
        for share in SHARES[1:]:
            sides = {t: outcomes[t].read_predictions(noisy_name(perturbation, share), setting.compared) for t in trials}
            for t in trials:
                judged[t].append(judge_all(sides[t], thresholds[t], fields))
            if WHOLE in methods and len(methods) > 1:
                draws = draw_recalls(
                    {t.name: p for t, p in sides.items()}, {t.name: thresholds[t] for t in trials}, fields, silent=False
                )
                for method, margin in against_whole(methods, draws, RecallDraws.mean_all).items():
                    result.against_whole_noise[perturbation].setdefault(method, []).append(margin)
        for method, seeds in methods.items():
            means = [[method_metrics(method, j).mean_recall_at_90 or 0.0 for j in judged[t]] for t in seeds]
            result.noise[perturbation][LABELS[method]] = np.mean(means, axis=0).tolist()
        for a in setting.attributes if WHOLE in methods else ():
            recalls = [[j[a].recall_at_90 or 0.0 for j in judged[t]] for t in methods[WHOLE]]
            result.noise_by_attribute[perturbation][a] = np.mean(recalls, axis=0).tolist()
    return result
