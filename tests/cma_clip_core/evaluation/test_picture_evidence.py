"""`pytest tests/cma_clip_core/evaluation/test_picture_evidence.py`"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cma_clip_core.evaluation import picture_evidence
from cma_clip_core.evaluation.candidates import candidates
from cma_clip_core.evaluation.evaluate import evaluate, evaluate_with_picture_alone
from cma_clip_core.evaluation.metrics import recall_at
from cma_clip_core.evaluation.picture_evidence import LEAST_PRODUCTS, WEIGHTS, choose_weight, pool, weights_of
from cma_clip_core.evaluation.predictions import Predictions
from cma_clip_core.model.class_layout import ClassLayout
from cma_clip_core.training.fit import fit
from tests.cma_clip_core import drawn
from tests.cma_clip_core.drawn import QUIET
from tests.cma_clip_core.scored import PATTERN, single

CPU = torch.device("cpu")


def scored(rng: np.random.Generator, sure: np.ndarray, right: np.ndarray) -> Predictions:
    return single(np.clip(sure + rng.normal(0, 0.01, len(sure)), 0.4, 0.999), right)


def two_witnesses(rng: np.random.Generator, n: int = 4000) -> tuple[Predictions, Predictions]:
    """A text that is as confident in its errors as elsewhere, and a picture that contradicts the errors."""
    right = rng.random(n) < 0.85
    fused = scored(rng, np.full(n, 0.97), right)
    alone = single(np.full(n, 0.7), right, values=np.where(right, 0, 1))
    return fused, replace(alone, targets=fused.targets)


def test_a_picture_that_tells_where_the_text_errs_is_heard() -> None:
    fused, alone = two_witnesses(np.random.default_rng(0))
    weight = choose_weight(fused, alone)
    assert weight == WEIGHTS[-1]
    before, after = (recall_at(candidates(p), PATTERN.target_precision) for p in (fused, pool(fused, alone, weight)))
    assert before is not None
    assert after is not None
    assert before < 0.1
    assert after > 0.8


def test_a_picture_that_knows_nothing_is_not() -> None:
    """A picture's answer is just as confident, but its values are random."""
    rng = np.random.default_rng(1)
    n = 4000
    sure = rng.uniform(0.5, 0.99, n)
    fused = scored(rng, sure, rng.random(n) < sure)
    noise = rng.normal(0, 4, (n, 3)).astype(np.float32)
    assert choose_weight(fused, replace(fused, logits=noise)) == 0


def test_one_that_changes_nothing_costs_nothing() -> None:
    rng = np.random.default_rng(2)
    sure = rng.uniform(0.5, 0.99, 1000)
    fused = scored(rng, sure, rng.random(1000) < sure)
    assert choose_weight(fused, replace(fused, logits=np.zeros_like(fused.logits))) == WEIGHTS[-1]


def test_too_few_products_to_choose_by() -> None:
    fused, alone = two_witnesses(np.random.default_rng(0), LEAST_PRODUCTS - 1)
    assert choose_weight(fused, alone) == 0.0
    assert choose_weight(Predictions.empty(PATTERN), Predictions.empty(PATTERN)) == 0.0


def test_a_target_that_is_out_of_reach_is_no_reason_to_hear_it() -> None:
    rng = np.random.default_rng(3)
    fused = scored(rng, rng.uniform(0.4, 0.6, 1000), rng.random(1000) < 0.2)
    assert choose_weight(fused, replace(fused, logits=rng.normal(0, 1, (1000, 3)).astype(np.float32))) == 0.0


def test_what_the_fit_says_of_validation_is_what_the_model_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture_evidence, "LEAST_PRODUCTS", 20)
    index = drawn.index(drawn.write(tmp_path, drawn.examples(600)))
    config, layout = drawn.config(epochs=3, alone_loss=0.5), ClassLayout(drawn.taxonomy())
    model, fitted = fit(drawn.problem(config, index), QUIET)
    weights = weights_of(model, layout)
    assert set(weights) == set(drawn.taxonomy().names)
    assert max(weights.values()) > 0
    found = evaluate(model, drawn.problem(config, index), "validation", CPU)
    for name, p in found.items():
        np.testing.assert_allclose(p.logits, fitted.validation[name].logits, rtol=1e-4, atol=1e-5)
        assert p.products.tolist() == fitted.validation[name].products.tolist()


@pytest.mark.parametrize("alone_loss", [0.0, 0.5])
def test_the_picture_alone_says_nothing_without_a_head_or_a_picture(tmp_path: Path, alone_loss: float) -> None:
    index = drawn.index(drawn.write(tmp_path, drawn.examples(200)))
    config, layout = drawn.config(epochs=1, alone_loss=alone_loss), ClassLayout(drawn.taxonomy())
    model, _ = fit(drawn.problem(config, index), QUIET)
    assert bool(weights_of(model, layout)) is (alone_loss > 0)
    _, alone = evaluate_with_picture_alone(model, drawn.problem(config, index), "train", CPU)
    said = np.concatenate([np.abs(p.logits).sum(axis=1) for p in alone.values()])
    assert (said > 0).any() == (alone_loss > 0)
    assert (said == 0).any()  # some of the drawn products have no picture
