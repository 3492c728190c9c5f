"""Suspected wrong labels: `pytest tests/jobs/training/test_suspects.py`"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cma_clip_core.evaluation.label_errors import fold_index
from jobs.errors import JobError
from jobs.lake import storage
from jobs.lake.layout import Lake
from jobs.training import suspects as module
from jobs.training.suspects import suspects
from schemas.documents import StepMetrics
from schemas.tables import SUSPECTS
from tests.cma_clip_core import drawn
from tests.jobs.training.test_train import RUN, add_examples, settings_of

DAY = "2026-11-20"


def spoiled(count: int, wrong: int, only_pattern: str) -> tuple[pa.Table, set[str]]:
    """Return examples in which some products have a wrong colour label, as their pictures show. All have one pattern."""
    rows = drawn.examples(count).to_pylist()
    for row in rows:
        row["labels"] = [(name, [only_pattern] if name == "pattern" else values) for name, values in row["labels"]]
    chosen = [row for row in rows if row["image"] is not None][:: count // wrong][:wrong]
    for row in chosen:
        labels = dict(row["labels"])
        (colour,) = labels["colour"]
        others = [c for c in drawn.COLOURS if c != colour]
        row["labels"] = list((labels | {"colour": others[:1]}).items())
    return pa.Table.from_pylist(rows, schema=drawn.examples(1).schema), {row["product_id"] for row in chosen}


@pytest.mark.long
def test_planted_errors_are_found_by_models_that_never_saw_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(tmp_path)
    table, wrong = spoiled(600, 20, only_pattern="Solid")
    add_examples(Lake(settings.root), RUN, table)
    calls = []

    def killed(*_: object, **__: object) -> None:
        calls.append(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "render_suspects", killed)
    with pytest.raises(KeyboardInterrupt):
        suspects(settings, DAY, folds=3)
    monkeypatch.undo()
    folder = suspects(settings, DAY, folds=3)  # the folds are there: only the page is made
    assert calls == [1]
    found = pq.read_table(folder / "suspects.parquet")
    assert found.schema.equals(SUSPECTS)
    colours = [row for row in found.to_pylist() if row["attribute"] == "colour"]
    listed = {row["product_id"] for row in colours}
    assert len(listed & wrong) >= 0.8 * len(wrong)
    assert len(listed & wrong) >= 0.5 * len(listed)
    assert all(row["catalog_value"] != row["model_value"] for row in colours)
    surest = {row["product_id"] for row in colours[:10]}
    assert len(surest & wrong) >= 8
    page = (folder / "index.html").read_text()
    assert page.count("data:image/jpeg") >= 20
    step = storage.read_document(folder / "steps" / "suspects.json", StepMetrics)
    assert step is not None
    assert step.details["not_learnt"] == "pattern"
    assert not (folder / "unfinished").exists()
    before = (folder / "suspects.parquet").stat().st_mtime_ns
    assert suspects(settings, DAY, folds=3) == folder
    assert (folder / "suspects.parquet").stat().st_mtime_ns == before


def test_folds_hold_each_product_out_once_and_keep_families_together(tmp_path: Path) -> None:
    index = drawn.index(drawn.write(tmp_path, drawn.examples(500)))
    folds = [fold_index(index, fold, 3) for fold in range(3)]
    held = np.stack([fold.side == 2 for fold in folds])
    assert (held.sum(axis=0) == 1).all()
    assert all(0.2 < share < 0.47 for share in held.mean(axis=1))
    for fold in folds:
        for family in np.unique(fold.family):
            assert len(set(fold.side[fold.family == family])) == 1
        assert 0.02 < (fold.side == 1).mean() < 0.15


def test_nothing_to_look_at(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="jobs prepare --ds 2026-11-20"):
        suspects(settings_of(tmp_path), DAY)
