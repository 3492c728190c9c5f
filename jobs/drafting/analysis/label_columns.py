"""Choice of the columns that hold labels, with the separators of lists, and the reasons why other columns are left out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Final

from jobs.drafting.analysis.column_profiles import ColumnProfile, Json
from jobs.drafting.analysis.column_roles import Profiles, bare, hint
from jobs.drafting.analysis.spellings import usual_attribute
from jobs.records.label_forms import read_object

_SEPARATORS: Final = ("|", ";", ",", " / ", "\n")
_PATHS: Final = (">", "/", "»", "\\")
_TAGS: Final = frozenset({
    "tags", "tag", "keywords", "keyword", "labels", "productags", "producttags", "schlagworte", "schlagwörter",
    "stichworte", "motsclés", "etiquetas", "etichette"
})  # fmt: skip
# Parts of the names of columns that run a shop, in lower case: they say nothing that a picture or a text shows.
_OPERATIONAL: Final = re.compile(
    r"\bsku\b|group.?id|[a-z]_id$|^id$|stock|inventory|invent|publish|visib|\btax|taxable|shipping|fulfil|status|backorder|download|gift.?card|currency|"
    r"position|quantity|\bqty|barcode|\bean\b|gtin|\bmpn\b|\bupc\b|weight.?unit|meta:|seo|template|website|redirect|url|uri|\blink\b|"
    r"thumbnail|created|updated|modified|availab|online|enabled|reviews?|rating|cost|discount|sold|featured|lager|versand|"
    r"steuer|minimum|increments|config|custom.?(design|label|product)|adwords|condition|upsell|crosssell|cross.?sell|"
    r"related|language|locale|tracker|policy|allow|hs.?code|variant.?count|image.?count", re.IGNORECASE,
)  # fmt: skip
_MOST_WORDS: Final = 5.0  # mean words of a label
_SAMPLE: Final = 2_000  # values in which a separator is looked for


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A column, label or tag that the draft leaves out, with the reason."""

    name: str
    reason: str
    products: int = 0


@dataclass(slots=True)
class LabelColumns:
    """The columns of an export that hold labels."""

    labels: list[str] = field(default_factory=list)
    objects: list[str] = field(default_factory=list)
    separators: dict[str, str] = field(default_factory=dict)  # separator by column whose texts are lists
    paths: dict[str, str] = field(default_factory=dict)  # sign between the levels, by column of category paths
    why: dict[str, str] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)


def choose_labels(profiles: Profiles, used: Collection[str]) -> LabelColumns:
    """Return the label columns among those that are not `used` for other fields."""
    chosen = LabelColumns()
    parents = {re.split(r"[.\[]", name, maxsplit=1)[0] for name in used}
    for name, column in profiles.items():
        if name in used:
            continue
        if column.objects and any(other.startswith((f"{name}.", f"{name}[")) for other in profiles):
            continue  # its keys are columns of their own
        if column.objects:
            _add_object(chosen, column, name in parents)
        elif reason := _reason_against(column, chosen):
            chosen.left_out.append(LeftOut(name, reason, column.filled))
        elif not is_list_of_tags(column, chosen.separators.get(name)) and _is_pairs(column):
            chosen.separators.pop(name, None)
            chosen.objects.append(name)
            chosen.why[name] = "its texts are pairs of names and values"
        else:
            chosen.labels.append(name)
    return chosen


def _add_object(chosen: LabelColumns, column: ColumnProfile, used: bool) -> None:
    if used:
        chosen.left_out.append(LeftOut(column.name, "nested objects, part of which is another field", column.filled))
    else:
        chosen.objects.append(column.name)
        chosen.why[column.name] = "its objects are pairs of names and values"


def _reason_against(column: ColumnProfile, chosen: LabelColumns) -> str:
    """Return why a column holds no labels; empty if it may hold some. Notes the separator of a list or a path."""
    name = column.name
    if not column.filled:
        return "empty"
    if len(name) > 200 or not name.strip() or any(sign in name for sign in "{}"):
        return "its name is too long, empty, or has braces"
    if column.share(column.addresses) > 0.5 or column.share(column.pictures) > 0.5:
        return "addresses or names of files"
    usual = usual_attribute(name)
    if usual is None and _OPERATIONAL.search(name):
        return "its name says that it runs the shop"
    if column.share(column.times) > 0.8:
        return "times"
    sizes = usual is not None and column.distinct <= 100
    if column.share(column.numbers) > 0.8 and not sizes and not column.share(column.flags) > 0.99:
        return "numbers"
    if path := _path_sign(column):
        chosen.paths[name] = path
        chosen.why[name] = f"its texts are paths of categories ({path})"
        return ""
    if column.lists:
        chosen.why[name] = "its values are lists"
        return ""
    if separator := list_separator(column):
        chosen.separators[name] = separator
        chosen.why[name] = f"its texts are lists ({separator.strip() or 'line ends'})"
        return ""
    if column.markup > column.filled / 2 or column.mean_words > _MOST_WORDS or column.mean_length > 60:
        return "free text"
    if column.filled >= 10 and column.uniqueness > 0.8 and hint("article_type", name) is None:
        return "almost each product has a value of its own"
    return ""


def is_tags_name(name: str) -> bool:
    """Return whether a name says that a column holds tags of many kinds, also that of a derived column."""
    return bare(name.rsplit(".", 1)[-1].removesuffix("_list")) in _TAGS


def is_list_of_tags(column: ColumnProfile, separator: str | None) -> bool:
    """Return whether a column holds tags of many kinds: by its name, or because its lists are long."""
    if is_tags_name(column.name):
        return True
    return separator is not None and _mean_parts(column, separator) >= 4


def list_separator(column: ColumnProfile) -> str:
    """Return the separator of a column whose texts are lists of short words that repeat; empty if they are not."""
    texts = list(column.values)[:_SAMPLE]
    best, most = "", 0.0
    for separator in _SEPARATORS:
        several = [text for text in texts if separator in text]
        if len(several) < max(1, len(texts) // 20) or (
            separator == "," and all(_has_decimal_comma(t) for t in several)
        ):
            continue
        parts = Counter(part.strip().casefold() for text in texts for part in text.split(separator) if part.strip())
        words = sum(len(part.split()) * n for part, n in parts.items()) / max(parts.total(), 1)
        repeated = sum(n for n in parts.values() if n > 1) / max(parts.total(), 1)
        named = bare(column.name) in _TAGS
        if words > 3.5 or (repeated < 0.5 and not named):
            continue
        score = parts.total() / len(texts) + (1 if separator == "|" else 0)
        if score > most:
            best, most = separator, score
    return best


def separator_of_labels(labels: Iterable[dict[str, list[str]]]) -> str:
    """Return the separator of lists within labels, such as Belt|Pocket; empty if there is none.

    Nearly all parts of the lists must be values that the same attribute also has alone.
    """
    values: dict[str, set[str]] = {}
    for given in labels:
        for name, words in given.items():
            values.setdefault(name, set()).update(word.strip().casefold() for word in words)
    for separator in ("|", ";"):
        lists = known = parts = 0
        for alone in values.values():
            for word in alone:
                if separator in word:
                    pieces = [piece for each in word.split(separator) if (piece := each.strip())]
                    lists, parts, known = lists + 1, parts + len(pieces), known + sum(p in alone for p in pieces)
        if lists > 1 and known >= 0.8 * parts:
            return separator
    return ""


def _has_decimal_comma(text: str) -> bool:
    return re.search(r"\d,\d", text) is not None and not re.search(r",\s", text)


def _mean_parts(column: ColumnProfile, separator: str) -> float:
    texts = list(column.values)[:_SAMPLE]
    return sum(text.count(separator) + 1 for text in texts) / max(len(texts), 1)


def _path_sign(column: ColumnProfile) -> str:
    texts = list(column.values)[:_SAMPLE]
    named = hint("article_type", column.name) is not None
    for sign in _PATHS:
        several = sum(text.strip(sign).count(sign) > 0 for text in texts)
        if several > len(texts) / 2 and (sign in (">", "»") or (named and sign not in ",")):
            return sign
    return ""


def _is_pairs(column: ColumnProfile) -> bool:
    texts: list[Json] = list(column.values)[:200]
    pairs = [labels for text in texts if (labels := read_object(text)[0])]
    names = Counter(name for labels in pairs for name in labels)
    return len(pairs) > 0.8 * len(texts) > 0 and names.total() >= 2 * len(names) and len(names) > 1
