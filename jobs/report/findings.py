"""What a person should look at after a night: each finding with its section of the page."""

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
_SHIFT = 0.05  # of a value's share
_SHIFT_ROWS = 50  # values of an attribute below which a shift says little
_LEVELS: Final[tuple[Level, ...]] = ("wrong", "look", "note")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to look at."""

    level: Level
    text: str
    section: str  # id of the section it is about


def findings(night: Night) -> list[Finding]:
    """Return what to look at, the most urgent first."""
    found = [*_ledger(night), *_records(night), *_attributes(night)]
    return sorted(found, key=lambda f: _LEVELS.index(f.level))


def _ledger(night: Night) -> list[Finding]:
    ledger, found = night.ledger, []
    for difference in ledger.differences():
        found.append(Finding("wrong", f"The ledger does not add up: {difference}.", "ledger"))
    if ledger.backfill:
        found.append(
            Finding("note", "A backfill: it changed the history of its day and left the live tables alone.", "ledger")
        )
    elif night.manifest is None:
        found.append(Finding("note", f"Nothing changed; the tables are those of {night.plan.base_run}.", "ledger"))
    before = ledger.published_products + ledger.removed - ledger.new
    if before > 0 and ledger.removed > _REMOVED * before and not ledger.backfill:
        found.append(
            Finding("look", f"{percent(ledger.removed / before)} of the products are gone from the catalog.", "ledger")
        )
    if ledger.held:
        found.append(
            Finding(
                "look",
                f"{count(ledger.held, 'product is', 'products are')} kept as they were: today's record is, or may be, quarantined.",
                "quarantine",
            )
        )
    if ledger.held_pictures:
        found.append(
            Finding(
                "look",
                f"{count(ledger.held_pictures, 'product is', 'products are')} kept with the picture by which "
                f"{'it was' if ledger.held_pictures == 1 else 'they were'} tagged: it is not there today.",
                "pictures",
            )
        )
    if ledger.model_changed:
        alone = ", ".join(a.label for a in night.attributes if a.name in night.plan.attributes)
        what = f": {alone} alone, their other values are as they were" if alone else ""
        found.append(
            Finding("note", f"A new model tagged {count(ledger.model_changed, 'product')} again{what}.", "attributes")
        )
    if ledger.waiting:
        found.append(
            Finding(
                "note",
                f"{count(ledger.waiting, 'product waits', 'products wait')} for a later night to be tagged by the new model.",
                "ledger",
            )
        )
    return found


def _records(night: Night) -> list[Finding]:
    ledger, found = night.ledger, []
    rejected = ledger.unparsable + ledger.quarantined
    if rejected > _REJECTED * ledger.raw:
        found.append(
            Finding("look", f"{percent(rejected / ledger.raw)} of the raw lines are not usable.", "quarantine")
        )
    tagged = ledger.tagged_both + ledger.tagged_text + ledger.tagged_image + ledger.untaggable
    without = sum(p.products for p in night.picture_problems)
    if tagged and without > _WITHOUT_PICTURE * tagged:
        found.append(
            Finding("look", f"{percent(without / tagged)} of the tagged products have no usable picture.", "pictures")
        )
    if ledger.untaggable:
        found.append(
            Finding(
                "look", f"{count(ledger.untaggable, 'product has', 'products have')} nothing to tag by.", "pictures"
            )
        )
    if night.notes:
        fields = sum(note.products for note in night.notes if note.name != FIRST_OF_SEVERAL)
        if fields:
            found.append(
                Finding("look", f"{count(fields, 'field of a record is', 'fields of records are')} not used.", "notes")
            )
    if night.mistyped_labels:
        labels = sum(c.n for c in night.mistyped_labels)
        found.append(Finding("look", f"{count(labels, 'label', 'labels')} cannot be read.", "labels"))
    if night.unknown_total:
        found.append(
            Finding("note", f"{count(night.unknown_total, 'label is', 'labels are')} outside the taxonomy.", "labels")
        )
    return found


def _attributes(night: Night) -> list[Finding]:
    found = []
    silent = [a.label for a in night.attributes if a.threshold is not None and a.threshold.lowest() is None]
    if silent:
        found.append(
            Finding(
                "look",
                f"No threshold keeps the promised precision of {', '.join(silent)}: none of the model's values is used.",
                "attributes",
            )
        )
    for share in night.shifts[:3]:
        facts = next(a for a in night.attributes if a.name == share.attribute)
        if abs(share.shift) >= _SHIFT and sum(s.n for s in facts.shares) >= _SHIFT_ROWS:
            found.append(
                Finding("look", f"{facts.label}: the share of {share.value} moved by {points(share.shift)}.", "shares")
            )
    suspects = sum(a.suspects for a in night.attributes)
    if suspects:
        found.append(
            Finding(
                "note",
                f"{count(suspects, 'label')} of the products tagged in this run "
                f"{'looks' if suspects == 1 else 'look'} wrong.",
                "conflicts",
            )
        )
    return found
