"""Attributes with their values, drafted from the labels of a sample's products."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from jobs.drafting.analysis.column_roles import hint
from jobs.drafting.analysis.label_columns import LeftOut
from jobs.drafting.analysis.label_promise import labels_to_learn
from jobs.drafting.analysis.mapped_products import Product
from jobs.drafting.analysis.spellings import DraftValue, merge_spellings, usual_attribute
from schemas.characters import fold

MOST_VALUES: Final = 250  # values of an attribute
MOST_ATTRIBUTES: Final = 200
_SEVERAL: Final = 0.05  # share of labelled products with several values above which an attribute is multi-valued
_LARGE: Final = 300  # products from which on an attribute with too few labels is left out
_LOST: Final = 0.02  # share of labels that `applies_to` may leave out
_NUMBER: Final = re.compile(r"[+-]?\d{1,30}([.,]\d{1,30})?(\s?[a-z\"'%°]{1,5})?", re.IGNORECASE)
_WITHOUT_MEANING: Final = frozenset(
    {"n/a", "na", "none", "other", "others", "default title", "default", "sonstige", "-"}
)


@dataclass(frozen=True, slots=True)
class DraftAttribute:
    """An attribute of the drafted taxonomy, with the facts that a person wants to see."""

    name: str
    label: str
    field: str
    values: tuple[DraftValue, ...]
    products: int  # labelled products, with listed values or not
    multi_valued: bool = False
    applies_to: tuple[str, ...] = ()  # article types; empty for all products
    unlisted: str = "keep"
    ignore: tuple[str, ...] = ()
    rare: tuple[DraftValue, ...] = ()  # values that are left out because too few products have them
    why: str = ""

    @property
    def labels(self) -> int:
        """Labels with a listed value."""
        return sum(value.products for value in self.values)


@dataclass(slots=True)
class Drafts:
    """The drafted attributes, and what was left out."""

    attributes: list[DraftAttribute] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    article_type: str = ""
    why_article_type: str = ""


def least_products(products: int) -> int:
    """Return the fewest products that a listed value has: 0.2 % of the products, from 2 to 10.

    Any answer for a value that is not listed counts as wrong, so leaving out many values makes a promise impossible.
    """
    return max(2, min(10, products // 500))


def draft_attributes(products: Sequence[Product], tags: Collection[str] = ()) -> Drafts:
    """Return the attributes that the labels of `products` show, except those of the columns of mixed `tags`."""
    drafts = Drafts()
    by_field: dict[str, list[list[str]]] = {}
    for product in products:
        for name, given in product.labels.items():
            if name not in tags:
                by_field.setdefault(name, []).append(given)
    enough = labels_to_learn() if len(products) >= _LARGE else 2
    for name, labels in sorted(by_field.items(), key=lambda item: -len(item[1])):
        labelled = len(labels)
        words = Counter(word for given in labels for word in given)
        usual = usual_attribute(name)
        if reason := _reason_against(name, words, labelled, enough):
            drafts.left_out.append(LeftOut(name, reason, labelled))
        elif len(drafts.attributes) >= MOST_ATTRIBUTES:
            drafts.left_out.append(LeftOut(name, f"more than {MOST_ATTRIBUTES} attributes", labelled))
        else:
            attribute = _attribute(name, labels, words, least_products(len(products)))
            if len(attribute.values) < 2:
                only = attribute.values[0].name if attribute.values else ""
                least = least_products(len(products))
                reason = (
                    f"only {only!r} has {least} products or more" if only else f"no value has {least} products or more"
                )
                drafts.left_out.append(LeftOut(name, reason, labelled))
            else:
                drafts.attributes.append(replace(attribute, why=f"known by its name ({usual.name})" if usual else ""))
    return drafts


def _reason_against(name: str, words: Counter[str], labelled: int, enough: int) -> str:
    """Return why a label is no attribute; empty if it may be one."""
    if len(name) > 200 or not name.strip():
        return "its name is too long or empty"
    total = words.total()
    meant = [word for word in words if fold(word) not in _WITHOUT_MEANING]
    if len({fold(word) for word in meant}) < 2:
        return "one value"
    usual = usual_attribute(name)
    if usual is None and sum(n for word, n in words.items() if _NUMBER.fullmatch(word)) > 0.8 * total:
        return "numbers"
    if sum(len(word.split()) * n for word, n in words.items()) > 6 * total:
        return "free text"
    if len(words) > 20 and len(words) > 0.8 * total and hint("article_type", name) is None:
        return "almost each product has a value of its own"
    return f"too few labels to learn; about {enough} are needed" if labelled < enough else ""


def _attribute(name: str, labels: Sequence[Sequence[str]], words: Counter[str], least: int) -> DraftAttribute:
    ignored = tuple(word for word in words if fold(word) in _WITHOUT_MEANING and fold(word) != "other")[:20]
    by_word = merge_spellings(
        {w: n for w, n in words.items() if fold(w) not in _WITHOUT_MEANING}, usual_attribute(name)
    )
    counts: Counter[str] = Counter()
    several = 0
    for given in labels:
        names = {by_word[word].name for word in given if word in by_word}
        counts.update(names)
        several += len(names) > 1
    values = {value.name: replace(value, products=counts[value.name]) for value in by_word.values()}
    ordered = sorted(values.values(), key=lambda value: (-value.products, value.name))
    listed = [value for value in ordered if value.products >= least][:MOST_VALUES]
    return DraftAttribute(
        name=snake_case(name),
        label=label_for_people(name),
        field=name.strip(),
        values=tuple(listed),
        products=len(labels),
        multi_valued=several > _SEVERAL * len(labels),
        ignore=ignored,
        rare=tuple(ordered[len(listed) :]),
    )


def choose_article_type(drafts: Drafts, products: Sequence[Product]) -> None:
    """Choose the attribute that says what kind of thing a product is, and make it the first one."""
    single = [a for a in drafts.attributes if a.unlisted == "keep"]
    named = [
        (a.multi_valued, rank, -a.products, a)
        for a in single
        if (rank := hint("article_type", a.field)) is not None and 2 * a.products > len(products)
    ]
    if named:
        chosen = min(named, key=lambda n: n[:3])[3]
        why = "its name"
    else:
        if not (single or drafts.attributes):
            return
        chosen = max(single or drafts.attributes, key=lambda a: (not a.multi_valued, a.products, len(a.values)))
        why = "no label is named like a type; this one has most labels"
    drafts.article_type = chosen.name
    drafts.why_article_type = (
        f"{why}; {chosen.products:,} of {len(products):,} products have one, {len(chosen.values)} values are listed"
    )
    first = replace(chosen, multi_valued=False, why=drafts.why_article_type)
    drafts.attributes = [first, *(a for a in drafts.attributes if a is not chosen)]


def limit_to_types(drafts: Drafts, products: Sequence[Product]) -> None:
    """Set `applies_to` of each attribute to the article types whose products have labels of it."""
    if not drafts.article_type:
        return
    kind = drafts.attributes[0]
    spelled = {fold(word): value.name for value in kind.values for word in (value.name, *value.aliases)}
    types = [
        next((spelled[f] for w in p.labels.get(kind.field, ()) if (f := fold(w)) in spelled), "") for p in products
    ]
    sizes = Counter(types)
    by_field: dict[str, list[tuple[str, list[str]]]] = {}
    for t, product in zip(types, products, strict=True):
        for name, given in product.labels.items():
            by_field.setdefault(name, []).append((t, given))
    for i, attribute in enumerate(drafts.attributes[1:], start=1):
        listed = {fold(word) for value in attribute.values for word in (value.name, *value.aliases)}
        labelled = Counter(t for t, given in by_field.get(attribute.field, ()) if any(fold(w) in listed for w in given))
        total = labelled.total()
        usual_share = total / max(sum(sizes[t] for t in labelled), 1)
        members = [t for t in sizes if t and labelled[t] >= max(1, 0.1 * usual_share * sizes[t])]
        kept, covered = sum(labelled[t] for t in members), sum(sizes[t] for t in members)
        if total and kept >= (1 - _LOST) * total and covered < 0.9 * len(products):
            order = {value.name: n for n, value in enumerate(kind.values)}
            drafts.attributes[i] = replace(attribute, applies_to=tuple(sorted(members, key=order.__getitem__)))


def name_uniquely(drafts: Drafts) -> None:
    """Give each attribute a name of its own, in place."""
    taken: set[str] = set()
    for i, attribute in enumerate(drafts.attributes):
        name, number = attribute.name, 2
        while name in taken:
            name, number = f"{attribute.name[:58]}_{number}", number + 1
        taken.add(name)
        if name != attribute.name:
            if drafts.article_type == attribute.name and i == 0:
                drafts.article_type = name
            drafts.attributes[i] = replace(attribute, name=name)


def snake_case(name: str) -> str:
    """Return a name for an attribute: `base_colour` for ``baseColour``."""
    text = _without_path(name)
    text = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", text.rsplit(".", 1)[-1] or text)
    text = unicodedata.normalize("NFKD", text.replace("ß", "ss")).encode("ascii", "ignore").decode().lower()
    text = re.sub(r"[^a-z0-9]+", "_", text).strip("_")[:60].strip("_")
    if not text or text == "mean":
        return f"attribute_{text}".strip("_")
    return text if text[0].isalpha() else f"attribute_{text}"[:60]


def _without_path(name: str) -> str:
    return re.sub(r"\[[^\]]{0,100}\](\.value)?|\(product\.metafields[^)]{0,200}\)|_(leaf|list)$", "", name[:300])


def label_for_people(name: str) -> str:
    """Return an attribute's name for people: "Base colour" for ``baseColour``."""
    text = _without_path(name)
    text = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", (text.rsplit(".", 1)[-1] or text)).replace("_", " ")
    text = " ".join(text.split()) or "Attribute"
    return (text[:1].upper() + text[1:])[:100]
