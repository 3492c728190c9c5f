"""Reader of YAML files into pydantic models, with errors that name the file, the location and the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from schemas.yaml_words import read_yaml

Model = TypeVar("Model", bound=BaseModel)


class ContractError(ValueError):
    """An invalid contract file (taxonomy, rules, mapping); the message says where and why."""


class Strict(BaseModel):
    """Immutable base of every contract. Unknown keys are errors, so that no typing mistake is ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def yaml_location(document: Any, location: tuple[int | str, ...]) -> str:
    """Return `location` in readable form, with the names of list items: ``attributes[3 'neck'].values[2]``."""
    text, node = "", document
    for step in location:
        if isinstance(step, int):
            node = node[step] if isinstance(node, list) and step < len(node) else None
            name = node.get("name") if isinstance(node, dict) else None
            text += f"[{step}{f' {name!r}' if name else ''}]"
        else:
            node = node.get(step) if isinstance(node, dict) else None
            text += f".{step}" if text else str(step)
    return text or "the whole file"


def load_yaml(path: str | Path, model: type[Model]) -> Model:
    """Return the YAML file at `path` as a `model`.

    Raises:
        ContractError: the file is missing, is not YAML, or violates the contract; the message lists every violation.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ContractError(f"{path}: cannot be read: {error}") from error
    return parse_yaml(text, model, str(path))


def parse_yaml(text: str, model: type[Model], name: str) -> Model:
    """Return the YAML `text` as a `model`. Raises ContractError, which calls the text `name`."""
    try:
        document = read_yaml(text, model)
    except yaml.YAMLError as error:
        raise ContractError(f"{name}: not valid YAML: {error}") from error
    try:
        return model.model_validate(document)
    except ValidationError as error:
        lines = [
            f"  {yaml_location(document, e['loc'])}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors()
        ]
        raise ContractError("\n".join([f"{name}: not a valid {model.__name__}:", *lines])) from error


def load_shipped(name: str | Path, model: type[Model], folder: Path, kind: str) -> Model:
    """Return the shipped file `name` of `folder`, or the YAML file at the path `name`, as a `model`.

    Raises:
        ContractError: neither file exists, or it is wrong. The message lists the shipped files, or says where it is
            wrong.
    """
    shipped = folder / f"{name}.yaml"
    if "/" not in str(name) and shipped.exists():
        return load_yaml(shipped, model)
    if not Path(name).exists():
        names = sorted(path.stem for path in folder.glob("*.yaml"))
        raise ContractError(f"{name}: no such {kind}; the shipped ones are {names}")
    return load_yaml(name, model)
