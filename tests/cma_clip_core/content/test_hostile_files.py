"""A model file from elsewhere runs no code: `pytest tests/cma_clip_core/content/test_hostile_files.py`

Each file would touch a marker if it were read in the way that runs what it holds; that it would is tried first.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
import yaml

import cma_clip_core
from cma_clip_core import registry
from cma_clip_core.config import ModelConfig, load_config
from cma_clip_core.errors import ModelError
from cma_clip_core.model import tower_files
from cma_clip_core.model.backbone import Backbone
from cma_clip_core.model.cma_clip import CmaClip
from cma_clip_core.model_documents import Metrics
from cma_clip_core.training.fit import Trained
from schemas.loading import ContractError
from schemas.taxonomy import load_taxonomy
from tests.cma_clip_core import drawn
from tests.cma_clip_core.model.test_cma_clip import ARCHITECTURES
from tests.jobs.nightly.test_tag import THRESHOLDS


class Payload:
    """Touch the marker when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "executed"


def pickled(marker: Path) -> bytes:
    data = pickle.dumps({"state_dict": Payload(marker)})
    pickle.loads(data)
    return armed(data, marker)


def torch_saved(marker: Path, folder: Path) -> bytes:
    path = folder / "payload.pt"
    torch.save({"state_dict": Payload(marker)}, path)
    torch.load(path, weights_only=False)
    return armed(path.read_bytes(), marker)


def tagged(marker: Path) -> bytes:
    text = f"name: !!python/object/apply:os.system ['touch {marker}']\n"
    yaml.unsafe_load(text)
    return armed(text.encode(), marker)


def armed(data: bytes, marker: Path) -> bytes:
    """Return `data` after reading it carelessly."""
    assert marker.exists()
    marker.unlink()
    return data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A complete model from elsewhere, without a list of hashes, which its author could fake anyway."""
    torch.manual_seed(0)
    metrics = Metrics(
        train_examples=0, validation_examples=0, test_examples=0, families=0, best_epoch=1, epochs=(), seconds=0.0,
        device="cpu", validation={}, test={},
    )  # fmt: skip
    trained = Trained(CmaClip(drawn.config(), drawn.taxonomy()).eval(), THRESHOLDS, metrics)
    made = tmp_path / registry.save(trained, drawn.config(), drawn.taxonomy(), tmp_path, drawn.NOW)
    found = made.rename(tmp_path / "from-elsewhere")
    (found / registry.SUMS).unlink()
    cma_clip_core.load(found, device="cpu")
    return found


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_weights_that_are_a_pickle(folder: Path, tmp_path: Path, marker: Path, kind: str) -> None:
    data = pickled(marker) if kind == "pickle" else torch_saved(marker, tmp_path)
    (folder / registry.WEIGHTS).write_bytes(data)
    with pytest.raises(ModelError, match=r"model\.safetensors: not a safetensors file"):
        cma_clip_core.load(folder, device="cpu")
    assert not marker.exists()


@pytest.mark.parametrize("file", ["taxonomy.yaml", "config.json", "thresholds.json"])
def test_documents_with_a_python_object(folder: Path, marker: Path, file: str) -> None:
    (folder / file).write_bytes(tagged(marker))
    with pytest.raises(ModelError, match=rf"{file}: broken"):
        cma_clip_core.load(folder, device="cpu")
    assert not marker.exists()


@pytest.mark.parametrize("read", [load_taxonomy, load_config])
def test_settings_with_a_python_object(tmp_path: Path, marker: Path, read: Callable[[Path], object]) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(tagged(marker))
    with pytest.raises(ContractError, match=r"config\.yaml: not valid YAML: could not determine a constructor"):
        read(path)
    assert not marker.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", ["clip.pt", "clip.bin", "clip.safetensors"])
@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_a_pretrained_checkpoint_that_is_a_program(tmp_path: Path, marker: Path, name: str, kind: str) -> None:
    (tmp_path / "small-vit.json").write_text(json.dumps({"embed_dim": 24, **ARCHITECTURES["small-vit"]}))
    open_clip.add_model_config(tmp_path / "small-vit.json")
    path = tmp_path / name
    path.write_bytes(pickled(marker) if kind == "pickle" else torch_saved(marker, tmp_path))
    document = drawn.config().model_dump() | {
        "picture": {"height": 64, "width": 32},
        "backbone": {"architecture": "small-vit", "pretrained": str(path)},
    }
    with pytest.raises(ModelError, match=rf"{name}: broken, or not a file of weights alone"):
        Backbone(ModelConfig.model_validate(document), pretrained=True)
    assert not marker.exists()


def test_pretrained_towers_that_are_a_program(tmp_path: Path, marker: Path) -> None:
    folder = tmp_path / "towers"
    folder.mkdir()
    (folder / tower_files.CONFIG).write_text(drawn.config().model_dump_json())
    (folder / tower_files.WEIGHTS).write_bytes(torch_saved(marker, tmp_path))
    document = drawn.config().model_dump()
    document["backbone"]["pretrained"] = str(folder)
    with pytest.raises(ModelError, match="the pretrained towers are broken"):
        Backbone(ModelConfig.model_validate(document), pretrained=True)
    assert not marker.exists()
