"""Judge the methods of an experiment on the same products, with intervals of the same draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cma_clip_core.model_documents import Difference, Threshold
from jobs.training.experiment.results import NOISES, NOISY, SHARES, UNTRAINED, WHOLE, Judged
from jobs.training.experiment.setting import MethodOutcome, Setting, Trial, by_method, noisy_name

if TYPE_CHECKING:
    from cma_clip_core.evaluation.bootstrap import Drawn, RecallDraws
    from cma_clip_core.evaluation.predictions import Predictions


def against_whole(
    methods: dict[str, list[Trial]], draws: dict[str, RecallDraws], mean: Callable[[RecallDraws], Drawn]
) -> dict[str, Difference | None]:
    """Return CMA-CLIP less each other method, in mean recall.

    The draws of products are the same for all. Seed by seed, CMA-CLIP's recall in a draw less the method's is a difference;
    the interval is of those of all seeds together, so that it holds the chance of the products and that of one training's
    seed; before it stands the mean of what was measured with each. What is the same with every seed is taken from each of
    CMA-CLIP's. None: no seed was run of both.
    """
    from cma_clip_core.evaluation.bootstrap import Drawn, difference

    found: dict[str, Difference | None] = {}
    for method in methods if WHOLE in methods else ():
        if method == WHOLE:
            continue
        others = {trial.more: trial for trial in methods[method]}
        pairs = [(whole, others.get(0 if method in UNTRAINED else whole.more)) for whole in methods[WHOLE]]
        both = [(mean(draws[whole.name]), mean(draws[other.name])) for whole, other in pairs if other is not None]
        found[method] = difference(*(Drawn.pool(side) for side in zip(*both, strict=True))) if both else None
    return found


def judge(
    setting: Setting, found: dict[Trial, MethodOutcome], end: str
) -> tuple[Judged, dict[Trial, dict[str, Threshold]], dict[Trial, dict[str, Predictions]]]:
    """Judge the methods on one kind of text; return that, and each one's thresholds and predictions on test."""
    from cma_clip_core.evaluation.bootstrap import RecallDraws, draw_recalls, with_intervals
    from cma_clip_core.evaluation.calibration import fit_temperature
    from cma_clip_core.evaluation.choose_thresholds import choose_threshold
    from cma_clip_core.evaluation.metrics import judge_all, method_metrics
    from cma_clip_core.model.methods import LABELS

    fields = setting.readings[end].fields
    wanted, selection = setting.attributes, setting.problem.config.selection
    thresholds, tests = {}, {}
    for trial, f in found.items():
        validation = f.said(f"validation{end}", setting.compared)
        thresholds[trial] = {a: choose_threshold(p := validation[a], fit_temperature(p), selection) for a in wanted}
        tests[trial] = f.said(f"test{end}", setting.compared)
    draws = draw_recalls({t.name: p for t, p in tests.items()}, {t.name: s for t, s in thresholds.items()}, fields)
    metrics = {
        t: with_intervals(method_metrics(LABELS[t.method], judge_all(tests[t], thresholds[t], fields)), draws[t.name])
        for t in found
    }
    methods = by_method(found)
    judged = Judged(
        text_fields=fields,
        methods=tuple(metrics[trials[0]] for trials in methods.values()),
        seeds={m: tuple(metrics[t] for t in trials) for m, trials in methods.items() if len(trials) > 1},
        against_whole=against_whole(methods, draws, RecallDraws.mean_all),
        against_whole_silent=against_whole(methods, draws, RecallDraws.mean_silent),
    )
    return judged, thresholds, tests


class UnderNoise(NamedTuple):
    """What `Results` has under the same names."""

    noise: dict[str, dict[str, list[float]]]
    against_whole_noise: dict[str, dict[str, list[Difference | None]]]
    noise_by_attribute: dict[str, dict[str, list[float]]]


def judge_noise(
    setting: Setting,
    found: dict[Trial, MethodOutcome],
    thresholds: dict[Trial, dict[str, Threshold]],
    tests: dict[Trial, dict[str, Predictions]],
    fields: Sequence[str],
) -> UnderNoise:
    """Judge the methods that noise was tried on, at each of SHARES; what they said of one is read once, and then forgotten."""
    from cma_clip_core.evaluation.bootstrap import RecallDraws, draw_recalls
    from cma_clip_core.evaluation.metrics import judge_all, method_metrics
    from cma_clip_core.model.methods import LABELS

    trials = [trial for trial in found if trial.method in NOISY]
    methods = by_method(trials)
    result = UnderNoise({what: {} for what in NOISES}, {what: {} for what in NOISES}, {what: {} for what in NOISES})
    plain = {t: judge_all(tests[t], thresholds[t], fields) for t in trials}
    for what in NOISES:
        judged = {t: [plain[t]] for t in trials}
        for share in SHARES[1:]:
            sides = {t: found[t].said(noisy_name(what, share), setting.compared) for t in trials}
            for t in trials:
                judged[t].append(judge_all(sides[t], thresholds[t], fields))
            if WHOLE in methods and len(methods) > 1:
                draws = draw_recalls(
                    {t.name: p for t, p in sides.items()}, {t.name: thresholds[t] for t in trials}, fields, silent=False
                )
                for method, difference in against_whole(methods, draws, RecallDraws.mean_all).items():
                    result.against_whole_noise[what].setdefault(method, []).append(difference)
        for method, seeds in methods.items():
            means = [[method_metrics(method, j).mean_recall_at_90 or 0.0 for j in judged[t]] for t in seeds]
            result.noise[what][LABELS[method]] = np.mean(means, axis=0).tolist()
        for a in setting.attributes if WHOLE in methods else ():
            recalls = [[j[a].recall_at_90 or 0.0 for j in judged[t]] for t in methods[WHOLE]]
            result.noise_by_attribute[what][a] = np.mean(recalls, axis=0).tolist()
    return result
