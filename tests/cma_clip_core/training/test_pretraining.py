"""Pretraining of the towers on pairs: `pytest tests/cma_clip_core/training/test_pretraining.py`"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from cma_clip_core.catalog.examples import ExampleIndex
from cma_clip_core.catalog.splits import SIDES
from cma_clip_core.config import ModelConfig
from cma_clip_core.errors import DataError, ModelError, NothingToLearnError
from cma_clip_core.model.backbone import Backbone
from cma_clip_core.training.objectives import RETRIEVAL, Contrastive
from cma_clip_core.training.pretraining import pretrain
from schemas.tables import EXAMPLES
from tests.cma_clip_core import drawn
from tests.cma_clip_core.drawn import QUIET

CPU = torch.device("cpu")


def pairs(count: int) -> pa.Table:
    """Products that all have a picture and a text."""
    rows = [row for row in drawn.examples(2 * count).to_pylist() if row["image"] and row["title"]]
    return pa.Table.from_pylist(rows[:count], schema=EXAMPLES)


def cut(folder: Path, table: pa.Table, rows: int, sides: list[str]) -> ExampleIndex:
    """Write products into files of so many rows, on these sides."""
    starts = range(0, table.num_rows, rows)
    for start in starts:
        drawn.write(folder, table.slice(start, rows), f"part-{start:05d}.parquet")
    at = np.arange(table.num_rows)
    return ExampleIndex(
        [folder / f"part-{start:05d}.parquet" for start in starts],
        file=(at // rows).astype(np.int32),
        row=at % rows,
        side=np.array([SIDES.index(side) for side in sides], dtype=np.int8),
        family=at,
    )


def objective(index: ExampleIndex) -> Contrastive:
    config = drawn.config()
    torch.manual_seed(0)
    backbone = Backbone(config, pretrained=False)
    return Contrastive(backbone, drawn.problem(config, index), QUIET)


@pytest.mark.parametrize(
    ("count", "groups"), [(2 * RETRIEVAL + 40, [RETRIEVAL, RETRIEVAL]), (RETRIEVAL, [RETRIEVAL]), (90, [90])]
)
def test_the_score_is_of_whole_groups_however_the_files_are_cut(tmp_path: Path, count: int, groups: list[int]) -> None:
    table, scores = pairs(count), []
    for rows in (count, 64, 7):
        target = objective(cut(tmp_path / str(rows), table, rows, ["validation"] * count))
        assert [len(inputs) for inputs in target._groups()] == groups
        scores.append(target.validate())
        seen = sum(groups)
        assert scores[-1].error == pytest.approx((scores[-1].value * (1 - scores[-1].value) / seen) ** 0.5)
    assert scores[0] == scores[1] == scores[2]
    assert scores[0].value < 0.1  # of a few products each, chance alone would be right more often


def test_products_without_a_pair_are_in_no_group(tmp_path: Path) -> None:
    table = drawn.examples(60)
    there = [bool(row["image"] and row["title"]) for row in table.to_pylist()]
    target = objective(cut(tmp_path, table, 9, ["validation"] * 60))
    (inputs,) = target._groups()
    assert len(inputs) == sum(there) < 60
    assert inputs.text_present.all()
    assert inputs.image_present.all()


def small(epochs: int) -> ModelConfig:
    document = drawn.config().model_dump()
    document["pretraining"] |= {"epochs": epochs, "batch_size": 16}
    return ModelConfig.model_validate(document)


def test_one_pair_a_file_can_be_pretrained_on(tmp_path: Path) -> None:
    index = cut(tmp_path, pairs(24), 1, ["train", "validation", "test"] * 8)
    _, metrics = pretrain(drawn.problem(small(1), index), QUIET)
    assert metrics.train_examples == 8
    assert 0 <= metrics.epochs[0].validation <= 1


def test_a_setting_without_effect_is_refused(tmp_path: Path) -> None:
    document = small(1).model_dump()
    document["pretraining"] |= {"freeze": ["image"], "alone_loss": 0.5}
    with pytest.raises(ModelError, match="freeze, alone_loss has no effect in `pretraining`: remove it"):
        pretrain(drawn.problem(ModelConfig.model_validate(document), cut(tmp_path, pairs(8), 1, ["train"] * 8)), QUIET)


def test_one_pair_in_all_has_nothing_to_be_told_apart_from(tmp_path: Path) -> None:
    index = cut(tmp_path, pairs(9), 1, ["train"] * 7 + ["validation", "test"])
    with pytest.raises(NothingToLearnError, match="no two products on the validation side"):
        pretrain(drawn.problem(small(1), index), QUIET)
    with pytest.raises(DataError, match="no two validation products"):
        objective(index).validate()
