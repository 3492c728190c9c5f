"""Towers for a model: which products they saw, and made on the way by `train --pretrain`.

`pytest tests/jobs/training/test_pretrain.py`
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from torch import nn
from typer.testing import CliRunner

from cma_clip_core import registry
from cma_clip_core.inputs.batches import Batch
from cma_clip_core.model import tower_files
from cma_clip_core.model_documents import Metrics, TowersOrigin
from cma_clip_core.training.loop import Loop
from jobs.cli import app
from jobs.errors import JobError
from jobs.lake import storage
from jobs.lake.layout import Lake
from jobs.runtime.data_parallel import run_together
from jobs.settings import Settings
from jobs.training.dataset import dataset
from jobs.training.pretrain import pretrain
from jobs.training.train import train
from tests.cma_clip_core import drawn
from tests.jobs.training.test_train import RUN, add_examples, settings_of

DAY, NEXT = "2026-11-20", "2026-11-21"


def settings_with_short_trainings(root: Path, epochs: int = 1) -> Settings:
    document = drawn.config(epochs=epochs).model_dump(mode="json")
    document["pretraining"] |= {"epochs": epochs, "batch_size": 32}
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
    metrics = tower_files.read_metrics(Path(lake.towers / name))
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
        f"side holds {expected['test']} of the test products and {expected['validation']} of the validation products"
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
        why = "is not in this lake"
    else:  # as towers were written before
        path = Path(lake.towers / name / tower_files.METRICS)
        document = json.loads(path.read_bytes())
        path.write_text(json.dumps({k: v for k, v in document.items() if k not in ("labelled_set", "catalog_day")}))
        why = "their labelled set is not recorded"
    origin, card = origin_in(settings, train(settings, NEXT, promote=False, towers=name))
    assert (origin.same_set, origin.seen) == (False, None)
    assert f"It is unknown which of these products its towers `{name}` were pretrained on: " in card
    assert why in card
    assert "It is unknown which" in caplog.text


def short_lake(root: Path, epochs: int = 1) -> Settings:
    settings = settings_with_short_trainings(root, epochs)
    add_examples(Lake(settings.root), RUN, drawn.examples(200))
    return settings


def begun_with(settings: Settings, version: str) -> str | None:
    return registry.read_config(Lake(settings.root).models / version).backbone.pretrained


def test_train_pretrains_once_and_trains_as_from_towers_that_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = short_lake(tmp_path)
    lake = Lake(settings.root)
    with caplog.at_level(logging.INFO):
        version = train(settings, DAY, promote=False, pretrain=True)
        (towers_made,) = storage.children(lake.towers)
        assert begun_with(settings, version) == f"towers/{towers_made.name}"
        assert origin_in(settings, version)[0].same_set
        assert "labelled set exist" not in caplog.text
        again = train(settings, DAY, promote=False, pretrain=True)
        assert "pretrained towers of this configuration and labelled set exist" in caplog.text
    assert storage.children(lake.towers) == [towers_made]
    named = train(settings, DAY, promote=False, towers=towers_made.name)
    one, *others = ((Path(lake.models) / v / registry.WEIGHTS).read_bytes() for v in (version, again, named))
    assert all(other == one for other in others)


def test_the_newest_towers_of_the_configuration_and_labelled_set_are_taken(tmp_path: Path) -> None:
    settings = short_lake(tmp_path)
    lake = Lake(settings.root)
    made = Path(lake.towers / pretrain(settings, DAY))
    metrics = tower_files.read_metrics(made)
    assert metrics.made_at is not None

    def copy(name: str, hours: float, **changes: object) -> None:
        shutil.copytree(made, made.with_name(name))
        later = metrics.model_copy(update={"made_at": metrics.made_at + timedelta(hours=hours), **changes})
        (made.with_name(name) / tower_files.METRICS).write_text(later.model_dump_json())

    copy("20990101-00000000", -1)
    copy("20260101-00000000", 1)  # the newest
    copy("20990101-00000001", 2, labelled_set="labelled/ds=2026-11-19/set=01234567")
    copy("20990101-00000002", 3)
    other = drawn.config(epochs=1).model_copy(update={"name": "other"})
    (made.with_name("20990101-00000002") / tower_files.CONFIG).write_text(other.model_dump_json())
    copy("20990101-00000003", 4)
    (made.with_name("20990101-00000003") / tower_files.CONFIG).write_text("{")
    version = train(settings, DAY, promote=False, pretrain=True)
    assert begun_with(settings, version) == "towers/20260101-00000000"
    assert len(storage.children(lake.towers)) == 6


@pytest.mark.long
def test_two_processes_pretrain_and_train_together(tmp_path: Path) -> None:
    settings = short_lake(tmp_path)
    lake = Lake(settings.root)
    version = run_together(2, "cpu", train, settings, DAY, False, None, True)
    (made,) = storage.children(lake.towers)
    assert begun_with(settings, version) == f"towers/{made.name}"


def test_a_killed_training_goes_on_in_its_pretraining_and_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = short_lake(tmp_path, epochs=2)
    lake = Lake(settings.root)
    whole, seen = Loop._epoch, list[tuple[str, int]]()

    def start(killed_in: tuple[str, int] | None) -> str:
        def mortal(self: Loop, stream: Iterator[Batch | None]) -> None:
            at = (type(self.objective).__name__, self.progress.epoch)
            if at == killed_in:
                raise KeyboardInterrupt
            seen.append(at)
            whole(self, stream)

        monkeypatch.setattr(Loop, "_epoch", mortal)
        return train(settings, DAY, promote=False, pretrain=True)

    for killed_in in (("Contrastive", 2), ("MultiTask", 2)):
        with pytest.raises(KeyboardInterrupt):
            start(killed_in)
    version = start(None)
    assert seen == [("Contrastive", 1), ("Contrastive", 2), ("MultiTask", 1), ("MultiTask", 2)]  # none twice
    (made,) = storage.children(lake.towers)
    assert begun_with(settings, version) == f"towers/{made.name}"


def test_something_else_that_says_what_the_towers_begin_with_is_refused(tmp_path: Path) -> None:
    settings = settings_with_short_trainings(tmp_path)
    with pytest.raises(JobError, match=r"--pretrain .* --towers from '20260101-00000000': give one of them"):
        train(settings, DAY, towers="20260101-00000000", pretrain=True)
    loaded = settings.model_copy(update={"model_config_name": "clip-vit-b-32"})
    with pytest.raises(JobError, match=r"'clip-vit-b-32' starts from the weights .*laion2b_s34b_b79k"):
        train(loaded, DAY, pretrain=True)
    words = ["--root", str(settings.root), "train", "--ds", DAY, "--pretrain", "--towers", "20260101-00000000"]
    assert "give one of them" in str(CliRunner().invoke(app, words).exception)


def test_the_same_weights_of_another_labelled_set_or_configuration_are_other_towers(tmp_path: Path) -> None:
    config = drawn.config()
    weights = nn.Linear(2, 2)
    metrics = tower_files.TowersMetrics(
        train_examples=1, best_epoch=1, epochs=(), seconds=1.0, device="cpu", labelled_set="a"
    )
    names = [
        tower_files.save(weights, changed, of, tmp_path, drawn.NOW)
        for changed, of in (
            (config, metrics),
            (config, metrics),
            (config, metrics.model_copy(update={"labelled_set": "b"})),
            (config.model_copy(update={"name": "other"}), metrics),
        )
    ]
    assert names[0] == names[1]
    assert len(set(names)) == 3
    assert tower_files.read_metrics(tmp_path / names[2]).labelled_set == "b"
    assert tower_files.read_metrics(tmp_path / names[2]).made_at == drawn.NOW
