"""The HTML page of suspected wrong labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cma_clip_core.evaluation.label_errors import Suspect
from jobs.pages.html import render
from schemas.taxonomy import Taxonomy


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
    """Return the page of suspected wrong labels; `labels` is the number of checked labels by attribute."""
    by_attribute = [(a, [s for s in listed if s.attribute == a.name]) for a in taxonomy.attributes]
    return render(
        "suspects.html.j2",
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
    )
