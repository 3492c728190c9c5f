"""The forms in which shops write labels: texts, lists, objects of many shapes. What has no known form is told apart."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterable
from typing import Any, Final

from cma_clip_core.content.markup import has_markup, visible_text

Json = Any
Labels = dict[str, list[str]]  # name of an attribute in the shop's words to what it says

# Keys of an object that is one attribute, folded: {"name": "colour", "value": "Red"}.
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
# Keys that are the name where an item of a list has none of `_NAMES`.
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
# Keys that are the value beside a name.
_OTHER_VALUES: Final = ("v", "displayvalue", "featurevalue", "specvalue", "parametervalue")
_SHOWN_NAMES: Final = ("label", "name", "title")  # of a value that is an object without any of `_VALUES`
_UNITS: Final = ("unit", "units", "unitcode", "uom")
_DEPTH: Final = 5  # levels of lists and objects that are looked through
_LITERAL: Final = 5_000  # characters of a text that may be a Python list
_NAME: Final = 100  # characters of a name before a colon
_ENDS: Final = (";\n", "|", "\t", ",", "&")  # of a pair in a text; those that make most pairs are meant
_MARK: Final = re.compile(r"=>|[:=]")  # between a name and its value
_NO_NAME: Final = re.compile(r"[,;|\n\t&<>{}\[\]\"]")
_SERIALISED: Final = re.compile(r'\s*[aOs]:\d+:[{"]')  # by PHP
_NOTHING: Final = frozenset({"None", "null", "NULL", "nan", "NaN", "undefined"})


class UnreadableError(ValueError):
    """A label is of no known form."""


def read_value(value: Json, name: str = "", *, depth: int = _DEPTH) -> list[str]:
    """Return the texts that a label's `value` holds, in order; none where it is null or an empty list.

    A number is the text that writes it, and true and false are their words; NaN is null. An object says its value under ``value``,
    ``values``, ``option`` or the like, with its unit behind it, otherwise its ``label``, ``name`` or ``title``.

    Args:
        value: JSON.
        name: of the attribute.
        depth: levels that may still be below.

    Raises:
        UnreadableError: it is of another form.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):  # pandas writes NaN where there is nothing
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, bool):
        return ["true" if value else "false"]
    if isinstance(value, int | float):
        return [_number(value)]
    if not depth:
        raise UnreadableError("too deep")
    if isinstance(value, list):
        return [text for item in value for text in read_value(item, name, depth=depth - 1)]
    if not isinstance(value, dict):
        raise UnreadableError(f"of type {type(value).__name__}")
    keys = _keys(value)
    held = _first(keys, _VALUES)
    if held is None:
        held = _first(keys, _SHOWN_NAMES)
        if held is None or any(isinstance(keys[key], dict | list) for key in keys):
            raise UnreadableError("an object without a value")
        return read_value(keys[held], name, depth=depth - 1)
    own = _first(keys, _NAMES)
    if own is not None and _bare(str(keys[own])) != _bare(name):
        raise UnreadableError(
            "an object with a name and a value"
        )  # the name may be the value: {"name": "Red", "value": 5}
    texts = read_value(keys[held], name, depth=depth - 1)
    unit = keys.get(_first(keys, _UNITS) or "")
    return [f"{text} {unit}" for text in texts] if isinstance(unit, str) and unit.strip() else texts


def read_object(found: Json) -> tuple[Labels, dict[str, Json]]:
    """Return the labels of an object of attributes, and those that cannot be read as they are, by name ('' without one).

    Read are objects (name to value), lists of objects with a name and a value, lists of objects or pairs, "name: value" texts,
    and JSON in a text. What says a name several times gives it several texts.
    """
    labels: Labels = {}
    unread: dict[str, Json] = {}
    _read_into(labels, unread, found, _DEPTH)
    return labels, unread


def decoded(text: str) -> Json:
    """Return the list or object that `text` writes, in JSON or as Python writes one; `text` where it writes none."""
    start = text.lstrip()[:1]
    if start not in ("[", "{"):
        return text
    try:
        found = _DECODER.decode(text.strip())
    except (ValueError, RecursionError):
        try:
            found = ast.literal_eval(text.strip()) if len(text) <= _LITERAL else text
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            return text
    return found if isinstance(found, list | dict) else text


def _read_into(labels: Labels, unread: dict[str, Json], found: Json, depth: int) -> None:
    if isinstance(found, str):
        found = decoded(found)
    if found is None or (isinstance(found, str) and not found.strip()):
        return
    if not depth:
        unread[""] = found
    elif isinstance(found, str):
        if (pairs := _pairs_of(found)) is None:
            unread[""] = found
        else:
            for name, value in pairs:
                _add(labels, unread, name, value)
    elif isinstance(found, dict):
        # One attribute, or a flat object in which the shop has attributes of such names: {"label": .., "option": .., "hue": ..}.
        if not _read_pair(labels, unread, found) or _has_labels_of_its_own(found):
            for key, item in found.items():
                _add(labels, unread, str(key), item)
    elif isinstance(found, list):
        for item in found:
            _read_item(labels, unread, item, depth)
    else:
        unread[""] = found


def _read_item(labels: Labels, unread: dict[str, Json], item: Json, depth: int) -> None:
    """Read one item of a list of attributes: a pair, an object with a name and a value, an object, or a text."""
    if isinstance(item, list | tuple) and len(item) == 2 and isinstance(item[0], str):
        _add(labels, unread, item[0], item[1])
    elif not isinstance(item, dict):
        _read_into(labels, unread, item, depth - 1)
    elif not _read_pair(labels, unread, item, (*_NAMES, *_OTHER_NAMES)):
        if (own := _name_of(item, _NAMES)) is not None:
            unread[own] = item  # an attribute whose value is nowhere
        elif not _keys(item).keys().isdisjoint(_NAMES):
            unread[""] = item  # one whose name is not given
        else:
            _read_into(labels, unread, item, depth - 1)


def _has_labels_of_its_own(found: dict[str, Json]) -> bool:
    """Whether an object that has a name and a value says more in words."""
    known = {*_NAMES, *_VALUES, *_UNITS, *_OTHER_NAMES, *_OTHER_VALUES}
    return any(isinstance(value, str | list | dict) and key not in known for key, value in _keys(found).items())


def _name_of(found: dict[str, Json], names: Iterable[str]) -> str | None:
    """Return the attribute that an object with a key such as ``name`` is about."""
    keys = _keys(found)
    name = _first(keys, names)
    own = keys[name] if name is not None else None
    if isinstance(own, dict):  # {"attribute": {"id": 4, "name": "hue"}, "value": ..}
        inner = _keys(own)
        own = inner.get(_first(inner, _NAMES) or "")
    if isinstance(own, int) and not isinstance(own, bool):
        return _number(own)
    return own if isinstance(own, str) else None


def _read_pair(labels: Labels, unread: dict[str, Json], found: dict[str, Json], names: Iterable[str] = _NAMES) -> bool:
    """Add the label of an object that is one attribute, with a name and a value; return whether it is one."""
    keys, name = _keys(found), _name_of(found, names)
    values = (*_VALUES, *_OTHER_VALUES)
    held = _first(keys, values) or next((key for key in values if key in keys), None)
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
    """Return the names and values of a text such as "colour: Red; size: M"; None where it is no such text."""
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
        found = _pairs_between(ends, text)
        if len(found) > len(pairs):
            pairs = found
    return [(name, "" if in_braces and value in _NOTHING else _unquoted(value)) for name, value in pairs] or None


def _pairs_between(ends: str, text: str) -> list[tuple[str, str]]:
    """Return the pairs of a text that end with one of `ends`; what is no pair belongs to the value before it."""
    parts = re.split(f"([{ends}])", text)
    found: list[tuple[str, list[str]]] = []
    for index in range(0, len(parts), 2):
        if (pair := _pair_of(parts[index])) is not None:
            found.append((pair[0], [pair[1]]))
        elif found:
            found[-1][1].extend(parts[index - 1 : index + 1])
        elif parts[index].strip():
            return []
    return [(name, "".join(value).strip(f"{ends} \t\r\n")) for name, value in found]


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
    """Return the text of a number: 38 for 38.0. Raises UnreadableError where it is infinite or of thousands of digits."""
    if isinstance(value, float) and not math.isfinite(value):
        raise UnreadableError("a number beyond any")
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    try:
        return str(value)
    except ValueError as error:  # more digits than Python writes
        raise UnreadableError("a number of thousands of digits") from error


def _bare(key: str) -> str:
    return "".join(c for c in key.casefold() if c.isalnum())


def _keys(found: dict[str, Json]) -> dict[str, Json]:
    """Return an object by its keys without case and punctuation; of keys that are alike the first."""
    keys: dict[str, Json] = {}
    for key, value in found.items():
        keys.setdefault(_bare(str(key)), value)
    return keys


def _first(keys: dict[str, Json], wanted: Iterable[str]) -> str | None:
    return next((key for key in wanted if keys.get(key) is not None), None)


class _Several(list[Json]):
    """The values of a name that an object has several times."""


def _merged(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    """Return the object of `pairs`; a name that is there several times has all its values."""
    found: dict[str, Json] = {}
    for name, value in pairs:
        if name not in found:
            found[name] = value
        elif isinstance(several := found[name], _Several):
            several.append(value)
        else:
            found[name] = _Several([several, value])
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_merged, parse_constant=_refuse)
