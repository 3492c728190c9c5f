"""Folders of pretrained towers: the weights of both CLIP towers and the configuration that they fit.

| file | content |
|---|---|
| towers.safetensors | the weights of `Backbone` |
| config.json | the configuration they were trained with |
| metrics.json | their labelled set, the course of their training, and how well texts retrieve pictures |
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from cma_clip_core.config import ModelConfig
from cma_clip_core.content.paths import sync_folder
from cma_clip_core.errors import ModelError
from cma_clip_core.model_documents import Epoch
from schemas.loading import Strict

WEIGHTS, CONFIG, METRICS = "towers.safetensors", "config.json", "metrics.json"


class TowersMetrics(Strict):
    """The record of a pretraining."""

    labelled_set: str = ""  # its folder in the lake; empty: not in a lake, or from before it was recorded
    catalog_day: str = ""  # newest day whose products are in it
    made_at: datetime | None = None  # when they were saved
    train_examples: int
    best_epoch: int
    # `validation`: share of texts whose nearest picture is their own, among 256 pictures (fewer on a small side)
    epochs: tuple[Epoch, ...]
    seconds: float  # of training, including the time before a resume
    device: str


def save(backbone: nn.Module, config: ModelConfig, metrics: TowersMetrics, folder: Path, made_at: datetime) -> str:
    """Write pretrained towers into a new folder below `folder`, atomically, and return its name."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder, prefix=".new-"))
    try:
        state = {name: value.detach().cpu().contiguous() for name, value in backbone.state_dict().items()}
        save_file(state, temporary / WEIGHTS)
        (temporary / CONFIG).write_text(config.model_dump_json(indent=1) + "\n")
        # Towers are looked up by configuration and labelled set, so the same weights with another one of these are other towers.
        hashed = hashlib.sha256(metrics.labelled_set.encode())
        for part in (CONFIG, WEIGHTS):
            hashed.update((temporary / part).read_bytes())
        digest = hashed.hexdigest()
        metrics = metrics.model_copy(update={"made_at": made_at})
        (temporary / METRICS).write_text(metrics.model_dump_json(indent=1) + "\n")
        for path in temporary.iterdir():
            with path.open("rb") as written:
                os.fsync(written.fileno())
        temporary.chmod(0o755)
        sync_folder(temporary)
        name = f"{made_at:%Y%m%d}-{digest[:8]}"
        if not (folder / name).exists():
            temporary.rename(folder / name)
            sync_folder(folder)
        return name
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_metrics(folder: Path) -> TowersMetrics:
    """Return the metrics of a folder's towers. Raises ModelError if they cannot be read or are broken."""
    try:
        return TowersMetrics.model_validate_json((folder / METRICS).read_bytes())
    except OSError as error:
        raise ModelError(f"{folder / METRICS}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ModelError(f"{folder}: the pretrained towers are broken: {error}") from error


def load(backbone: nn.Module, folder: Path, config: ModelConfig) -> None:
    """Load a folder's weights into both towers. Raises ModelError as `check` does."""
    _check_fits(folder, config)
    with _readable(folder):
        state = load_file(folder / WEIGHTS)
    backbone.load_state_dict(state)


def check(folder: Path, config: ModelConfig) -> str:
    """Return sixteen hex digits of the hash of a folder's weights, which identify towers wherever they are stored.

    Raises:
        ModelError: the folder holds no towers, they are broken, or they were trained with other sizes, which it names.
    """
    _check_fits(folder, config)
    with _readable(folder), (folder / WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _check_fits(folder: Path, config: ModelConfig) -> None:
    with _readable(folder):
        trained = ModelConfig.model_validate_json((folder / CONFIG).read_bytes())
    if different := differences(trained, config):
        raise ModelError(f"{folder}: the towers were trained with another configuration: {'; '.join(different)}")


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Convert errors of reading towers into a ModelError."""
    try:
        yield
    except OSError as error:
        raise ModelError(
            f"{folder}: not a folder of pretrained towers: {error.strerror or error}; make one with "
            "`python -m jobs pretrain`"
        ) from error
    except (SafetensorError, ValueError) as error:
        raise ModelError(f"{folder}: the pretrained towers are broken: {error}") from error


def differences(trained: ModelConfig, wanted: ModelConfig) -> list[str]:
    """Return, in words, the settings by which towers of one configuration do not fit another."""

    def shape(config: ModelConfig) -> dict[str, Any]:
        return {
            "picture": config.picture.model_dump(),
            "text.context_length": config.text.context_length,
            "backbone.architecture": config.backbone.architecture,
            "backbone.custom": None if config.backbone.custom is None else config.backbone.custom.model_dump(),
        }

    one, other = shape(trained), shape(wanted)
    return [f"{name} is {one[name]} there and {other[name]} here" for name in one if one[name] != other[name]]
