"""Pretrained towers of our own: a folder with the weights of both CLIP towers and the configuration they fit.

towers.safetensors  the weights of `Backbone`
config.json         the configuration they were trained with
metrics.json        on which labelled set and how they were trained, and how well picture and text find each other
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
    """How the towers were pretrained."""

    labelled_set: str = ""  # its folder in the lake; empty: in none, or from before it was recorded
    catalog_day: str = ""  # newest day whose products are in it
    made_at: datetime | None = None  # when they were saved
    train_examples: int
    best_epoch: int
    epochs: tuple[
        Epoch, ...
    ]  # `validation`: share of texts whose nearest of 256 pictures, or of fewer on a small side, is their own
    seconds: float  # of training, however often it was killed and went on
    device: str


def save(backbone: nn.Module, config: ModelConfig, metrics: TowersMetrics, folder: Path, made_at: datetime) -> str:
    """Write pretrained towers into a new folder below `folder`, whole or not at all, and return its name."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder, prefix=".new-"))
    try:
        state = {name: value.detach().cpu().contiguous() for name, value in backbone.state_dict().items()}
        save_file(state, temporary / WEIGHTS)
        (temporary / CONFIG).write_text(config.model_dump_json(indent=1) + "\n")
        # The same weights of another configuration or labelled set are other towers: what is asked for is found by these.
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
    """Return how a folder's towers were pretrained. Raises ModelError where it cannot be read or is broken."""
    try:
        return TowersMetrics.model_validate_json((folder / METRICS).read_bytes())
    except OSError as error:
        raise ModelError(f"{folder / METRICS}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ModelError(f"{folder}: the pretrained towers are broken: {error}") from error


def load(backbone: nn.Module, folder: Path, config: ModelConfig) -> None:
    """Load a folder's weights into both towers. Raises ModelError as `check`."""
    _check_fits(folder, config)
    with _readable(folder):
        state = load_file(folder / WEIGHTS)
    backbone.load_state_dict(state)


def check(folder: Path, config: ModelConfig) -> str:
    """Return sixteen hex digits of the weights in a folder, by which towers are the same wherever they lie.

    Raises:
        ModelError: the folder holds no towers, they are broken, or they were trained with other sizes: names these.
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
    """Turn what goes wrong when towers are read into a ModelError."""
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
    """Return what keeps towers trained with one configuration from another one, in words."""

    def shape(config: ModelConfig) -> dict[str, Any]:
        return {
            "picture": config.picture.model_dump(),
            "text.context_length": config.text.context_length,
            "backbone.architecture": config.backbone.architecture,
            "backbone.custom": None if config.backbone.custom is None else config.backbone.custom.model_dump(),
        }

    one, other = shape(trained), shape(wanted)
    return [f"{name} is {one[name]} there and {other[name]} here" for name in one if one[name] != other[name]]
