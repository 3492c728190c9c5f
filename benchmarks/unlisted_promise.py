"""Simulation of thresholds for a precision of 90 % when a share of the products has unlisted values.

    python -m benchmarks.unlisted_promise

The attribute has three values. The model's confidences are calibrated for products with listed values. For products with
unlisted values they are lower, and always wrong. *Before* means that thresholds are chosen only on validation products with a
listed value, and *after* on all of them. Both are judged on a test side that includes unlisted values. There are 60 draws of
3,000 validation and 6,000 test products.
"""

from __future__ import annotations

import numpy as np

from cma_clip_core.config import SelectionConfig
from cma_clip_core.evaluation.choose_thresholds import choose_threshold
from cma_clip_core.evaluation.metrics import judge
from cma_clip_core.evaluation.predictions import Predictions
from schemas.taxonomy import Attribute

DRAWS, VALIDATION, TEST = 60, 3_000, 6_000
ATTRIBUTE = Attribute.model_validate({"name": "a", "label": "A", "field": "a", "values": ["x", "y", "z"]})


def draw(rng: np.random.Generator, n: int, share: float) -> Predictions:
    """Return the predictions of `n` products, a share of which have an unlisted value."""
    outside = rng.random(n) < share
    confidence = np.where(outside, 0.38 + 0.6 * rng.beta(4, 2, n), 0.34 + 0.66 * rng.beta(6, 1, n)).clip(0.34, 0.9999)
    best, rows = rng.integers(3, size=n), np.arange(n)
    logits = np.repeat(np.log((1 - confidence) / 2)[:, None], 3, axis=1)
    logits[rows, best] = np.log(confidence)
    targets = np.zeros((n, 3), np.bool_)
    targets[rows, np.where(rng.random(n) < confidence, best, (best + 1) % 3)] = True
    targets[outside] = False
    return Predictions(
        ATTRIBUTE, rows.astype(str).astype(object), rows, logits.astype(np.float32), targets, targets.astype(np.uint8),
        np.full((n, 2), 0.5, np.float32),
    )  # fmt: skip


def main() -> None:
    """Simulate, and print a line for each share of unlisted values."""
    for share in (0.01, 0.05, 0.1, 0.2):
        kept: dict[str, list[bool]] = {"before": [], "after": []}
        coverage: dict[str, list[float]] = {"before": [], "after": []}
        for seed in range(DRAWS):
            rng = np.random.default_rng(seed)
            validation, test = draw(rng, VALIDATION, share), draw(rng, TEST, share)
            for name, seen in (("before", validation.with_target()), ("after", validation)):
                metrics = judge(test, choose_threshold(seen, 1.0, SelectionConfig()), [])
                coverage[name].append(metrics.coverage or 0.0)
                if metrics.precision is not None:
                    kept[name].append(metrics.precision >= ATTRIBUTE.target_precision)
        summary = (
            f"{n}: kept in {np.mean(kept[n]):.0%} of {len(kept[n])}, coverage {np.mean(coverage[n]):.3f}" for n in kept
        )
        print(f"{share:.0%} unlisted; {'; '.join(summary)}", flush=True)


if __name__ == "__main__":
    main()
