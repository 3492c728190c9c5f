"""Attributes within a column of mixed tags, such as ``casual | long sleeve | Ship from USA | black``.

Tags become values in three ways:

1. *By words.* A tag that is a usual value of a usual attribute belongs to it (`schemas/words/attributes.yaml`).
2. *By form.* "Dusty pink" is a colour, "grandpa collar" a neckline, "ditsy print" a pattern: their last words say so.
3. *By co-occurrence.* Tags that occur for the same article types, but hardly ever together, are values of one attribute. Its
   name is not known, so a person decides: it is a suggestion.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from jobs.drafting.analysis.attribute_drafts import DraftAttribute, least_products, snake_case
from jobs.drafting.analysis.label_columns import LeftOut
from jobs.drafting.analysis.mapped_products import Product
from jobs.drafting.analysis.spellings import DraftValue, merge_spellings, spelling_key, usual_words
from schemas.characters import fold
from schemas.word_lists import UsualAttribute, load_usual_attributes, load_words

# Last words of tags, with the attribute that they name.
_ENDINGS: Final = {
    "print": "pattern", "pattern": "pattern", "sleeve": "sleeve_style", "sleeves": "sleeve_style", "neck": "neckline",
    "neckline": "neckline", "collar": "neckline", "waist": "waist", "waistband": "waist", "waistline": "waist", "rise": "waist",
    "heel": "heel_height", "heels": "heel_height", "toe": "toe_style", "fit": "fit", "leg": "leg_shape", "knit": "knit",
    "hem": "details", "detail": "details", "trim": "details", "closure": "closure", "style": "style",
}  # fmt: skip
_SHADES: Final = frozenset({
    "light", "dark", "dusty", "hot", "pale", "bright", "deep", "baby", "sky", "neon", "pastel", "royal", "army",
    "sage", "mint", "olive", "heather", "soft", "rose"
})  # fmt: skip
_OPERATIONAL: Final = re.compile(
    r"\bship(s|ping|ped)?\b|\bdelay|\bsale\b|\bclearance|\bnew.?(arrivals?|in)\b|\bdoor.?buster|^issues?$|\brestock|\bpre.?order|\bdiscount"
    r"|best.?sell|\boff\b|\bcoupon|\bpromo|\bstock\b|\bwarehouse|\breturn|\bvendor|\bsupplier|\bsku\b|\bexclude|\bhidden\b|\bdraft\b"
    r"|\bimport(ed)?\b|\bsync|\btest\b|\bgift.?card|\btax|\bnosto|\bfeed\b|\bgoogle|\bfacebook|\bupsell|\bbundle|^_|::?|\bgroup:",
    re.IGNORECASE,
)  # fmt: skip
_NUMBER_LIKE: Final = re.compile(r"[\W\d_]+|\d[\w.,%/-]{0,20}|[a-z]{0,3}\d{3,}[\w-]{0,20}", re.IGNORECASE)
_CANDIDATES: Final = 120  # most frequent unplaced tags whose co-occurrence is looked at
_EXPECTED: Final = 4.0  # common products that two independent tags must have for their exclusion to show
_TOGETHER: Final = 0.1  # most common products, as a share of the expected ones
_ALIKE: Final = 0.6  # least cosine of two tags' article types
_SEVERAL: Final = 0.05  # share of labelled products with several values above which an attribute is multi-valued


@dataclass(slots=True)
class TakenApart:
    """Contents of a column of tags."""

    attributes: list[DraftAttribute] = field(default_factory=list)
    suggestions: list[DraftAttribute] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def take_apart(
    name: str, products: Sequence[Product], types: Collection[str], brands: Collection[str], type_of: Sequence[str]
) -> TakenApart:
    """Return the attributes within the tags `name` of `products`.

    Args:
        name: label whose words are tags.
        products: the sample.
        types: article types and categories; tags that are one say nothing new.
        brands: brands of the shop; likewise.
        type_of: article type of each product; empty if it is not known.
    """
    result = TakenApart()
    counts = Counter(tag for product in products for tag in product.labels.get(name, ()))
    by_attribute: dict[str, Counter[str]] = defaultdict(Counter)
    unplaced: Counter[str] = Counter()
    kinds = {spelling_key(word) for word in types}
    makers = {fold(word) for word in brands}
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    for tag, count in counts.items():
        if attribute := attribute_of(tag):
            by_attribute[attribute][tag] = count
        elif reason := _reason_against(tag, kinds, makers):
            reasons[reason][tag] = count
        else:
            unplaced[tag] = count
    for usual in load_usual_attributes():
        if words := by_attribute.get(usual.name):
            drafted = _attribute(name, usual, words, products)
            if len(drafted.values) >= 2:
                result.attributes.append(drafted)
            else:
                reasons[f"{usual.label.lower()}: fewer than two values are frequent enough"].update(words)
    least = least_products(len(products))
    frequent = Counter({tag: n for tag, n in unplaced.items() if n >= 2 * least})
    result.suggestions = _suggest(name, frequent, products, type_of)
    placed = {word for s in result.suggestions for value in s.values for word in (value.name, *value.aliases)}
    for tag, count in unplaced.items():
        if tag not in placed:
            rare = count < least
            reasons[f"fewer than {least} products" if rare else "no usual attribute has this value"][tag] = count
    for reason, tags in reasons.items():
        result.left_out += [LeftOut(tag, reason, count) for tag, count in tags.most_common()]
    return result


@functools.cache
def _placed_words() -> tuple[dict[str, str], frozenset[str]]:
    """Return the usual attribute by each of its values' words, and the colour words."""
    placed: dict[str, str] = {}
    for usual in load_usual_attributes():
        for word in usual_words(usual):
            placed.setdefault(word, usual.name)
    return placed, load_words("colours")


def attribute_of(tag: str) -> str:
    """Return the usual attribute that a tag is a value of; empty if it is of none."""
    folded, key = fold(tag), spelling_key(tag)
    if len(folded) > 60:
        return ""
    placed, colours = _placed_words()
    if folded in placed or key in placed:
        return placed.get(folded) or placed[key]
    parts = re.findall(r"[^\W_]+", folded)
    if 2 <= len(parts) <= 3:
        if parts[-1] in colours and all(part in colours or part in _SHADES for part in parts):
            return "color"
        if parts[-1] in _ENDINGS:
            return _ENDINGS[parts[-1]]
    return ""


def _reason_against(tag: str, kinds: Collection[str], makers: Collection[str]) -> str:
    if _OPERATIONAL.search(tag):
        return "runs the shop"
    if _NUMBER_LIKE.fullmatch(tag.strip()):
        return "like a number or a code"
    if fold(tag) in makers:
        return "a brand"
    if spelling_key(tag) in kinds:
        return "a kind of product, which the article type says"
    return "a text" if len(tag.split()) > 5 else ""


def _attribute(name: str, usual: UsualAttribute, words: Counter[str], products: Sequence[Product]) -> DraftAttribute:
    by_word = merge_spellings(words, usual)
    counts: Counter[str] = Counter()
    labelled = several = 0
    for product in products:
        named = {by_word[tag].name for tag in product.labels.get(name, ()) if tag in by_word}
        counts.update(named)
        labelled += bool(named)
        several += len(named) > 1
    values = {value.name: replace(value, products=counts[value.name]) for value in by_word.values()}
    ordered = sorted(values.values(), key=lambda value: (-value.products, value.name))
    least = least_products(len(products))
    listed = tuple(value for value in ordered if value.products >= least)
    return DraftAttribute(
        name=usual.name, label=usual.label, field=name, values=listed, products=labelled,
        multi_valued=several > _SEVERAL * labelled, unlisted="ignore", rare=tuple(ordered[len(listed) :]),
        why=f"tags of {name!r} that are usual values of {usual.label.lower()}",
    )  # fmt: skip


def _suggest(
    name: str, tags: Counter[str], products: Sequence[Product], type_of: Sequence[str]
) -> list[DraftAttribute]:
    """Return groups of three or more tags that exclude each other but occur for the same article types."""
    chosen = [tag for tag, _ in tags.most_common(_CANDIDATES)]
    known = set(chosen)
    together: Counter[tuple[str, str]] = Counter()
    types: dict[str, Counter[str]] = defaultdict(Counter)
    for product, kind in zip(products, type_of, strict=True):
        present = sorted(tag for tag in product.labels.get(name, ()) if tag in known)
        together.update(itertools.combinations(present, 2))
        for tag in present:
            types[tag][kind] += 1
    total = len(products)

    def exclude(a: str, b: str) -> bool:
        expected = _expected(types[a], types[b], type_of_sizes) if total else 0.0
        pair = (a, b) if a < b else (b, a)
        return (
            expected >= _EXPECTED and together[pair] <= _TOGETHER * expected and _cosine(types[a], types[b]) >= _ALIKE
        )

    type_of_sizes = Counter(type_of)
    groups: list[list[str]] = []
    for tag in chosen:
        for group in groups:
            if all(exclude(tag, other) for other in group):
                group.append(tag)
                break
        else:
            groups.append([tag])
    return [_suggestion(name, i, group, tags) for i, group in enumerate((g for g in groups if len(g) >= 3), start=1)]


def _expected(a: Mapping[str, int], b: Mapping[str, int], sizes: Mapping[str, int]) -> float:
    """Return how many products would have both tags if tags were independent within each article type."""
    return sum(n * b.get(kind, 0) / sizes[kind] for kind, n in a.items())


def _cosine(a: Mapping[str, int], b: Mapping[str, int]) -> float:
    dot = sum(n * b.get(kind, 0) for kind, n in a.items())
    return dot / math.sqrt(sum(n * n for n in a.values()) * sum(n * n for n in b.values()) or 1)


def _suggestion(name: str, number: int, group: Sequence[str], tags: Mapping[str, int]) -> DraftAttribute:
    values = tuple(DraftValue(tag, (), tags[tag]) for tag in group)
    return DraftAttribute(
        name=f"{snake_case(name)}_{number}", label=f"Tags {number}", field=name, values=values,
        products=sum(value.products for value in values), unlisted="ignore",
        why="tags that occur for the same article types, but hardly ever together",
    )  # fmt: skip
