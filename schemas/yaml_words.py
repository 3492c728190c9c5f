"""Words of a YAML file as their author wrote them, where a contract wants text.

YAML reads Yes and Off as truth values, 38 and 1e3 as numbers, 2024-01-01 as a date, and ~ as nothing. In a list of words they
are words.
"""

from __future__ import annotations

import types
from collections.abc import Hashable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is ten times as fast


class _Reader(_Loader):  # type: ignore[misc]
    """YAML reader that refuses a key that occurs twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} occurs twice", key.start_mark
                    )
                seen.add(key.value)
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return mapping


class _Words(_Loader):  # type: ignore[misc]
    """YAML reader that takes every plain word as text."""

    yaml_implicit_resolvers: dict[str, Any] = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag == "tag:yaml.org,2002:merge"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def read_yaml(text: str, model: type[BaseModel]) -> Any:
    """Return the YAML `text` for `model`: its texts as written, everything else as YAML reads it. Raises YAMLError."""
    document = yaml.load(text, _Reader)
    return _as_written(document, yaml.load(text, _Words), model)


def _as_written(value: Any, words: Any, wanted: Any, listed: bool = False) -> Any:
    """Return `value`, with its words from `words` wherever the type `wanted` is a text.

    Args:
        value: the document or a part of it, as YAML reads it.
        words: the same part with all of its scalars as texts.
        wanted: the type that the contract gives to this part.
        listed: whether the part is an item of a list, where "nothing" is a word, too.
    """
    wanted = _bare(wanted)
    arms = get_args(wanted) if get_origin(wanted) in (Union, types.UnionType) else (wanted,)
    if isinstance(value, list) and isinstance(words, list):
        item = next((_item(arm) for arm in arms if _item(arm) is not None), None)
        return [_as_written(v, w, item, True) for v, w in zip(value, words, strict=True)] if item else value
    if isinstance(value, dict) and isinstance(words, dict):
        return _object_as_written(value, words, arms)
    if isinstance(value, str) or isinstance(words, list | dict) or (value is None and not (listed and words)):
        return value
    bare = [_bare(arm) for arm in arms]
    exact = any(isinstance(arm, type) and isinstance(value, arm) and type(value) in (arm, int) for arm in bare)
    is_text = any(
        arm is str or _bare(_item(arm)) is str or (isinstance(arm, type) and issubclass(arm, BaseModel)) for arm in bare
    )
    return words if is_text and not exact else value


def _object_as_written(value: dict[Any, Any], words: dict[Any, Any], arms: tuple[Any, ...]) -> dict[Any, Any]:
    for arm in map(_bare, arms):
        if isinstance(arm, type) and issubclass(arm, BaseModel):
            fields = arm.model_fields
            return {
                key: _as_written(item, words.get(key), fields[key].annotation) if key in fields else item
                for key, item in value.items()
            }
        if get_origin(arm) is dict and len(value) == len(words):
            names, content = get_args(arm)
            pairs = zip(value.items(), words.items(), strict=True)
            return {
                (word if _bare(names) is str else key): _as_written(item, written, content, True)
                for (key, item), (word, written) in pairs
            }
    return value


def _bare(wanted: Any) -> Any:
    """Return a type without its annotations."""
    while get_origin(wanted) is Annotated:
        wanted = get_args(wanted)[0]
    return str if get_origin(wanted) is Literal and all(isinstance(arm, str) for arm in get_args(wanted)) else wanted


def _item(wanted: Any) -> Any:
    """Return the type of the items of a tuple or list; None if it is neither."""
    wanted = _bare(wanted)
    return get_args(wanted)[0] if get_origin(wanted) in (tuple, list, frozenset, set) and get_args(wanted) else None
