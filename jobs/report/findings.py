"""Findings that a person should look at after a night, each with its section of the page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from jobs.pages.display_text import count, percent, points
from jobs.report.facts import Night
from jobs.validation.parse_records import FIRST_OF_SEVERAL

Level = Literal["wrong", "look", "note"]

_REJECTED = 0.02  # share of raw lines that are unparsable or quarantined
_WITHOUT_PICTURE = 0.10  # share of tagged products
_REMOVED = 0.05  # share of the products before
_SHIFT = 0.05  # change of a value's share
_SHIFT_ROWS = 50  # with fewer values of an attribute, a shift says little
_LEVELS: Final[tuple[Level, ...]] = ("wrong", "look", "note")


@dataclass(frozen=True, slots=True)
class Finding:
    """A fact that a person should look at."""

    level: Level
    text: str
    section: str  # id of the section that shows it


def findings(night: Night) -> list[Finding]:
    """Return the findings of a night, the most urgent first."""
    unsorted = [*_ledger(night), *_records(night), *_attributes(night)]
    return sorted(unsorted, key=lambda f: _LEVELS.index(f.level))


def _ledger(night: Night) -> list[Finding]:
    ledger, result = night.ledger, []
    for difference in ledger.differences():
        result.append(Finding("wrong", f"The ledger does not add up: {difference}.", "ledger"))
    if ledger.backfill:
        result.append(
            Finding(
                "note",
                "This is a backfill: it changed the history of its day and left the live tables alone.",
                "ledger",
            )
        )
    elif night.manifest is None:
        result.append(Finding("note", f"Nothing changed; the tables are those of {night.plan.base_run}.", "ledger"))
    before = ledger.published_products + ledger.removed - ledger.new
    if before > 0 and ledger.removed > _REMOVED * before and not ledger.backfill:
        result.append(
            Finding("look", f"{percent(ledger.removed / before)} of the products are gone from the catalog.", "ledger")
        )
    if ledger.held:
        result.append(
            Finding(
                "look",
                f"{count(ledger.held, 'product keeps its', 'products keep their')} published values: today's record is, "
                "or may be, quarantined.",
                "quarantine",
            )
        )
    if ledger.held_pictures:
        result.append(
            Finding(
                "look",
                f"{count(ledger.held_pictures, 'product keeps its', 'products keep their')} published values: the picture "
                "of the last tagging is missing today.",
                "pictures",
            )
        )
    if ledger.model_changed:
        replaced = ", ".join(a.label for a in night.attributes if a.name in night.plan.attributes)
        limit = f" and replaced only {replaced}; other values are unchanged" if replaced else ""
        result.append(
            Finding("note", f"A new model tagged {count(ledger.model_changed, 'product')} again{limit}.", "attributes")
        )
    if ledger.waiting:
        result.append(
            Finding(
                "note",
                f"{count(ledger.waiting, 'product waits', 'products wait')} for a later night to be tagged by the new model.",
                "ledger",
            )
        )
    return result


def _records(night: Night) -> list[Finding]:
    ledger, result = night.ledger, []
    rejected = ledger.unparsable + ledger.quarantined
    if rejected > _REJECTED * ledger.raw:
        result.append(
            Finding("look", f"{percent(rejected / ledger.raw)} of the raw lines are not usable.", "quarantine")
        )
    tagged = ledger.tagged_both + ledger.tagged_text + ledger.tagged_image + ledger.untaggable
    without = sum(p.products for p in night.picture_problems)
    if tagged and without > _WITHOUT_PICTURE * tagged:
        result.append(
            Finding("look", f"{percent(without / tagged)} of the tagged products have no usable picture.", "pictures")
        )
    if ledger.untaggable:
        result.append(
            Finding(
                "look",
                f"{count(ledger.untaggable, 'product has', 'products have')} neither usable text nor a usable picture.",
                "pictures",
            )
        )
    if night.notes:
        fields = sum(note.products for note in night.notes if note.name != FIRST_OF_SEVERAL)
        if fields:
            result.append(
                Finding("look", f"{count(fields, 'field of a record is', 'fields of records are')} not used.", "notes")
            )
    if night.mistyped_labels:
        labels = sum(c.n for c in night.mistyped_labels)
        result.append(Finding("look", f"{count(labels, 'label', 'labels')} cannot be read.", "labels"))
    if night.unknown_total:
        result.append(
            Finding("note", f"{count(night.unknown_total, 'label is', 'labels are')} outside the taxonomy.", "labels")
        )
    return result


def _attributes(night: Night) -> list[Finding]:
    result = []
    silent = [a.label for a in night.attributes if a.threshold is not None and a.threshold.lowest() is None]
    if silent:
        result.append(
            Finding(
                "look",
                f"No threshold keeps the promised precision for {', '.join(silent)}, so none of the model's values is used.",
                "attributes",
            )
        )
    for share in night.shifts[:3]:
        facts = next(a for a in night.attributes if a.name == share.attribute)
        if abs(share.shift) >= _SHIFT and sum(s.n for s in facts.shares) >= _SHIFT_ROWS:
            result.append(
                Finding("look", f"{facts.label}: the share of {share.value} moved by {points(share.shift)}.", "shares")
            )
    suspects = sum(a.suspects for a in night.attributes)
    if suspects:
        result.append(
            Finding(
                "note",
                f"{count(suspects, 'label')} of the products tagged in this run "
                f"{'looks' if suspects == 1 else 'look'} wrong.",
                "conflicts",
            )
        )
    return result
