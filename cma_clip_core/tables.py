"""Metrics as Markdown tables, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cma_clip_core.documents import AttributeMetrics, Interval, MethodMetrics, Threshold


def comparison(methods: Sequence[MethodMetrics]) -> str:
    """Return methods by attributes: recall at 90 % precision, in %, with 95 % intervals where they were drawn.

    The last columns are the means over the attributes, of all labels and of those that no text names. In bold: the best
    of a column.
    """
    names = list(dict.fromkeys(name for method in methods for name in method.attributes))
    columns: dict[str, list[tuple[float | None, Interval | None]]] = {
        name: [
            (m.recall_at_90, m.recall_at_90_interval) if (m := method.attributes.get(name)) else (None, None)
            for method in methods
        ]
        for name in names
    }
    columns["mean"] = [(m.mean_recall_at_90, m.mean_recall_at_90_interval) for m in methods]
    columns["mean, silent"] = [(m.mean_silent_recall_at_90, m.mean_silent_recall_at_90_interval) for m in methods]
    best = {name: max((v for v, _ in cells if v is not None), default=None) for name, cells in columns.items()}
    rows = []
    for at, method in enumerate(methods):
        cells = []
        for name, column in columns.items():
            value, interval = column[at]
            bold = "**" if len(methods) > 1 and value is not None and value == best[name] else ""
            cells.append(f"{bold}{percent(value)}{bold}{_range(interval)}")
        rows.append([method.method, *cells])
    return markdown(["method", *columns], rows)


def one_model(metrics: Mapping[str, AttributeMetrics]) -> str:
    """Return how good one model is, attribute by attribute, whatever is accepted."""
    header = [
        "attribute", "n", "silent", "accuracy", "macro F1", "average precision", "recall at 90 %", "of the silent",
        "target", "recall at target", "calibration error", "text", "image",
    ]  # fmt: skip
    return markdown(
        header,
        [
            [
                name, f"{m.n:,}", f"{m.n_silent:,}", number(m.accuracy), number(m.macro_f1),
                number(m.average_precision), f"{percent(m.recall_at_90)}{_range(m.recall_at_90_interval)}",
                f"{percent(m.silent_recall_at_90)}{_range(m.silent_recall_at_90_interval)}",
                f"{m.target_precision:.2f}", number(m.recall_at_target), number(m.calibration_error),
                f"{m.text_weight:.2f}", f"{m.image_weight:.2f}",
            ]
            for name, m in metrics.items()
        ],
    )  # fmt: skip


def shipped(metrics: Mapping[str, AttributeMetrics], thresholds: Mapping[str, Threshold]) -> str:
    """Return what the thresholds that ship do."""
    header = [
        "attribute", "target", "threshold", "values with their own", "temperature", "precision", "recall", "coverage",
    ]  # fmt: skip
    return markdown(
        header,
        [
            [
                name, f"{m.target_precision:.2f}", number((t := thresholds[name]).threshold), f"{len(t.values)}",
                f"{t.temperature:.2f}", number(m.precision), number(m.recall), number(m.coverage),
            ]
            for name, m in metrics.items()
        ],
    )  # fmt: skip


def own_thresholds(thresholds: Mapping[str, Threshold]) -> str:
    """Return the values that have a threshold of their own; empty where none has."""
    rows = [[name, value, number(limit)] for name, t in thresholds.items() for value, limit in t.values.items()]
    return markdown(["attribute", "value", "threshold"], rows) if rows else ""


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def number(value: float | None) -> str:
    """Return a number with three decimals, or a dash."""
    return "-" if value is None else f"{value:.3f}"


def percent(value: float | None) -> str:
    """Return a share in percent with one decimal, or a dash."""
    return "-" if value is None else f"{100 * value:.1f}"


def _range(interval: Interval | None) -> str:
    return "" if interval is None else f" ({100 * interval.low:.1f} to {100 * interval.high:.1f})"
