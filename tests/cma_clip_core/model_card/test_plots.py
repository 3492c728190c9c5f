"""`pytest tests/cma_clip_core/model_card/test_plots.py`"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cma_clip_core.config import SelectionConfig
from cma_clip_core.evaluation.calibration import fit_temperature
from cma_clip_core.evaluation.candidates import candidates
from cma_clip_core.evaluation.choose_thresholds import choose_threshold
from cma_clip_core.evaluation.metrics import judge_all
from cma_clip_core.evaluation.predictions import Predictions
from cma_clip_core.model_card import plots
from cma_clip_core.model_documents import Threshold
from schemas.taxonomy import load_taxonomy
from tests.cma_clip_core.scored import marks, single

ATTRIBUTES = load_taxonomy("fashion").attributes[:5]  # more than one row of panels


def drawn_side(n: int = 1500) -> dict[str, Predictions]:
    """Attributes of all difficulties, too sure of itself; the last has no labels."""
    rng = np.random.default_rng(0)
    found = {}
    for at, attribute in enumerate(ATTRIBUTES):
        confidence = np.clip(1 / (1 + np.exp(-rng.normal(0.5 + 0.4 * at, 1.5, n))), 0.35, 0.995)
        right = rng.random(n) < confidence
        found[attribute.name] = single(
            confidence, right, rng.integers(0, len(attribute.values), n), attribute=attribute
        )
        found[attribute.name].logits *= 1.7
        image = rng.beta(1 + at, 4, n)
        found[attribute.name].lambdas = np.stack([1 - image, image], axis=1).astype(np.float32)
    found[ATTRIBUTES[-1].name] = Predictions.empty(ATTRIBUTES[-1])
    return found


def drawn_thresholds(side: dict[str, Predictions]) -> dict[str, Threshold]:
    return {name: choose_threshold(p, fit_temperature(p), SelectionConfig()) for name, p in side.items()}


def draw_all(folder: Path, suffix: str) -> list[Path]:
    side = drawn_side()
    thresholds = drawn_thresholds(side)
    labels = {a.name: a.label for a in ATTRIBUTES}
    recalls = {
        "texts swapped": {"CMA-CLIP": [0.8, 0.7, 0.55, 0.35], "text alone": [0.7, 0.5, 0.3, 0.02]},
        "pictures swapped": {
            "CMA-CLIP": [0.8, 0.75, 0.68, 0.6],
            "text alone": [0.7] * 4,
            "picture alone": [0.6, 0.4, 0.2, 0.0],
        },
    }
    return [
        plots.precision_recall(folder / f"precision_recall{suffix}", side, thresholds),
        plots.calibration(folder / f"calibration{suffix}", side, thresholds),
        plots.robustness(folder / f"robustness{suffix}", [0, 0.2, 0.5, 1], recalls),
        plots.modality_weights(folder / f"weights{suffix}", judge_all(side, thresholds, ("title",)), labels),
    ]


def test_files_are_written_and_name_what_they_show(tmp_path: Path) -> None:
    first, second = (draw_all(tmp_path / name, ".svg") for name in "ab")
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
    texts = [path.read_text() for path in first]
    for attribute in ATTRIBUTES[:-1]:
        label = attribute.label.replace("&", "&amp;")
        assert sum(label in text for text in texts) == 3
    assert "no labels" in texts[0]
    assert "as shipped" in texts[0]
    assert "CMA-CLIP" in texts[2]
    assert draw_all(tmp_path, ".png")[0].read_bytes().startswith(b"\x89PNG")


def test_curve() -> None:
    # r at 0.9, then r and w at 0.8: no threshold between them; w at 0.7
    recall, precision = plots.curve(candidates(single([0.9, 0.8, 0.8, 0.7], marks("rrww"))))
    assert recall.tolist() == pytest.approx([1 / 4, 2 / 4, 2 / 4])
    assert precision.tolist() == pytest.approx([1, 2 / 3, 2 / 4])
