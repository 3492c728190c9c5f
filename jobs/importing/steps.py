"""The steps of derived columns, each a small pure function, in one registry."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeAlias

from cma_clip_core.content.markup import visible_text
from jobs.importing.columns import listed, unique
from jobs.records.values import price
from schemas.derivations import StepCall

Json: TypeAlias = Any
_DEPTH: Final = 8  # levels of nested lists and objects that a step enters
_TEXT: Final = 1_000_000  # characters of a text whose markup is removed


class StepError(ValueError):
    """Error for a value that a step cannot read; the message says what the step expects."""


@dataclass(frozen=True, slots=True)
class Unread:
    """A value that a step could not read. Later steps leave it as it is."""

    value: Json
    step: str


@dataclass(frozen=True, slots=True)
class Step:
    """A step: what it makes of a value, and optionally the way back.

    `apply` of a step on items is called for each item of a list and each value of an object. Otherwise it is called with the
    entire list or object. `inverse` takes what `apply` returned, and the same argument.
    """

    apply: Callable[[Json, Any], Json]
    on_items: bool = True
    inverse: Callable[[Json, Any], Json] | None = None


def apply_steps(value: Json, steps: tuple[StepCall, ...], report: Callable[[Unread], None]) -> Json:
    """Return `value` after all `steps`. A part that a step cannot read stays as it is, and `report` receives it."""
    for call in steps:
        step = STEPS[call.name]
        if step.on_items:
            value = _map(value, call, step, _DEPTH)
        elif not isinstance(value, Unread):
            value = step.apply(value, call.argument)
    return _without_unread(value, report, _DEPTH)


def _map(value: Json, call: StepCall, step: Step, depth: int) -> Json:
    """Apply a step to each item of lists and each value of objects. An item that becomes a list is replaced by its items."""
    if value is None or isinstance(value, Unread):
        return value
    if isinstance(value, list | dict) and not depth:
        return Unread(value, call.name)
    if isinstance(value, list):
        items: list[Json] = []
        for item in value:
            made = _map(item, call, step, depth - 1)
            items += made if isinstance(made, list) else [made]
        return unique(item for item in items if item is not None)
    if isinstance(value, dict):
        made_values = {key: _map(item, call, step, depth - 1) for key, item in value.items()}
        return {key: item for key, item in made_values.items() if item is not None and item != []}
    try:
        return step.apply(value, call.argument)
    except StepError:
        return Unread(value, call.name)


def _without_unread(value: Json, report: Callable[[Unread], None], depth: int) -> Json:
    if isinstance(value, Unread):
        report(value)
        return value.value
    if depth and isinstance(value, list):
        return [_without_unread(item, report, depth - 1) for item in value]
    if depth and isinstance(value, dict):
        return {key: _without_unread(item, report, depth - 1) for key, item in value.items()}
    return value


def _split(value: Json, separator: str) -> Json:
    if not isinstance(value, str):
        return value
    pieces = value.split(separator)
    for position in range(len(pieces) - 1, 0, -1):  # WooCommerce writes a comma within a value as \\,
        if pieces[position - 1].endswith("\\"):
            pieces[position - 1 : position + 1] = [f"{pieces[position - 1][:-1]}{separator}{pieces[position]}"]
    parts = unique(part for each in pieces if (part := each.strip()))
    return parts[0] if len(parts) == 1 else parts


def _join(value: Json, separator: str) -> Json:
    texts = (str(item).replace(separator, f"\\{separator}") for item in listed(value))
    return separator.join(texts) if isinstance(value, str | list) else value


def _leaf(value: Json, separator: str) -> Json:
    return value.rsplit(separator, 1)[-1].strip() if isinstance(value, str) else value


def _part(value: Json, argument: tuple[str, int]) -> Json:
    separator, number = argument
    if not isinstance(value, str):
        return value
    parts = value.split(separator)
    if abs(number) > len(parts):
        raise StepError("the text has fewer parts")
    return parts[number - 1 if number > 0 else number].strip()


def _first(value: Json, _: None) -> Json:
    return value[0] if isinstance(value, list) and value else None if value == [] else value


def _last(value: Json, _: None) -> Json:
    return value[-1] if isinstance(value, list) and value else None if value == [] else value


def _key_value(value: Json, argument: tuple[str, str]) -> Json:
    """Return a text of pairs as an object. A piece without a mark continues the value before it, which held a separator.

    A value in double quotes, with quotes within it doubled, may hold anything.
    """
    if not isinstance(value, str):
        raise StepError("not a text")
    between, mark = argument
    pairs: list[tuple[str, int, int]] = []  # each name, with the start and the end of its value
    start = 0
    quoted = re.compile(rf'"((?:[^"]|"")*+)"\s*(?={re.escape(between)}|$)')
    while start < len(value):
        end = value.find(between, start)
        end = len(value) if end < 0 else end
        held = value.find(mark, start, end)
        if held >= 0:
            name, after = value[start:held].strip(), held + len(mark)
            if not name:
                raise StepError("a value without a name")
            if value[after : after + 1] == '"' and (match := quoted.match(value, after)):
                end = match.end()
            pairs.append((name, after, end))
        elif value[start:end].strip():
            if not pairs:
                raise StepError("a value without a name")
            pairs[-1] = (*pairs[-1][:2], end)
        start = end + len(between)
    texts: dict[str, list[str]] = {}
    for name, first, last in pairs:
        whole = quoted.fullmatch(value, first, last)
        texts.setdefault(name, []).append(whole[1].replace('""', '"') if whole else value[first:last])
    given = {name: unique(text for each in held_texts if (text := each.strip())) for name, held_texts in texts.items()}
    return {name: each[0] if len(each) == 1 else each for name, each in given.items() if each}


def _pairs_text(value: Json, argument: tuple[str, str]) -> Json:
    if not isinstance(value, dict):
        return value
    between, mark = argument
    pairs = ((name, each) for name, held in value.items() for each in listed(held))
    return between.join(f"{name}{mark}{_quoted(str(each), between, mark)}" for name, each in pairs)


def _quoted(text: str, between: str, mark: str) -> str:
    return '"' + text.replace('"', '""') + '"' if between in text or mark in text or text.startswith('"') else text


def _pick(value: Json, key: str) -> Json:
    if isinstance(value, list):
        items = [item for each in value for item in listed(_pick(each, key))]
        return unique(item for item in items if item is not None)
    if isinstance(value, Unread):
        return value
    return value.get(key) if isinstance(value, dict) else Unread(value, "pick")


def _only(value: Json, names: tuple[str, ...]) -> Json:
    if isinstance(value, list):
        return [item for each in value if (item := _only(each, names)) is not None and item != {}]
    if isinstance(value, dict):
        return {key: item for key, item in value.items() if key in names}
    return value if isinstance(value, Unread) or str(value) in names else None


def _drop(value: Json, names: tuple[str, ...]) -> Json:
    if isinstance(value, list):
        return [item for each in value if (item := _drop(each, names)) is not None and item != {}]
    if isinstance(value, dict):
        kept = {key: _drop(item, names) for key, item in value.items() if key not in names}
        return {key: item for key, item in kept.items() if item is not None and item != [] and item != {}}
    return None if not isinstance(value, Unread) and str(value) in names else value


def _replace(value: Json, replacements: dict[str, str]) -> Json:
    return replacements.get(str(value).strip(), value)


def _replace_back(value: Json, replacements: dict[str, str]) -> Json:
    back: dict[str, str] = {}
    for old, new in replacements.items():
        back.setdefault(new, old)
    return back.get(value, value) if isinstance(value, str) else value


def _remove(value: Json, texts: tuple[str, ...]) -> Json:
    if not isinstance(value, str):
        return value
    for text in texts:
        value = value.removeprefix(text).removesuffix(text)
    return value.strip()


def _number(value: Json, _: None) -> Json:
    number = price(value, "")
    if isinstance(number, str):
        raise StepError("not a number")
    return number


def _date(value: Json, time_format: str) -> Json:
    try:
        return datetime.strptime(str(value).strip(), time_format).isoformat()
    except ValueError as error:
        raise StepError("not a date of this format") from error


def _date_text(value: Json, time_format: str) -> Json:
    return datetime.fromisoformat(value).strftime(time_format)


def _text(value: Json, _: None) -> Json:
    return html.unescape(visible_text(value, _TEXT)).strip() if isinstance(value, str) else value


STEPS: Final[dict[str, Step]] = {
    "split": Step(_split, inverse=_join),
    "leaf": Step(_leaf),
    "part": Step(_part),
    "first": Step(_first, on_items=False),
    "last": Step(_last, on_items=False),
    "key_value": Step(_key_value, inverse=_pairs_text),
    "pick": Step(_pick, on_items=False),
    "only": Step(_only, on_items=False),
    "drop": Step(_drop, on_items=False),
    "replace": Step(_replace, inverse=_replace_back),
    "remove": Step(_remove),
    "number": Step(_number),
    "date": Step(_date, inverse=_date_text),
    "text": Step(_text),
}
