"""Model versions on disk: a folder each, self-contained, written whole and never changed.

    model.safetensors   the weights
    config.json         the configuration, enough to rebuild the architecture without a download
    taxonomy.yaml       the attributes and values it predicts
    thresholds.json     for each attribute, its temperature, and from which confidence on a value is accepted
    metrics.json        how it was trained and how good it is
    MODEL_CARD.md       the same for people

Nothing in a folder is ever run: weights are safetensors, the rest JSON and YAML. Reading the documents loads no torch.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from cma_clip_core.config import ModelConfig
from cma_clip_core.documents import Threshold
from cma_clip_core.errors import ModelError
from schemas.taxonomy import Taxonomy, load_taxonomy

if TYPE_CHECKING:
    from torch import nn

    from cma_clip_core.training import Trained

WEIGHTS, CONFIG, TAXONOMY = "model.safetensors", "config.json", "taxonomy.yaml"
THRESHOLDS, METRICS, CARD = "thresholds.json", "metrics.json", "MODEL_CARD.md"

_THRESHOLDS: TypeAdapter[dict[str, Threshold]] = TypeAdapter(dict[str, Threshold])
Document = TypeVar("Document", bound=BaseModel)


def is_version(name: str) -> bool:
    """Whether `name` could name a model version: the day it was made and eight hex digits of its weights' hash."""
    return re.fullmatch(r"\d{8}-[0-9a-f]{8}", name) is not None


def list_versions(models: Path) -> list[str]:
    """Return the versions in the folder `models`, oldest first."""
    if not models.is_dir():
        return []
    return sorted(path.name for path in models.iterdir() if is_version(path.name) and path.is_dir())


def read_config(folder: Path) -> ModelConfig:
    """Return a version's configuration. Raises ModelError where it is missing or broken."""
    return read_json(folder / CONFIG, ModelConfig)


def read_taxonomy(folder: Path) -> Taxonomy:
    """Return a version's taxonomy. Raises ContractError where it is missing or broken."""
    return load_taxonomy(folder / TAXONOMY)


def read_thresholds(folder: Path) -> dict[str, Threshold]:
    """Return a version's thresholds by attribute. Raises ModelError where they are missing or broken."""
    return _parse(folder / THRESHOLDS, _THRESHOLDS)


def read_json(path: Path, model: type[Document]) -> Document:
    """Return one of a version's JSON documents. Raises ModelError where it is missing or broken."""
    return _parse(path, TypeAdapter(model))


_Parsed = TypeVar("_Parsed")


def _parse(path: Path, adapter: TypeAdapter[_Parsed]) -> _Parsed:
    try:
        return adapter.validate_json(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}; is {path.parent} a model version?") from error
    except ValidationError as error:
        raise ModelError(f"{path}: broken: {error}") from error


def save(trained: Trained, config: ModelConfig, taxonomy: Taxonomy, models: Path, made_at: datetime) -> str:
    """Write a new version into the folder `models` and return its name.

    A version appears whole or not at all. The same weights on the same day are the same version, which is kept as it is.
    """
    from safetensors.torch import save_file

    from cma_clip_core.card import model_card

    models.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=models, prefix=".new-"))
    try:
        state = {name: value.detach().cpu().contiguous() for name, value in trained.model.state_dict().items()}
        save_file(state, temporary / WEIGHTS)
        with (temporary / WEIGHTS).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        version = f"{made_at:%Y%m%d}-{digest[:8]}"
        (temporary / CONFIG).write_text(config.model_dump_json(indent=1) + "\n")
        (temporary / TAXONOMY).write_text(
            yaml.safe_dump(taxonomy.model_dump(mode="json"), sort_keys=False, allow_unicode=True), encoding="utf-8"
        )
        (temporary / THRESHOLDS).write_bytes(_THRESHOLDS.dump_json(trained.thresholds, indent=1) + b"\n")
        (temporary / METRICS).write_text(trained.metrics.model_dump_json(indent=1) + "\n")
        card = model_card(version, config, taxonomy, trained.thresholds, trained.metrics, made_at)
        (temporary / CARD).write_text(card, encoding="utf-8")
        for path in temporary.iterdir():
            with path.open("rb") as written:
                os.fsync(written.fileno())
        temporary.chmod(0o755)
        if not (models / version).exists():
            temporary.rename(models / version)
        return version
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_model(folder: Path) -> nn.Module:
    """Return a version's model, on the CPU, ready to predict. Nothing is downloaded, and no code in the folder is run.

    Raises:
        ModelError: the folder is no model version, its weights are not those it was named after, or do not fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from cma_clip_core.methods import build_model

    config, taxonomy = read_config(folder), read_taxonomy(folder)
    path = folder / WEIGHTS
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        state = load_file(path)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise ModelError(f"{path}: not a safetensors file: {error}") from error
    if is_version(folder.name) and not folder.name.endswith(digest[:8]):
        raise ModelError(f"{path}: its hash is {digest[:8]}, not that of version {folder.name}: the file was changed")
    model = build_model(config, taxonomy)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(f"{path}: the weights do not fit {CONFIG}: {error}") from error
    return model.eval()
