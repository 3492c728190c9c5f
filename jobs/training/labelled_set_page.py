"""The HTML page of a labelled set."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from cma_clip_core.catalog.unlisted_values import Given
from jobs.pages.html import render
from jobs.training.labelled_summary import Summary
from schemas.documents import LabelledManifest

_VALUES = 12  # drawn values of an attribute
_RARE = 20  # training labels; a value with fewer can hardly be learnt


def render_set(manifest: LabelledManifest, summary: Summary, given: Mapping[str, Given]) -> str:
    """Return the page of a labelled set; `given` are the counts of given values by attribute."""
    inputs = manifest.inputs
    return render(
        "labelled.html.j2",
        set=manifest,
        summary=summary,
        given=[(summary.label(name), values) for name, values in given.items()],
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
        lengths=lengths,
    )


_LENGTHS_WIDTH, _LENGTHS_HEIGHT, _LENGTHS_BARS = 600, 120, 40


def lengths(counts: npt.NDArray[np.int64], colour: str) -> Markup:
    """Draw a histogram of text lengths; `counts` [n + 1] are the texts of 0, 1, ... words, and last those of n or more."""
    bin_words = max(1, (len(counts) - 1) // _LENGTHS_BARS)
    bins = [(start, int(counts[start : start + bin_words].sum())) for start in range(0, len(counts), bin_words)]
    step, tallest = _LENGTHS_WIDTH / len(bins), max(n for _, n in bins) or 1
    parts = []
    for i, (start, n) in enumerate(bins):
        height = max(1.0, n / tallest * (_LENGTHS_HEIGHT - 12)) if n else 0
        words = (
            f"{start} or more"
            if i == len(bins) - 1
            else f"{start}"
            if bin_words == 1
            else f"{start} to {start + bin_words - 1}"
        )
        parts.append(f'<rect class="f-{colour}" x="{i * step:.1f}" y="{_LENGTHS_HEIGHT - height:.1f}" '
                     f'width="{step - 1:.1f}" height="{height:.1f}"><title>{words} words: {n:,}</title></rect>')  # fmt: skip
        if i % max(1, len(bins) // 5) == 0 or i == len(bins) - 1:
            parts.append(f'<text class="small" x="{(i + 0.5) * step:.1f}" y="{_LENGTHS_HEIGHT + 13}" '
                         f'text-anchor="middle">{start}{"+" if i == len(bins) - 1 else ""}</text>')  # fmt: skip
    return Markup(
        f'<svg viewBox="-4 0 {_LENGTHS_WIDTH + 16} {_LENGTHS_HEIGHT + 18}" width="100%" role="img" '
        f'aria-label="Words per text">{"".join(parts)}<line class="axis" x1="0" x2="{_LENGTHS_WIDTH}" '
        f'y1="{_LENGTHS_HEIGHT + 0.5}" y2="{_LENGTHS_HEIGHT + 0.5}"/></svg>'
    )
