"""Plots as inline SVG: sharp at any size, a few kilobytes each, without a plotting library.

Colours are CSS classes of the page, so each category has the same colour in every plot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from jobs.pages.display_text import percent
from jobs.report.facts import BINS, AttributeFacts
from schemas.documents import Ledger

_WIDTH, _HEIGHT = 1240, 350  # of the flow diagram
_NODE, _PITCH, _TOP = 14, 40, 26  # width of a node; least distance of nodes (for their labels); height of headings


@dataclass(slots=True)
class _Node:
    name: str
    n: int
    colour: str
    y: float = 0.0
    height: float = 0.0
    used: dict[str, float] = field(default_factory=lambda: {"in": 0.0, "out": 0.0})  # offset of the next ribbon


def flow(ledger: Ledger) -> Markup:
    """Draw the flow of the raw lines through checking and tagging into the tables."""
    raw = _Node("raw lines", ledger.raw, "raw")
    valid = _Node("valid", ledger.valid, "valid")
    rejected = [
        _Node("superseded", ledger.superseded, "superseded"),
        _Node("quarantined", ledger.quarantined, "quarantined"),
        _Node("unparsable", ledger.unparsable, "unparsable"),
    ]
    kept = _Node("unchanged", ledger.unchanged, "unchanged")
    done = [
        kept,
        _Node("tagged by both", ledger.tagged_both, "both"),
        _Node("tagged by text", ledger.tagged_text, "text"),
        _Node("tagged by picture", ledger.tagged_image, "image"),
        _Node("untaggable", ledger.untaggable, "none"),
        _Node("held for their picture", ledger.held_pictures, "held"),
    ]
    columns = [[raw], [valid, *rejected], done]
    links = [(raw, node, node.n) for node in columns[1]] + [(valid, node, node.n) for node in done]
    headings = ["catalog of the day", "checked", "tagged"]
    if not ledger.backfill:
        held = _Node("held as they were", ledger.held, "held")
        tables = _Node("in the tables", ledger.published_products, "valid")
        columns = [[raw], [valid, *rejected], [*done, *([held] if held.n else [])], [tables]]
        links += [(node, tables, node.n) for node in columns[2]]
        headings.append("published")
    columns = [[node for node in column if node.n] or [column[0]] for column in columns]
    return _sankey(columns, [link for link in links if link[2]], headings)


def _sankey(
    columns: Sequence[Sequence[_Node]], links: Sequence[tuple[_Node, _Node, int]], headings: Sequence[str]
) -> Markup:
    largest = max(sum(node.n for node in column) for column in columns) or 1
    room = _HEIGHT - _TOP - _PITCH * max(len(column) - 1 for column in columns)
    scale = room / largest
    step = (_WIDTH - 190) / (len(columns) - 1)
    parts = []
    shapes, labels = [], []
    for i, column in enumerate(columns):
        y = float(_TOP)
        for node in column:
            node.y, node.height = y, max(2.0, node.n * scale)
            y += max(node.height + 14, _PITCH)
            shapes.append(f'<rect class="f-{node.colour}" x="{i * step:.1f}" y="{node.y:.1f}" width="{_NODE}" '
                          f'height="{node.height:.1f}" rx="2"/>')  # fmt: skip
            middle = node.y + min(node.height / 2, 60)
            labels.append(
                f'<text x="{i * step + _NODE + 8:.1f}" y="{max(middle, node.y + 9):.1f}">'
                f'<tspan class="b">{node.n:,}</tspan> {node.name}</text>'
            )
        labels.append(f'<text class="head" x="{i * step:.1f}" y="12">{headings[i]}</text>')
    column_of = {id(node): i for i, column in enumerate(columns) for node in column}
    for source, target, n in links:
        if id(source) not in column_of or id(target) not in column_of:
            continue
        x0, x1 = column_of[id(source)] * step + _NODE, column_of[id(target)] * step
        y0, y1 = source.y + source.used["out"], target.y + target.used["in"]
        thick = max(1.5, n * scale)
        source.used["out"] += n * scale
        target.used["in"] += n * scale
        middle = (x0 + x1) / 2
        parts.append(
            f'<path class="f-{target.colour if target.colour != "valid" or source.colour == "raw" else source.colour} '
            f'ribbon" d="M{x0:.1f},{y0:.1f} C{middle:.1f},{y0:.1f} {middle:.1f},{y1:.1f} {x1:.1f},{y1:.1f} '
            f"L{x1:.1f},{y1 + thick:.1f} C{middle:.1f},{y1 + thick:.1f} {middle:.1f},{y0 + thick:.1f} "
            f'{x0:.1f},{y0 + thick:.1f} Z"/>'
        )
    bottom = max(node.y + max(node.height, 20) for column in columns for node in column) + 4
    return Markup(
        f'<svg class="flow" viewBox="0 0 {_WIDTH} {bottom:.0f}" role="img" aria-label="Flow of the day\'s records">'
        f"{''.join(parts)}{''.join(shapes)}{''.join(labels)}</svg>"
    )


_BAR, _PLOT, _AXIS = 7, 60, 14  # width of a bin; heights of the plot and of the axis


def histogram(facts: AttributeFacts) -> Markup:
    """Draw the confidences of an attribute's predictions, accepted ones in another colour, and its lowest threshold."""
    width = BINS * _BAR
    tallest = max((a + o for a, o in facts.histogram), default=0) or 1
    bars = []
    for i, (accepted, others) in enumerate(facts.histogram):
        y = float(_PLOT)
        for n, colour in ((accepted, "model"), (others, "rest")):
            if n:
                height = max(1.0, n / tallest * (_PLOT - 14))
                y -= height
                bars.append(f'<rect class="f-{colour}" x="{i * _BAR}" y="{y:.1f}" width="{_BAR - 1}" height="{height:.1f}">'
                            f"<title>{i / BINS:.3f} to {(i + 1) / BINS:.3f}: {n:,} "
                            f"{'accepted' if colour == 'model' else 'not accepted'}</title></rect>")  # fmt: skip
    threshold = facts.threshold.lowest() if facts.threshold else None
    mark = ""
    if threshold is not None:
        x = threshold * width
        anchor, shift = ("end", -4) if threshold > 0.5 else ("start", 4)
        mark = (
            f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{_PLOT}"/>'
            f'<text class="small halo" x="{x + shift:.1f}" y="9" text-anchor="{anchor}">≥ {threshold:.3f}</text>'
        )
    return Markup(
        f'<svg class="histogram" viewBox="0 0 {width} {_PLOT + _AXIS}" width="{width}" height="{_PLOT + _AXIS}" '
        f'role="img" aria-label="Confidence of {facts.predicted} predictions">{"".join(bars)}'
        f'<line class="axis" x1="0" x2="{width}" y1="{_PLOT + 0.5}" y2="{_PLOT + 0.5}"/>{mark}'
        f'<text class="small" x="0" y="{_PLOT + 12}">0</text>'
        f'<text class="small" x="{width / 2}" y="{_PLOT + 12}" text-anchor="middle">0.5</text>'
        f'<text class="small" x="{width}" y="{_PLOT + 12}" text-anchor="end">1</text></svg>'
    )


def modality(facts: AttributeFacts) -> Markup:
    """Draw the mean weights of text and picture; a line spans the middle half of the products."""
    if facts.image_weight is None:
        return Markup('<span class="none">no product has both</span>')
    width, text = 150, 1 - facts.image_weight
    # The picture's bar starts at the right edge, so its quartiles are mirrored.
    low, high = (1 - q for q in reversed(facts.image_quartiles))
    return Markup(
        f'<svg class="modality" viewBox="0 0 {width} 30" width="{width}" height="30" role="img" '
        f'aria-label="text {percent(text)}, picture {percent(facts.image_weight)}">'
        f'<rect class="f-text" x="0" y="0" width="{text * width:.1f}" height="14"/>'
        f'<rect class="f-image" x="{text * width:.1f}" y="0" width="{facts.image_weight * width:.1f}" height="14"/>'
        f'<line class="whisker" x1="{low * width:.1f}" x2="{high * width:.1f}" y1="7" y2="7"/>'
        f'<line class="whisker" x1="{low * width:.1f}" x2="{low * width:.1f}" y1="4" y2="10"/>'
        f'<line class="whisker" x1="{high * width:.1f}" x2="{high * width:.1f}" y1="4" y2="10"/>'
        f'<text class="small" x="0" y="26">{text:.0%} text</text>'
        f'<text class="small" x="{width}" y="26" text-anchor="end">{facts.image_weight:.0%} picture</text></svg>'
    )
