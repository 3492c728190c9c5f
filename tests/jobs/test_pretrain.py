"""Which products a model's towers were pretrained on: `pytest tests/jobs/test_pretrain.py`"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from cma_clip_core import registry, towers
from cma_clip_core.documents import TowersOrigin
from cma_clip_core.training import Metrics
from jobs.dataset import dataset
from jobs.lake import Lake
from jobs.pretrain import pretrain
from jobs.settings import Settings
from jobs.train import train
from tests.cma_clip_core import drawn
from tests.jobs.test_train import RUN, add_examples, settings_of

DAY, NEXT = "2026-11-20", "2026-11-21"


def settings_with_short_trainings(root: Path) -> Settings:
    document = drawn.config(epochs=1).model_dump(mode="json")
    document["pretraining"] |= {"epochs": 1, "batch_size": 32}
    (root / "short.yaml").write_text(yaml.safe_dump(document))
    return settings_of(root).model_copy(update={"model_config_name": str(root / "short.yaml")})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, str]:
    """A lake with towers of one day's labelled set, and a next day on which other products are held out."""
    root = tmp_path_factory.mktemp("towers")
    settings = settings_with_short_trainings(root)
    add_examples(Lake(settings.root), RUN, drawn.examples(300))
    name = pretrain(settings, DAY)
    add_examples(Lake(settings.root), f"{NEXT}-89abcdef", drawn.examples(200, seed=1))
    return settings, name


def origin_in(settings: Settings, version: str) -> tuple[TowersOrigin, str]:
    """Return what a version's metrics say of its towers, and its card in one line."""
    folder = Lake(settings.root).models / version
    origin = registry.read_json(folder / registry.METRICS, Metrics).towers
    assert origin is not None
    return origin, " ".join((folder / registry.CARD).read_text().split())


def sides_of(settings: Settings, day: str) -> dict[str, set[str]]:
    rows = pq.read_table(dataset(settings, day).table, columns=["product_id", "side"]).to_pylist()
    return {side: {r["product_id"] for r in rows if r["side"] == side} for side in ("train", "validation", "test")}


def test_towers_of_the_same_labelled_set_saw_nothing_that_is_held_out(
    made: tuple[Settings, str], caplog: pytest.LogCaptureFixture
) -> None:
    settings, name = made
    lake = Lake(settings.root)
    metrics = towers.read_metrics(Path(lake.towers / name))
    assert metrics.labelled_set == lake.relative(dataset(settings, DAY).folder)
    assert metrics.catalog_day == DAY
    origin, card = origin_in(settings, train(settings, DAY, promote=False, towers=name))
    assert origin.same_set
    assert f"Its towers `{name}` were pretrained on the training side of the same labelled set." in card
    assert "pretrained on" not in caplog.text


def test_towers_of_another_labelled_set_are_told_with_what_they_saw(
    made: tuple[Settings, str], caplog: pytest.LogCaptureFixture
) -> None:
    settings, name = made
    old, new = sides_of(settings, DAY), sides_of(settings, NEXT)
    expected = {side: len(new[side] & old["train"]) for side in ("validation", "test")}
    assert expected["test"] > 0
    assert expected["test"] < len(new["test"])
    origin, card = origin_in(settings, train(settings, NEXT, promote=False, towers=name))
    assert (origin.same_set, origin.seen) == (False, expected)
    words = (
        f"Its towers were pretrained on {expected['test']} of the test products' pairs and on {expected['validation']} "
    )
    assert words in card
    assert [r.levelno for r in caplog.records if words in r.getMessage()] == [logging.WARNING]


@pytest.mark.parametrize("gone", [True, False])
def test_what_cannot_be_told_is_said(
    made: tuple[Settings, str], tmp_path: Path, caplog: pytest.LogCaptureFixture, gone: bool
) -> None:
    shutil.copytree(made[0].root, tmp_path / "lake")
    settings, name = made[0].model_copy(update={"root": tmp_path / "lake"}), made[1]
    lake = Lake(settings.root)
    if gone:
        shutil.rmtree(dataset(settings, DAY).folder)
        why = "is gone"
    else:  # as towers were written before
        path = Path(lake.towers / name / towers.METRICS)
        document = json.loads(path.read_bytes())
        path.write_text(json.dumps({k: v for k, v in document.items() if k not in ("labelled_set", "catalog_day")}))
        why = "their labelled set is not recorded"
    origin, card = origin_in(settings, train(settings, NEXT, promote=False, towers=name))
    assert (origin.same_set, origin.seen) == (False, None)
    assert f"Which of these products its towers `{name}` were pretrained on cannot be told: " in card
    assert why in card
    assert "cannot be told" in caplog.text
