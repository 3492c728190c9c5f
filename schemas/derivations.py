"""Columns that a mapping derives from the shop's own: their sources, and the steps that turn a value into another."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, Final

from pydantic import Field, field_validator, model_validator

from schemas.loading import Strict

WILDCARD: Final = "*"
BRACES: Final = re.compile(r"\{([^{}]+)\}")  # a column in a template
_UNQUOTED: Final = "put it in quotes: YAML reads words such as yes, no, on, off, true and false as truth values"


def column_text(value: Any) -> Any:
    """Return a text or number of YAML as text. Raises ValueError for a truth value, which YAML may have misread."""
    if isinstance(value, bool):
        raise ValueError(f"{value}: {_UNQUOTED}")
    return str(value) if isinstance(value, int | float) else value


def _text(value: Any) -> Any:
    value = column_text(value)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r} is not a text")
    return value


def _texts(value: Any) -> Any:
    texts = tuple(map(_text, value if isinstance(value, list | tuple) else [value]))
    if not texts:
        raise ValueError("give at least one text")
    return texts


def _part(value: Any) -> Any:
    if (
        not isinstance(value, list | tuple)
        or len(value) != 2
        or not isinstance(value[1], int)
        or value[1] in (0, False)
    ):
        raise ValueError('give the separator and the number of the part, such as ["/", 1]; -1 is the last part')
    return _text(value[0]), int(value[1])


def _marks(value: Any) -> Any:
    between, mark = (_text(value), "=") if not isinstance(value, list | tuple) else map(_text, [*value, "", ""][:2])
    if between == mark:
        raise ValueError(f"{between!r} cannot stand both between pairs and within a pair")
    return between, mark


def _replacements(value: Any) -> Any:
    if not isinstance(value, dict) or not value:
        raise ValueError("give pairs of an old and a new value, such as {BLK: Black}")
    return {_text(old): _text(new) for old, new in value.items()}


ARGUMENTS: Final[dict[str, Callable[[Any], Any] | None]] = {  # by the name of a step; None: it takes no argument
    "split": _text,
    "leaf": _text,
    "part": _part,
    "first": None,
    "last": None,
    "key_value": _marks,
    "pick": _text,
    "only": _texts,
    "drop": _texts,
    "replace": _replacements,
    "remove": _texts,
    "number": None,
    "date": _text,
    "text": None,
}


class StepCall(Strict):
    """A step of a derived column: its name, and its argument in the form that `ARGUMENTS` describes."""

    name: str
    argument: Any = None

    @model_validator(mode="before")
    @classmethod
    def _from_yaml(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) == 1:
            ((name, argument),) = value.items()
        elif isinstance(value, str):
            name, argument = value, None
        else:
            raise ValueError(f'{value!r} is not a step; examples are first and {{split: ","}}')
        if name not in ARGUMENTS:
            raise ValueError(f"{name!r} is not a step; the steps are {', '.join(ARGUMENTS)}")
        check = ARGUMENTS[name]
        if check is None and argument is not None:
            raise ValueError(f"step {name!r} takes no argument")
        if check is not None and argument is None:
            raise ValueError(f"step {name!r} needs an argument")
        try:
            return {"name": name, "argument": check(argument) if check else None}
        except ValueError as error:
            raise ValueError(f"step {name!r}: {error}") from error


class Derivation(Strict):
    """A derived column: `from` (the first source that is given), `all` (every one) or `pairs`, and the steps after it."""

    first: tuple[str, ...] = Field(
        default=(), alias="from", description="columns, or texts with columns in braces; the first one given is used"
    )
    every: tuple[str, ...] = Field(
        default=(), alias="all", description="columns, or texts with columns in braces; all values given are a list"
    )
    pairs: tuple[tuple[str, str], ...] = Field(
        default=(), description="columns of a name and of its value, or two globs, which make an object"
    )
    steps: tuple[StepCall, ...] = Field(default=(), description="applied from left to right")

    @field_validator("first", "every", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("pairs", mode="before")
    @classmethod
    def _several_pairs(cls, value: Any) -> Any:
        single = isinstance(value, list) and len(value) == 2 and all(isinstance(each, str) for each in value)
        return [value] if single else value

    @field_validator("pairs")
    @classmethod
    def _globs_correspond(cls, value: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
        for name, held in value:
            if name.count(WILDCARD) != held.count(WILDCARD) or name.count(WILDCARD) > 1:
                raise ValueError(f"{name!r} and {held!r} must both have one {WILDCARD!r}, or both none")
        return value

    @model_validator(mode="after")
    def _one_kind_of_source(self) -> Derivation:
        if bool(self.first) + bool(self.every) + bool(self.pairs) != 1:
            raise ValueError("give one of `from`, `all` and `pairs`")
        return self

    @functools.cached_property
    def sources(self) -> tuple[str, ...]:
        """The columns that this one is derived from, in order and without repetition."""
        texts = (column for text in (*self.first, *self.every) for column in template_columns(text) or (text,))
        return tuple(dict.fromkeys([*texts, *(column for pair in self.pairs for column in pair)]))


def template_columns(text: str) -> tuple[str, ...]:
    """Return the columns that stand in braces in `text`; none if it is the name of a column."""
    return tuple(BRACES.findall(text))


def check_acyclic(derive: dict[str, Derivation]) -> tuple[str, ...]:
    """Return the derived columns so that each follows those that it needs. Raises ValueError if one needs itself."""
    ordered: dict[str, None] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            needs = ", which needs ".join(map(repr, (*path[path.index(name) + 1 :], name)))
            raise ValueError(f"derived column {name!r} needs {needs}: no order can compute it")
        if name in ordered:
            return
        for source in derive[name].sources:
            if source in derive:
                visit(source, (*path, name))
        ordered[name] = None

    for name in derive:
        visit(name, ())
    return tuple(ordered)
