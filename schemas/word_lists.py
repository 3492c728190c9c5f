"""Word lists that ship with the project: colours, placeholders and usual attributes (``schemas/words/*.yaml``)."""

from __future__ import annotations

import functools
from importlib import resources
from typing import Any

from pydantic import field_validator

from schemas.loading import Strict, parse_yaml
from schemas.taxonomy import Name, Text, Value


class WordList(Strict):
    """A list of words."""

    words: tuple[Text, ...]


def load_words(name: str) -> frozenset[str]:
    """Return the words of the shipped list `name`.

    Raises:
        ContractError: the list is wrong; the message says where and why.
    """
    # Spark's executors import this package from a zip, where a file has no path of its own.
    file = resources.files("schemas") / "words" / f"{name}.yaml"
    return frozenset(parse_yaml(file.read_text(encoding="utf-8"), WordList, str(file)).words)


class UsualAttribute(Strict):
    """An attribute that many shops have, with its usual values and the names that shops give it."""

    name: Name
    label: Text
    names: tuple[Text, ...]
    multi_valued: bool = False
    values: tuple[Value, ...]

    @field_validator("values", mode="before")
    @classmethod
    def _bare_values(cls, values: Any) -> Any:
        return [{"name": value} if isinstance(value, str) else value for value in values]


class UsualAttributes(Strict):
    """The attributes that many shops have."""

    attributes: tuple[UsualAttribute, ...]


@functools.cache
def load_usual_attributes() -> tuple[UsualAttribute, ...]:
    """Return the shipped list of usual attributes. Raises ContractError."""
    file = resources.files("schemas") / "words" / "attributes.yaml"
    return parse_yaml(file.read_text(encoding="utf-8"), UsualAttributes, str(file)).attributes
