"""HTML of a night's page and of the list of nights."""

from __future__ import annotations

import os
from collections.abc import Sequence
from urllib.parse import quote

from cma_clip_core.content.paths import AnyPath, on_disk
from jobs.pages.html import render
from jobs.report import svg_plots
from jobs.report.costs import Costs
from jobs.report.facts import BINS, AttributeFacts, Night
from jobs.report.findings import findings
from schemas.documents import Ledger

_SHARES = 8  # values drawn per attribute
_UNKNOWN = 14  # unlisted labels in the list
_SHIFTS = 8  # shifts listed above the attributes
_LEAST_SHIFT = 0.002
_LEAST_SCALE = 0.02  # keeps a small shift short on the page


def render_night(night: Night, costs: Costs, folder: AnyPath, spent: float) -> str:
    """Return the page of a night.

    Args:
        night: the facts to show.
        costs: the cost of its steps.
        folder: where the page will be written; links are relative to it.
        spent: seconds that the report has taken so far.
    """
    ledger = night.ledger
    shifts = [s for s in night.shifts if abs(s.shift) >= _LEAST_SHIFT][:_SHIFTS]
    return render(
        "night.html.j2",
        night=night,
        ledger=ledger,
        plan=night.plan,
        costs=costs,
        spent=spent,
        findings=findings(night),
        equations=equations(ledger),
        tagged=ledger.tagged_both + ledger.tagged_text + ledger.tagged_image,
        rejected=ledger.unparsable + ledger.quarantined + ledger.superseded,
        coverage=_coverage(night.attributes),
        gaps=_gaps(night.attributes),
        conflicts=sum(a.conflicts for a in night.attributes),
        shifts=shifts,
        widest=max((_LEAST_SCALE, *(abs(s.shift) for s in shifts))),
        labels={a.name: a.label for a in night.attributes},
        shown_shares=_SHARES,
        shown_unknown=_UNKNOWN,
        bins=BINS,
        flow=svg_plots.flow,
        histogram=svg_plots.histogram,
        modality=svg_plots.modality,
        data_docs=_link(_page_of(night.data_docs), folder),
        index=_link(folder.parents[1] / "index.html", folder),
    )


def render_index(
    ledgers: Sequence[Ledger], reported: frozenset[str], live: str | None, broken: Sequence[str] = ()
) -> str:
    """Return the page that lists nights.

    Args:
        ledgers: one per night, in the order of the page.
        reported: runs that have a page of their own.
        live: the live run.
        broken: runs whose ledger cannot be read.
    """
    return render(
        "index.html.j2",
        ledgers=ledgers,
        reported=reported,
        live=live,
        broken=broken,
        largest=max((n.raw for n in ledgers), default=1) or 1,
    )


def equations(ledger: Ledger) -> list[tuple[str, int, list[tuple[str, int]], bool]]:
    """Return the ledger's equations: name and number of the whole, its parts, and whether the parts add up to it."""
    tagged: list[tuple[str, int]] = [
        ("tagged by both", ledger.tagged_both),
        ("by text", ledger.tagged_text),
        ("by picture", ledger.tagged_image),
        ("untaggable", ledger.untaggable),
    ]
    held = [("held for their picture", ledger.held_pictures)] if ledger.held_pictures else []
    waiting = f" ({ledger.waiting:,} of them waiting)" if ledger.waiting else ""
    lines: list[tuple[str, int, list[tuple[str, int]]]] = [
        (
            "raw lines",
            ledger.raw,
            [
                ("unparsable", ledger.unparsable),
                ("quarantined", ledger.quarantined),
                ("superseded", ledger.superseded),
                ("valid", ledger.valid),
            ],
        ),
        (
            "valid",
            ledger.valid,
            [(f"unchanged{waiting}", ledger.unchanged), *tagged, *held],
        ),
        (
            "tagged or untaggable",
            sum(n for _, n in tagged),
            [("new", ledger.new), ("changed", ledger.changed), ("model changed", ledger.model_changed)],
        ),
    ]
    if not ledger.backfill:
        lines.append(
            ("products published", ledger.published_products, [("valid", ledger.valid), ("held", ledger.held)])
        )
    return [(name, whole, parts, whole == sum(n for _, n in parts)) for name, whole, parts in lines]


def _coverage(attributes: Sequence[AttributeFacts]) -> float | None:
    products = sum(a.products for a in attributes)
    return sum(a.products - a.missing for a in attributes) / products if products else None


def _gaps(attributes: Sequence[AttributeFacts]) -> tuple[int, int]:
    """Return the number of gaps in the catalog and how many of them the model filled."""
    filled = sum(a.from_model for a in attributes)
    return filled + sum(a.missing for a in attributes), filled


def _page_of(docs: AnyPath) -> AnyPath:
    """Return the page of the rules. Older documents name its folder instead of the page."""
    return docs / "index.html" if on_disk(docs) and docs.is_dir() else docs


def _link(target: AnyPath, folder: AnyPath) -> str:
    return quote(os.path.relpath(str(target), str(folder)), safe="/=")
