"""The pages: a night's report, the list of nights, the rules of a day, and a labelled set."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from cma_clip_core.catalog.unlisted_values import Given
from cma_clip_core.content.paths import Place, on_disk
from jobs.pages import display_text
from jobs.report import svg_plots
from jobs.report.costs import Costs
from jobs.report.facts import BINS, AttributeFacts, Night
from jobs.report.findings import findings
from jobs.training.labelled_summary import Summary
from schemas.documents import LabelledManifest, Ledger, Validation
from schemas.taxonomy import Taxonomy

if TYPE_CHECKING:
    from cma_clip_core.evaluation.label_errors import Suspect
    from jobs.validation.batch_rules import Outcome
    from jobs.validation.rule_examples import Example

_SHARES = 8  # values of an attribute that are drawn
_UNKNOWN = 14  # unknown labels that are listed
_SHIFTS = 8  # that are listed on top
_LEAST_SHIFT = 0.002
_VALUES = 12  # values of an attribute of a labelled set that are drawn
_RARE = 20  # training labels below which a value can hardly be learnt
_LEAST_SCALE = 0.02  # so that a small shift looks small


def render_night(night: Night, costs: Costs, folder: Place, spent: float) -> str:
    """Return the page of a night, to be written into `folder`; `spent` are the seconds the report took so far."""
    ledger = night.ledger
    shifts = [s for s in night.shifts if abs(s.shift) >= _LEAST_SHIFT][:_SHIFTS]
    return _environment().get_template("night.html.j2").render(
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
        data_docs=_link(_page_of(night.data_docs), folder),
        index=_link(folder.parents[1] / "index.html", folder),
    )  # fmt: skip


def render_index(
    ledgers: Sequence[Ledger], reported: frozenset[str], live: str | None, broken: Sequence[str] = ()
) -> str:
    """Return the page that lists the nights of `ledgers`; those in `reported` have a page of their own.

    Args:
        ledgers: in the order of the page.
        reported: runs with a page.
        live: the live run.
        broken: runs whose ledger cannot be read.
    """
    return (
        _environment()
        .get_template("index.html.j2")
        .render(
            ledgers=ledgers,
            reported=reported,
            live=live,
            broken=broken,
            largest=max((n.raw for n in ledgers), default=1) or 1,
        )
    )


def render_rules(validation: Validation, outcomes: Sequence[Outcome], examples: Mapping[str, Sequence[Example]]) -> str:
    """Return the page of the rules that a day's records were checked by; `examples` are by the rule's name."""
    failed = [outcome for outcome in outcomes if not outcome.passed]
    shown = [outcome for outcome in outcomes if examples.get(outcome.rule.name)]
    return (
        _environment()
        .get_template("rules.html.j2")
        .render(validation=validation, outcomes=outcomes, failed=failed, shown=shown, examples=examples)
    )


def render_set(manifest: LabelledManifest, summary: Summary, given: Mapping[str, Given]) -> str:
    """Return the page of a labelled set; `given` is what the catalog gives of each attribute."""
    inputs = manifest.inputs
    return _environment().get_template("labelled.html.j2").render(
        set=manifest,
        summary=summary,
        given=[(summary.label(name), found) for name, found in given.items()],
        attributes=summary.attributes(),
        labels_by_side=summary.labels_by_side(),
        families_by_side=summary.families_by_side(),
        sizes=summary.family_sizes(),
        families=summary.largest_families(),
        examples=summary.examples(),
        pictures=summary.pictures(inputs.picture_height, inputs.picture_width),
        shares={
            "train": 1 - inputs.validation_share - inputs.test_share,
            "validation": inputs.validation_share,
            "test": inputs.test_share,
        },
        shown_values=_VALUES,
        rare=_RARE,
    )  # fmt: skip


def render_suspects(
    ds: str,
    taxonomy: Taxonomy,
    listed: Sequence[Suspect],
    labels: Mapping[str, int],
    shown: int,
    folds: int,
    pictures: Mapping[str, str],
    titles: Mapping[str, str],
) -> str:
    """Return the page of suspected wrong labels; `labels` are how many of each attribute were looked at."""
    by_attribute = [(a, [s for s in listed if s.attribute == a.name]) for a in taxonomy.attributes]
    return _environment().get_template("suspects.html.j2").render(
        ds=ds,
        by_attribute=by_attribute,
        labels=labels,
        shown=shown,
        folds=folds,
        pictures=pictures,
        titles=titles,
        total=len(listed),
        looked_at=sum(labels.values()),
        widest=max((len(s) / max(labels[a.name], 1) for a, s in by_attribute), default=1) or 1,
    )  # fmt: skip


def equations(ledger: Ledger) -> list[tuple[str, int, list[tuple[str, int]], bool]]:
    """Return the ledger's equations: name and number of the whole, its parts, and whether they add up."""
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
    """Return how many values the catalog lacks, listed or not, and how many of them the model gave."""
    filled = sum(a.from_model for a in attributes)
    return filled + sum(a.missing for a in attributes), filled


def _page_of(docs: Place) -> Place:
    """Return the page of the rules, also of a lake whose documents name its folder."""
    return docs / "index.html" if on_disk(docs) and docs.is_dir() else docs


def _link(target: Place, folder: Place) -> str:
    return quote(os.path.relpath(str(target), str(folder)), safe="/=")


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,  # whatever the template's name ends in
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "n": lambda value: f"{value:,}",
        "percent": display_text.percent,
        "points": display_text.points,
        "seconds": display_text.seconds,
        "bytes": display_text.human_bytes,
        "visible": display_text.visible,
        "width": _width,
        "count": display_text.count,
    }
    environment.globals |= {
        "flow": svg_plots.flow,
        "histogram": svg_plots.histogram,
        "lengths": svg_plots.lengths,
        "modality": svg_plots.modality,
        "rate": display_text.rate,
    }
    return environment


def _width(part: float, whole: float, least: float = 0.4) -> Markup:
    """Return a bar's width as CSS; what is more than nothing is seen."""
    share = 100 * part / whole if whole else 0.0
    return Markup(f"width:{max(share, least) if part else 0:.2f}%")
