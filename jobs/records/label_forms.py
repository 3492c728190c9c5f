"""Readers of the forms in which shops write labels: texts, lists and objects of many shapes.

Labels in an unknown form are returned separately.
"""

from __future__ import annotations

import ast
import functools
import json
import math
import re
from collections.abc import Iterable
from typing import Any, Final

from cma_clip_core.content.markup import has_markup, visible_text

Json = Any
Labels = dict[str, list[str]]  # the shop's name of an attribute -> its values
_SHORT: Final = 64  # characters of a key whose reading is kept
_KEPT: Final = 4096  # keys whose reading is kept

# Keys of an object that is one attribute, such as {"name": "colour", "value": "Red"}, in lower case without punctuation.
_NAMES: Final = (
    "name",
    "key",
    "attribute",
    "attributename",
    "attributecode",
    "property",
    "propertyname",
    "label",
    "title",
    "code",
)
_VALUES: Final = (
    "value",
    "values",
    "option",
    "options",
    "val",
    "attributevalue",
    "attributevalues",
    "propertyvalue",
    "text",
)
# Keys that hold the name if an item of a list has none of `_NAMES`.
_OTHER_NAMES: Final = (
    "k",
    "attr",
    "attrname",
    "attrcode",
    "traittype",
    "feature",
    "featurename",
    "spec",
    "specname",
    "specification",
    "characteristic",
    "parameter",
    "parametername",
    "displayname",
    "fieldname",
    "field",
    "attributeid",
    "type",
    "id",
)
# Keys that hold the value only beside a name.
_OTHER_VALUES: Final = ("v", "displayvalue", "featurevalue", "specvalue", "parametervalue")
_SHOWN_NAMES: Final = ("label", "name", "title")  # keys that hold the value of an object without any of `_VALUES`
_UNITS: Final = ("unit", "units", "unitcode", "uom")
_DEPTH: Final = 5  # levels of nested lists and objects that are read
_LITERAL: Final = 5_000  # characters of a text that is parsed as a Python literal
_NAME: Final = 100  # characters of a name before a colon
_ENDS: Final = (";\n", "|", "\t", ",", "&")  # separators of pairs in a text; the ones that yield most pairs are used
_MARK: Final = re.compile(r"=>|[:=]")  # between a name and its value
_NO_NAME: Final = re.compile(r"[,;|\n\t&<>{}\[\]\"]")
_SERIALISED: Final = re.compile(r'\s*[aOs]:\d+:[{"]')  # PHP's serialize()
_NOTHING: Final = frozenset({"None", "null", "NULL", "nan", "NaN", "undefined"})


class UnreadableError(ValueError):
    """Error for a label in an unknown form."""


def read_value(value: Json, name: str = "", *, depth: int = _DEPTH) -> list[str]:
    """Return the texts that a label's `value` holds, in order; none if it is null or an empty list.

    Numbers and booleans become texts, and NaN counts as null. An object holds its value under a key such as ``value``,
    ``values`` or ``option``, and a unit is appended to it. Without such a key, its ``label``, ``name`` or ``title`` is the
    value.

    Args:
        value: a JSON value.
        name: the attribute's name.
        depth: levels of nesting that may still follow.

    Raises:
        UnreadableError: the value has another form.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):  # pandas writes NaN for a missing value
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, bool):
        return ["true" if value else "false"]
    if isinstance(value, int | float):
        return [_number(value)]
    if not depth:
        raise UnreadableError("nested too deeply")
    if isinstance(value, list):
        return [text for item in value for text in read_value(item, name, depth=depth - 1)]
    if not isinstance(value, dict):
        raise UnreadableError(f"of type {type(value).__name__}")
    keys = _keys(value)
    held = _first_given(keys, _VALUES)
    if held is None:
        held = _first_given(keys, _SHOWN_NAMES)
        if held is None or any(isinstance(keys[key], dict | list) for key in keys):
            raise UnreadableError("an object without a value")
        return read_value(keys[held], name, depth=depth - 1)
    own = _first_given(keys, _NAMES)
    if own is not None and _bare(str(keys[own])) != _bare(name):
        raise UnreadableError(
            "an object with a name and a value"
        )  # the name may be the value: {"name": "Red", "value": 5}
    texts = read_value(keys[held], name, depth=depth - 1)
    unit = keys.get(_first_given(keys, _UNITS) or "")
    return [f"{text} {unit}" for text in texts] if isinstance(unit, str) and unit.strip() else texts


def read_object(given: Json) -> tuple[Labels, dict[str, Json]]:
    """Return the labels of an object of attributes, and its unreadable values by name ('' if they have none).

    These forms can be read:

    - an object of names and values
    - a list of objects with a name and a value
    - a list of objects or of pairs
    - a text such as "colour: Red; size: M"
    - JSON in a text

    A name that occurs several times gets several texts.
    """
    labels: Labels = {}
    unread: dict[str, Json] = {}
    _read_into(labels, unread, given, _DEPTH)
    return labels, unread


def decoded(text: str) -> Json:
    """Return the list or object that `text` writes as JSON or as a Python literal; otherwise `text` itself."""
    start = text.lstrip()[:1]
    if start not in ("[", "{"):
        return text
    try:
        value = _DECODER.decode(text.strip())
    except (ValueError, RecursionError):
        try:
            value = ast.literal_eval(text.strip()) if len(text) <= _LITERAL else text
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            return text
    return value if isinstance(value, list | dict) else text


def _read_into(labels: Labels, unread: dict[str, Json], given: Json, depth: int) -> None:
    if isinstance(given, str):
        given = decoded(given)
    if given is None or (isinstance(given, str) and not given.strip()):
        return
    if not depth:
        unread[""] = given
    elif isinstance(given, str):
        if (pairs := _pairs_of(given)) is None:
            unread[""] = given
        else:
            for name, value in pairs:
                _add(labels, unread, name, value)
    elif isinstance(given, dict):
        # One attribute, or a flat object whose attributes have such names: {"label": .., "option": .., "hue": ..}.
        if not _read_pair(labels, unread, given) or _has_other_labels(given):
            for key, item in given.items():
                _add(labels, unread, str(key), item)
    elif isinstance(given, list):
        for item in given:
            _read_item(labels, unread, item, depth)
    else:
        unread[""] = given


def _read_item(labels: Labels, unread: dict[str, Json], item: Json, depth: int) -> None:
    """Read one item of a list of attributes: a pair, an object with a name and a value, an object, or a text."""
    if isinstance(item, list | tuple) and len(item) == 2 and isinstance(item[0], str):
        _add(labels, unread, item[0], item[1])
    elif not isinstance(item, dict):
        _read_into(labels, unread, item, depth - 1)
    elif not _read_pair(labels, unread, item, (*_NAMES, *_OTHER_NAMES)):
        if (own := _name_of(item, _NAMES)) is not None:
            unread[own] = item  # an attribute without a value
        elif not _keys(item).keys().isdisjoint(_NAMES):
            unread[""] = item  # an attribute whose name is empty
        else:
            _read_into(labels, unread, item, depth - 1)


def _has_other_labels(item: dict[str, Json]) -> bool:
    """Return whether an object with a name and a value also has texts, lists or objects under other keys."""
    known = {*_NAMES, *_VALUES, *_UNITS, *_OTHER_NAMES, *_OTHER_VALUES}
    return any(isinstance(value, str | list | dict) and key not in known for key, value in _keys(item).items())


def _name_of(item: dict[str, Json], names: Iterable[str]) -> str | None:
    """Return the attribute's name that an object holds under one of the keys `names`; None if it holds none."""
    keys = _keys(item)
    name = _first_given(keys, names)
    own = keys[name] if name is not None else None
    if isinstance(own, dict):  # {"attribute": {"id": 4, "name": "hue"}, "value": ..}
        inner = _keys(own)
        own = inner.get(_first_given(inner, _NAMES) or "")
    if isinstance(own, int) and not isinstance(own, bool):
        return _number(own)
    return own if isinstance(own, str) else None


def _read_pair(labels: Labels, unread: dict[str, Json], item: dict[str, Json], names: Iterable[str] = _NAMES) -> bool:
    """Add the label of an object that is one attribute with a name and a value; return whether the object is one."""
    keys, name = _keys(item), _name_of(item, names)
    values = (*_VALUES, *_OTHER_VALUES)
    held = _first_given(keys, values) or next((key for key in values if key in keys), None)
    if name is None or held is None:
        return False
    units = {key: keys[key] for key in _UNITS if key in keys}
    _add(labels, unread, name, {"value": keys[held], **units} if keys[held] is not None else None)
    return True


def _add(labels: Labels, unread: dict[str, Json], name: str, value: Json) -> None:
    try:
        texts = read_value(value, name)
    except UnreadableError:
        unread[name] = value
    else:
        if texts or name not in labels:
            labels.setdefault(name, []).extend(texts)


def _pairs_of(text: str) -> list[tuple[str, str]] | None:
    """Return the names and values of a text such as "colour: Red; size: M"; None if it has another form."""
    text = text.strip()
    in_braces = text.startswith("{") and text.endswith("}")  # {colour: Red, size: M}
    if in_braces:
        text = text[1:-1]
    if text[:1] in ("[", "{") or _SERIALISED.match(text) or (in_braces and any(mark in text for mark in "[]{}")):
        return None
    if has_markup(text):
        text = visible_text(text, len(text))
    pairs: list[tuple[str, str]] = []
    for ends in _ENDS:
        candidates = _pairs_between(ends, text)
        if len(candidates) > len(pairs):
            pairs = candidates
    return [(name, "" if in_braces and value in _NOTHING else _unquoted(value)) for name, value in pairs] or None


def _pairs_between(ends: str, text: str) -> list[tuple[str, str]]:
    """Return the pairs of a text that are separated by `ends`; a part that is not a pair belongs to the value before it."""
    parts = re.split(f"([{ends}])", text)
    pairs: list[tuple[str, list[str]]] = []
    for index in range(0, len(parts), 2):
        if (pair := _pair_of(parts[index])) is not None:
            pairs.append((pair[0], [pair[1]]))
        elif pairs:
            pairs[-1][1].extend(parts[index - 1 : index + 1])
        elif parts[index].strip():
            return []
    return [(name, "".join(value).strip(f"{ends} \t\r\n")) for name, value in pairs]


def _pair_of(text: str) -> tuple[str, str] | None:
    mark = _MARK.search(text)
    if mark is None:
        return None
    name, value = _unquoted(text[: mark.start()].strip()), text[mark.end() :].strip()
    if not value or len(name) > _NAME or _NO_NAME.search(name) or value.startswith("//"):
        return None
    return (name, value) if any(map(str.isalpha, name)) else None


def _unquoted(text: str) -> str:
    """Return `text` without the quotes that enclose it."""
    return text[1:-1].strip() if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def _number(value: float) -> str:
    """Return the text of a number: 38 for 38.0. Raises UnreadableError if it is infinite or has thousands of digits."""
    if isinstance(value, float) and not math.isfinite(value):
        raise UnreadableError("an infinite number")
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    try:
        return str(value)
    except ValueError as error:  # more digits than Python writes
        raise UnreadableError("a number with thousands of digits") from error


def _bare(key: str) -> str:
    return _bare_name(key) if len(key) <= _SHORT else _without_punctuation(key)


def _without_punctuation(key: str) -> str:
    return "".join(c for c in key.casefold() if c.isalnum())


_bare_name = functools.lru_cache(_KEPT)(_without_punctuation)  # the same names come with every record


def _keys(item: dict[str, Json]) -> dict[str, Json]:
    """Return an object with its keys in lower case without punctuation; of keys that become equal, keep the first."""
    keys: dict[str, Json] = {}
    for key, value in item.items():
        keys.setdefault(_bare(str(key)), value)
    return keys


def _first_given(keys: dict[str, Json], wanted: Iterable[str]) -> str | None:
    return next((key for key in wanted if keys.get(key) is not None), None)


class _Several(list[Json]):
    """List of the values of a name that occurs several times in an object."""


def _merge_pairs(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    """Return the object of `pairs`; a name that occurs several times has the list of its values."""
    merged: dict[str, Json] = {}
    for name, value in pairs:
        if name not in merged:
            merged[name] = value
        elif isinstance(several := merged[name], _Several):
            several.append(value)
        else:
            merged[name] = _Several([several, value])
    return merged


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_merge_pairs, parse_constant=_refuse)
