"""Tests that frozen towers run once for each product: `pytest tests/cma_clip_core/inputs/test_frozen_towers.py`."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cma_clip_core.catalog.examples import ExampleIndex, stream_side
from cma_clip_core.catalog.splits import SIDES
from cma_clip_core.config import ModelConfig
from cma_clip_core.inputs import frozen_towers as module
from cma_clip_core.inputs.batches import Batch, augment, prepare
from cma_clip_core.model.backbone import Backbone, Sequence
from cma_clip_core.model.methods import build_model
from cma_clip_core.model.tokenizer import Tokenizer
from cma_clip_core.training.fit import fit
from cma_clip_core.training.loop import Loop
from tests.cma_clip_core import drawn
from tests.cma_clip_core.drawn import QUIET

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ExampleIndex:
    table, folder = drawn.examples(300), tmp_path_factory.mktemp("examples")
    drawn.write(folder, table.slice(0, 130), "a.parquet", row_group_size=50)
    drawn.write(folder, table.slice(130), "b.parquet", row_group_size=50)
    return drawn.index(folder, selection=drawn.config().selection)


def frozen(*towers: str, epochs: int = 3) -> ModelConfig:
    """Configuration with all augmentation of towers' inputs, dropout after the towers, and modality dropout."""
    document = drawn.config(
        epochs=epochs, freeze=towers, flip=True, shift=2, word_dropout=0.2, text_dropout=0.2, image_dropout=0.2,
        shuffle_buffer=64,
    ).model_dump()  # fmt: skip
    document["fusion"]["dropout"] = 0.1
    document["backbone"]["patch_dropout"] = 0.25
    return ModelConfig.model_validate(document)


@pytest.mark.parametrize("towers", [("image",), ("text",), ("text", "image")])
def test_losses_are_the_same_to_the_last_digit_and_each_product_is_seen_once(
    index: ExampleIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, towers: tuple[str, ...]
) -> None:
    config = frozen(*towers)
    model, course = fit(drawn.problem(config, index), QUIET)  # without a folder, nothing is cached
    seen = {"text": 0, "image": 0}
    encode_text, encode_image = Backbone.encode_text, Backbone.encode_image

    def text(self: Backbone, ids: Tensor, lengths: Tensor) -> Sequence:
        seen["text"] += len(ids)
        return encode_text(self, ids, lengths)

    def image(self: Backbone, pixels: Tensor) -> Sequence:
        seen["image"] += len(pixels)
        return encode_image(self, pixels)

    monkeypatch.setattr(Backbone, "encode_text", text)
    monkeypatch.setattr(Backbone, "encode_image", image)
    kept, again = fit(drawn.problem(config, index), QUIET, folder=tmp_path)
    assert [(e.loss, e.validation) for e in again.epochs] == [(e.loss, e.validation) for e in course.epochs]
    for (name, one), other in zip(model.state_dict().items(), kept.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    statuses = [
        status
        for side in SIDES[:2]
        for batch, _ in stream_side(index, side, columns=("image_status",))
        for status in batch.column("image_status").to_pylist()
    ]
    once = {"text": len(statuses), "image": statuses.count("ok")}
    assert 0 < once["image"] < once["text"]
    for tower, rows in seen.items():
        if tower in towers:
            assert rows == once[tower]
        else:
            assert rows > 2 * once[tower]
    assert {path.name.split("-")[1] for path in tmp_path.glob("frozen-*")} == set(towers)


def test_a_killed_training_reads_what_was_kept_and_goes_on_exactly(
    index: ExampleIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = frozen("image", "text")
    whole, _ = fit(drawn.problem(config, index), QUIET)
    epoch = Loop._epoch

    def mortal(self: Loop, stream: Iterator[Batch | None]) -> None:
        if self.progress.epoch == 2:
            raise KeyboardInterrupt
        epoch(self, stream)

    monkeypatch.setattr(Loop, "_epoch", mortal)
    with pytest.raises(KeyboardInterrupt):
        fit(drawn.problem(config, index), QUIET, folder=tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(Backbone, "encode_text", lambda *_: pytest.fail("it was run before"))
    monkeypatch.setattr(Backbone, "encode_image", lambda *_: pytest.fail("it was run before"))
    resumed, _ = fit(drawn.problem(config, index), QUIET, folder=tmp_path)
    for (name, one), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_other_weights_are_run_anew(index: ExampleIndex, tmp_path: Path) -> None:
    config = frozen("image")
    problem = drawn.problem(config, index)
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = build_model(config, drawn.taxonomy())
        found = module.run_frozen(model, problem, QUIET, tmp_path)
        assert found is not None
        (path,) = tmp_path.iterdir()  # the file of other weights was deleted
        assert (np.load(path)["cls"] != 0).any()


def test_a_full_disk_is_said_and_towers_are_run_again(
    index: ExampleIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    config = frozen("image", epochs=1)
    expected, _ = fit(drawn.problem(config, index), QUIET)
    monkeypatch.setattr(module.os, "posix_fallocate", full)
    found, _ = fit(drawn.problem(config, index), QUIET, folder=tmp_path)
    assert "run in every epoch: their outputs cannot be stored: [Errno 28] No space left" in caplog.text
    assert not list(tmp_path.glob("*frozen*"))
    for one, other in zip(expected.state_dict().values(), found.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_what_a_frozen_tower_sees_is_not_varied_and_that_is_said(
    index: ExampleIndex, caplog: pytest.LogCaptureFixture
) -> None:
    config = frozen("image", "text")
    tokenizer = Tokenizer(config)
    plain, varied = (prepare(drawn.batch(100), config, tokenizer) for _ in range(2))
    augment(varied, config.training, np.random.default_rng(0))
    assert varied.texts == plain.texts
    assert np.array_equal(varied.pixels, plain.pixels)
    assert (varied.text_present != plain.text_present).any()  # augmentation after the towers still applies
    with caplog.at_level(logging.INFO):
        fit(drawn.problem(frozen("image", "text", epochs=1), index), QUIET)
    assert "the image tower is frozen, so its input is not augmented: no flip, shift, patch_dropout" in caplog.text
    assert "the text tower is frozen, so its input is not augmented: no word_dropout" in caplog.text


def test_another_process_is_sent_the_names_of_the_files(index: ExampleIndex, tmp_path: Path) -> None:
    config = frozen("text", "image")
    model = build_model(config, drawn.taxonomy())
    here = module.run_frozen(model, drawn.problem(config, index).padded_to_context(), QUIET, tmp_path)
    assert here is not None
    sent = pickle.dumps(here)
    assert len(sent) < sum(file.nbytes for file in here.files.values()) / 4
    there = pickle.loads(sent)
    assert np.array_equal(here.slots, there.slots)
    for tower, file in here.files.items():
        assert file.tobytes() == there.files[tower].tobytes()
