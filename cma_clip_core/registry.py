"""Model versions on disk. Each is a self-contained folder that is written atomically and never changed.

| file | content |
|---|---|
| model.safetensors | the weights |
| config.json | the configuration, from which the architecture can be rebuilt without a download |
| taxonomy.yaml | the attributes and values that the model predicts |
| methods.json | the members that answer each attribute; absent: the configuration's method answers all |
| vocabulary.json | the terms of the bag of words, if it is a member |
| thresholds.json | the temperature and the thresholds of each attribute |
| metrics.json | the record of the training, and the metrics |
| *.svg | plots of precision and recall, calibration and modality weights |
| MODEL_CARD.md | the model card; it cannot name the version, whose name depends on the card's hash |
| SHA256SUMS | the hashes of all these files, in the format of `sha256sum -c`; its own hash is in the version's name |

A listed file with another hash is refused. An unlisted file is refused when it is read, except the card of a version from
before cards were listed. Other files are ignored.

Nothing in a folder is ever executed: weights are safetensors, the rest is JSON and YAML. Reading the documents loads no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, TypeVar

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from cma_clip_core.config import ModelConfig
from cma_clip_core.content.paths import AnyPath, names, sync_folder
from cma_clip_core.errors import ModelError
from cma_clip_core.model_documents import THRESHOLDS_DOCUMENT, Methods, Threshold
from cma_clip_core.versions import TAXONOMY as TAXONOMY
from cma_clip_core.versions import is_version
from cma_clip_core.versions import list_versions as list_versions
from schemas.loading import ContractError, parse_yaml
from schemas.taxonomy import Taxonomy

if TYPE_CHECKING:
    from torch import nn

    from cma_clip_core.training.fit import Trained

WEIGHTS, CONFIG = "model.safetensors", "config.json"
METHODS, VOCABULARY = "methods.json", "vocabulary.json"
THRESHOLDS, METRICS, CARD, SUMS = "thresholds.json", "metrics.json", "MODEL_CARD.md", "SHA256SUMS"
PRECISION_RECALL, CALIBRATION, MODALITY_WEIGHTS = "precision_recall.svg", "calibration.svg", "modality_weights.svg"

_WAY_OUT: Final = "Put it back from a copy, or train the model again"
Document = TypeVar("Document", bound=BaseModel)


def read_config(folder: AnyPath) -> ModelConfig:
    """Return a version's configuration. Raises ModelError if it is missing, broken or changed."""
    return read_json(folder / CONFIG, ModelConfig)


def read_taxonomy(folder: AnyPath) -> Taxonomy:
    """Return a version's taxonomy. Raises ModelError if it is missing, broken or changed."""
    path = folder / TAXONOMY
    try:
        return parse_yaml(_read(path).decode(), Taxonomy, str(path))
    except (ContractError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: broken: {error}") from error


def read_thresholds(folder: AnyPath) -> dict[str, Threshold]:
    """Return a version's thresholds by attribute. Raises ModelError if they are missing, broken or changed."""
    return _parse(folder / THRESHOLDS, THRESHOLDS_DOCUMENT)


def read_methods(folder: AnyPath) -> Methods | None:
    """Return the method of each attribute, or None if one method answers all. Raises ModelError as `read_config` does."""
    return read_json(folder / METHODS, Methods) if METHODS in _sums(folder) else None


def read_card(folder: AnyPath) -> str:
    """Return a version's model card, in Markdown. Raises ModelError if it is missing, broken or changed."""
    path = folder / CARD
    try:
        return _read(path).decode()
    except UnicodeDecodeError as error:
        raise ModelError(f"{path}: broken: {error}") from error


def read_json(path: AnyPath, model: type[Document]) -> Document:
    """Return one of a version's JSON documents. Raises ModelError if it is missing, broken or changed."""
    return _parse(path, TypeAdapter(model))


_Parsed = TypeVar("_Parsed")


def _parse(path: AnyPath, adapter: TypeAdapter[_Parsed]) -> _Parsed:
    data = _read(path)
    try:
        return adapter.validate_json(data)
    except ValidationError as error:
        raise ModelError(f"{path}: broken: {error}") from error


def check(folder: AnyPath) -> None:
    """Raise ModelError if a file of a version is missing or was changed since it was saved. Reads every file."""
    for name in _files(folder):
        with _open(folder / name) as file:
            _compare(folder / name, _digest(file))


def check_complete(folder: AnyPath) -> None:
    """Raise ModelError if a file of a version is missing. Reads only SHA256SUMS, because weights may be far away."""
    try:
        present = set(names(folder))
    except OSError as error:
        raise ModelError(f"{folder}: cannot be read: {error.strerror}") from error
    for name in _files(folder):
        if name not in present:
            raise ModelError(f"{folder / name}: there is no such file; is {folder} a model version? {_WAY_OUT}")


def _files(folder: AnyPath) -> tuple[str, ...]:
    """Return the names of the files that every version has, and of those that SHA256SUMS lists. Raises ModelError."""
    return tuple(dict.fromkeys((WEIGHTS, CONFIG, TAXONOMY, THRESHOLDS, METRICS, *_sums(folder))))


def _open(path: AnyPath) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise ModelError(
            f"{path}: cannot be read: {error.strerror}; is {path.parent} a model version? {_WAY_OUT}"
        ) from error


def _read(path: AnyPath) -> bytes:
    with _open(path) as file:
        data = file.read()
    _compare(path, hashlib.sha256(data).hexdigest())
    return data


def _compare(path: AnyPath, digest: str) -> None:
    """Raise ModelError if the hash of a file is not the one that was saved."""
    folder, sums = path.parent, _sums(path.parent)
    if sums:
        if path.name == CARD and CARD not in sums:
            # A version from before cards were listed. The line was not removed: the version's name is the list's hash.
            return
        if digest != sums.get(path.name):
            raise ModelError(f"{path}: its hash is not that in {SUMS}: the file was changed. {_WAY_OUT}")
    elif path.name == WEIGHTS and is_version(folder.name) and not folder.name.endswith(digest[:8]):
        # The name of a version from before SHA256SUMS existed has the hash of its weights.
        raise ModelError(
            f"{path}: its hash is {digest[:8]}, not that of version {folder.name}: the file was changed. {_WAY_OUT}"
        )


def _sums(folder: AnyPath) -> dict[str, str]:
    """Return the hashes that a version was saved with, by file; empty if it has no SHA256SUMS. Raises ModelError."""
    path = folder / SUMS
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}. {_WAY_OUT}") from error
    digest = hashlib.sha256(data).hexdigest()
    if is_version(folder.name) and not folder.name.endswith(digest[:8]):
        raise ModelError(
            f"{path}: its hash is {digest[:8]}, not that of version {folder.name}: the file was changed. {_WAY_OUT}"
        )
    lines = (line.partition("  ") for line in data.decode(errors="replace").splitlines())
    return {name: hexdigest for hexdigest, _, name in lines}


def save(trained: Trained, config: ModelConfig, taxonomy: Taxonomy, models: Path, made_at: datetime) -> str:
    """Write a new version into the folder `models` and return its name.

    A version appears complete or not at all. The same files on the same day are the same version, which is not rewritten.
    """
    from safetensors.torch import save_file

    from cma_clip_core.model.ensemble import bag_of
    from cma_clip_core.model_card.write_card import model_card

    models.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=models, prefix=".new-"))
    try:
        state = {name: value.detach().cpu().contiguous() for name, value in trained.model.state_dict().items()}
        save_file(state, temporary / WEIGHTS)
        (temporary / CONFIG).write_text(config.model_dump_json(indent=1) + "\n")
        (temporary / TAXONOMY).write_text(
            yaml.safe_dump(taxonomy.model_dump(mode="json"), sort_keys=False, allow_unicode=True), encoding="utf-8"
        )
        (temporary / THRESHOLDS).write_bytes(THRESHOLDS_DOCUMENT.dump_json(trained.thresholds, indent=1) + b"\n")
        (temporary / METRICS).write_text(trained.metrics.model_dump_json(indent=1) + "\n")
        if trained.methods is not None:
            (temporary / METHODS).write_text(trained.methods.model_dump_json(indent=1) + "\n")
        if (bag := bag_of(trained.model)) is not None:
            (temporary / VOCABULARY).write_text(json.dumps(bag.terms, ensure_ascii=False), encoding="utf-8")
        _draw(trained, taxonomy, temporary)
        drawn = tuple(path.name for path in sorted(temporary.glob("*.svg")))
        card = model_card(config, taxonomy, trained.thresholds, trained.metrics, made_at, drawn, trained.methods)
        (temporary / CARD).write_text(card, encoding="utf-8")
        sums = "".join(f"{_sha256(path)}  {path.name}\n" for path in sorted(temporary.iterdir()))
        (temporary / SUMS).write_text(sums)
        version = f"{made_at:%Y%m%d}-{_sha256(temporary / SUMS)[:8]}"
        for path in temporary.iterdir():
            path.chmod(0o644)  # safetensors creates files that only their owner can read
            with path.open("rb") as written:
                os.fsync(written.fileno())
        temporary.chmod(0o755)
        sync_folder(temporary)
        if not (models / version).exists():
            temporary.rename(models / version)
            sync_folder(models)
        return version
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _draw(trained: Trained, taxonomy: Taxonomy, folder: Path) -> None:
    """Draw the plots of the test side, if its predictions are known."""
    from cma_clip_core.model_card import plots

    if not trained.test:
        return
    labels = {attribute.name: attribute.label for attribute in taxonomy.attributes}
    plots.precision_recall(folder / PRECISION_RECALL, trained.test, trained.thresholds)
    plots.calibration(folder / CALIBRATION, trained.test, trained.thresholds)
    plots.modality_weights(folder / MODALITY_WEIGHTS, trained.metrics.test, labels)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return _digest(file)


def _digest(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(2**20):
        digest.update(chunk)
    return digest.hexdigest()


def load_model(folder: Path) -> nn.Module:
    """Return a version's model on the CPU, ready to predict. Downloads nothing and runs no code from the folder.

    Raises:
        ModelError: the folder is not a model version, one of its files was changed, or the weights do not fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from cma_clip_core.model.bag_of_words import BagOfWords
    from cma_clip_core.model.class_layout import ClassLayout
    from cma_clip_core.model.ensemble import Ensemble
    from cma_clip_core.model.methods import build_model

    check(folder)
    config, taxonomy = read_config(folder), read_taxonomy(folder)
    path = folder / WEIGHTS
    try:
        state = load_file(path)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise ModelError(f"{path}: not a safetensors file: {error}") from error
    if "coefficients" in state:
        layout, cma, bag = ClassLayout(taxonomy), None, None
        if any(name.startswith("cma.") for name in state):
            cma = build_model(config, taxonomy)
        try:
            if VOCABULARY in _sums(folder):
                bag = BagOfWords(_parse(folder / VOCABULARY, TypeAdapter(tuple[str, ...])), state["idf"].numpy())
            model: nn.Module = Ensemble.from_state(layout, cma, bag, state)
        except KeyError as error:
            raise ModelError(f"{path}: the tensor {error} is missing. {_WAY_OUT}") from error
    else:
        model = build_model(config, taxonomy)
    # Versions from before picture evidence existed (cma_clip_core.evaluation.picture_evidence) lack this buffer: 0.
    state |= {name: value for name, value in model.named_buffers() if name == "picture_evidence" and name not in state}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(f"{path}: the weights do not fit {CONFIG}: {error}") from error
    return model.eval()
