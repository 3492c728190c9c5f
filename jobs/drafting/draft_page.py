"""The HTML page of a draft, for people who look before they read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from jobs.drafting.analysis.attribute_drafts import DraftAttribute
from jobs.drafting.analysis.column_profiles import ColumnProfile
from jobs.drafting.analysis.label_columns import LeftOut
from jobs.drafting.analysis.label_promise import labels_to_learn, labels_to_promise, statement
from jobs.drafting.analysis.mapped_products import Product
from jobs.drafting.draft import Draft
from jobs.drafting.draft_pictures import show_pictures
from jobs.pages.html import render
from schemas.taxonomy import Attribute

_COLUMNS: Final = 300  # columns that the page lists
_BARS: Final = 25  # values of an attribute that have a bar
_GALLERY: Final = 12  # products with a picture
_TAGS: Final = 60  # tags that are listed for each reason
_TARGET: Final = Attribute.model_fields["target_precision"].default


@dataclass(frozen=True, slots=True)
class ColumnRow:
    """A column of the export, as the page lists it."""

    profile: ColumnProfile
    role: str
    why: str


@dataclass(frozen=True, slots=True)
class AttributeCard:
    """An attribute, as the page draws it."""

    attribute: DraftAttribute
    promise: str
    level: str  # good: can be promised; look: can be learnt; wrong: too few labels
    suggested: bool = False


def render_draft(made: Draft) -> str:
    """Return the page of a draft."""
    shown = _gallery(made)
    pictures = show_pictures(made.sample.folder, made.mapping.pictures, [p.picture for p in shown if p.picture])
    return render(
        "draft.html.j2",
        draft=made,
        sample=made.sample,
        columns=_columns(made)[:_COLUMNS],
        columns_not_shown=max(len(made.profiles) - _COLUMNS, 0) + made.columns_beyond,
        cards=[*(_card(a) for a in made.drafts.attributes), *(_card(a, suggested=True) for a in made.suggestions)],
        bars=_BARS,
        left_out=made.drafts.left_out,
        tags=_by_reason(made.tags_left_out),
        most_tags=_TAGS,
        gallery=[(product, pictures.get(product.picture, "")) for product in shown],
        addresses=sum(p.picture.startswith(("http://", "https://")) for p in made.products),
        learnable=sum(a.products >= labels_to_learn() for a in made.drafts.attributes),
        promisable=sum(a.products >= labels_to_promise(_TARGET) for a in made.drafts.attributes),
        target=_TARGET,
        learn=labels_to_learn(),
        promise=labels_to_promise(_TARGET),
    )


def _columns(made: Draft) -> list[ColumnRow]:
    labels = made.mapping_draft.labels
    roles: dict[str, list[str]] = {}
    why: dict[str, list[str]] = {}
    for role in made.mapping_draft.roles.chosen:
        for column in made.mapping.source_columns(role.column):
            roles.setdefault(column, []).append(role.field)
            why.setdefault(column, []).append(role.why)
    for column in made.mapping.source_columns(*made.mapping.labels, *made.mapping.label_objects):
        roles.setdefault(column, []).append("labels")
        if column in labels.why:
            why.setdefault(column, []).append(labels.why[column])
    for column in made.mapping.source_columns(*made.mapping.picture_columns):
        roles.setdefault(column, []).append("picture")
    reasons = {left.name: left.reason for left in labels.left_out}
    rows = [
        ColumnRow(p, ", ".join(dict.fromkeys(roles.get(name, ()))), "; ".join(dict.fromkeys(why.get(name, ()))) or reasons.get(name, ""))
        for name, p in made.profiles.items()
    ]  # fmt: skip
    return sorted(rows, key=lambda row: not row.role)


def _card(attribute: DraftAttribute, suggested: bool = False) -> AttributeCard:
    level = (
        "good"
        if attribute.products >= labels_to_promise(_TARGET)
        else "look"
        if attribute.products >= labels_to_learn()
        else "wrong"
    )
    return AttributeCard(attribute, statement(attribute.products, len(attribute.values), _TARGET), level, suggested)


def _by_reason(left_out: Sequence[LeftOut]) -> list[tuple[str, int, list[LeftOut]]]:
    """Return the reasons with their number of tags and the tags, the most frequent ones first."""
    reasons = Counter(left.reason for left in left_out)
    return [(reason, n, [left for left in left_out if left.reason == reason]) for reason, n in reasons.most_common()]


def _gallery(made: Draft) -> list[Product]:
    """Return products of different article types, those with a picture first."""
    kind = made.drafts.attributes[0].field if made.drafts.attributes else ""
    by_type: dict[str, Product] = {}
    for product in made.products:
        key = next(iter(product.labels.get(kind, ())), product.product_id)
        if key not in by_type or (product.picture and not by_type[key].picture):
            by_type[key] = product
        if len(by_type) > 40 * _GALLERY:
            break
    return sorted(by_type.values(), key=lambda p: not p.picture)[:_GALLERY]
