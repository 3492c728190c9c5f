"""Coverage of the candidates at the promised precision, beside the bag of words alone, on a labelled set.

    python -m benchmarks.small_shops LAKE labelled/ds=D/set=S --taxonomy FILE [--model-config sample] [--splits 5]

The bag of words alone is the baseline of `experiment`: fitted to the training side, thresholds chosen on the validation side. The
candidates are those of `train`. Both are judged on the test side. With `--splits N`, the families are dealt to other sides N
times, in the shares of the configuration, because a small shop's test side is small. CMA-CLIP is trained only if `--candidates`
names it.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from cma_clip_core.catalog.examples import ExampleIndex, read_index
from cma_clip_core.catalog.splits import SIDES
from cma_clip_core.config import SelectionConfig, load_config
from cma_clip_core.evaluation.calibration import fit_temperature
from cma_clip_core.evaluation.choose_thresholds import choose_threshold
from cma_clip_core.evaluation.learnable import find_unlearnable
from cma_clip_core.evaluation.metrics import judge_all
from cma_clip_core.evaluation.tfidf_baseline import fit_text_baseline
from cma_clip_core.inputs.compute import Compute
from cma_clip_core.inputs.learning_problem import LearningProblem
from cma_clip_core.model_documents import AttributeMetrics
from cma_clip_core.training.train_candidates import train_candidates
from jobs.lake.layout import LABELLED_TABLE
from schemas.taxonomy import Taxonomy, load_taxonomy


def dealt(index: ExampleIndex, selection: SelectionConfig, seed: int) -> ExampleIndex:
    """Return the index with its families on other sides; the seed 0 leaves them where they are."""
    if not seed:
        return index
    names, family = np.unique(index.family, return_inverse=True)
    drawn = np.random.default_rng(seed).random(len(names))
    side = np.full(len(names), SIDES.index("train"), np.int8)
    side[drawn < selection.validation_share] = SIDES.index("validation")
    side[drawn >= 1 - selection.test_share] = SIDES.index("test")
    return replace(index, side=side[family])


def with_target(taxonomy: Taxonomy, target: float) -> Taxonomy:
    """Return the taxonomy with one target precision for all attributes."""
    document = taxonomy.model_dump(mode="json")
    for attribute in document["attributes"]:
        attribute["target_precision"] = target
    return Taxonomy.model_validate(document)


def baseline(problem: LearningProblem, not_learnt: Mapping[str, str]) -> dict[str, AttributeMetrics]:
    """Return the metrics of the bag of words alone on the test side."""
    config, index = problem.config, problem.index
    fitted = fit_text_baseline(index, problem.layout, config.text, not_learnt=tuple(not_learnt), progress=False)
    validation = fitted.predict(index, "validation")
    thresholds = {name: choose_threshold(p, fit_temperature(p), config.selection) for name, p in validation.items()}
    return judge_all(fitted.predict(index, "test"), thresholds, config.text.fields)


def main() -> None:
    """Print a line for each split, target, attribute and method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lake", type=Path)
    parser.add_argument("labelled", help="folder of the labelled set, below the lake")
    parser.add_argument("--taxonomy", required=True)
    parser.add_argument("--model-config", default="sample")
    parser.add_argument("--splits", type=int, default=1)
    parser.add_argument("--targets", default="0.9,0.95")
    parser.add_argument("--candidates", default="bag-of-words,picture-features")
    arguments = parser.parse_args()
    config, taxonomy = load_config(arguments.model_config), load_taxonomy(arguments.taxonomy)
    whole = read_index(arguments.lake / arguments.labelled / LABELLED_TABLE, arguments.lake)
    compute = Compute(torch.device("cpu"), progress=False)
    print("split target method attribute products coverage precision recall answered-by")
    for seed in range(arguments.splits):
        index = dealt(whole, config.selection, seed)
        for target in map(float, arguments.targets.split(",")):
            problem = LearningProblem.build(config, with_target(taxonomy, target), index)
            not_learnt = find_unlearnable(index, problem.layout, config.selection.least_labels)
            trained = train_candidates(problem, compute, candidates=arguments.candidates.split(","))
            names = {a: m.name for a, m in trained.methods.attributes.items()} if trained.methods else {}
            judged = {"bag-of-words-alone": baseline(problem, not_learnt), "candidates": trained.metrics.test}
            for method, metrics in judged.items():
                for name, m in metrics.items():
                    if name not in not_learnt:
                        shares = " ".join("-" if s is None else f"{s:.3f}" for s in (m.coverage, m.precision, m.recall))
                        print(
                            seed,
                            target,
                            method,
                            name,
                            m.n,
                            shares,
                            names.get(name, "") if method == "candidates" else "",
                        )


if __name__ == "__main__":
    main()
