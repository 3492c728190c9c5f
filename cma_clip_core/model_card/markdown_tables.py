"""Markdown tables of metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Final

from cma_clip_core.model_documents import AttributeMetrics, Interval, MethodMetrics, Threshold

_MEAN: Final = "mean"
_MEAN_SILENT: Final = "mean, silent"


def comparison(methods: Sequence[MethodMetrics]) -> str:
    """Return a table of methods by attributes: recall at 90 % precision, in %, with 95 % intervals if they exist.

    The last columns are the means over the attributes, for all labels and for the silent ones. The best of each column is
    bold.
    """
    columns = {
        name: [(value, _range(interval)) for value, interval in (_recall(method, name) for method in methods)]
        for name in _columns(methods)
    }
    cells = _best_in_bold(columns)
    return markdown(["method", *columns], [[m.method, *row] for m, row in zip(methods, cells, strict=True)])


def over_seeds(methods: Sequence[Sequence[MethodMetrics]]) -> str:
    """Return the table of `comparison` with the mean over each method's seeds, and the lowest and highest in brackets.

    Args:
        methods: the metrics of each method, with one or several seeds.
    """
    columns: dict[str, list[tuple[float | None, str]]] = {}
    for name in _columns([trial for trials in methods for trial in trials]):
        columns[name] = []
        for trials in methods:
            recalls = [value for value, _ in (_recall(trial, name) for trial in trials) if value is not None]
            spread = Interval(low=min(recalls), high=max(recalls)) if len(recalls) > 1 else None
            columns[name].append((fmean(recalls) if recalls else None, _range(spread)))
    cells = _best_in_bold(columns)
    return markdown(
        ["method", "seeds", *columns],
        [[trials[0].method, f"{len(trials)}", *row] for trials, row in zip(methods, cells, strict=True)],
    )


def _columns(methods: Sequence[MethodMetrics]) -> list[str]:
    return [*dict.fromkeys(name for method in methods for name in method.attributes), _MEAN, _MEAN_SILENT]


def _recall(method: MethodMetrics, column: str) -> tuple[float | None, Interval | None]:
    """Return the recall of a method in a column of a comparison, and its interval."""
    if column == _MEAN:
        return method.mean_recall_at_90, method.mean_recall_at_90_interval
    if column == _MEAN_SILENT:
        return method.mean_silent_recall_at_90, method.mean_silent_recall_at_90_interval
    metrics = method.attributes.get(column)
    return (metrics.recall_at_90, metrics.recall_at_90_interval) if metrics else (None, None)


def _best_in_bold(columns: Mapping[str, Sequence[tuple[float | None, str]]]) -> list[list[str]]:
    """Return the rows of a table of columns, each share as a percentage followed by its text, the best in bold."""
    rows: list[list[str]] = [[] for _ in next(iter(columns.values()))]
    for column in columns.values():
        best = max((value for value, _ in column if value is not None), default=None)
        for row, (value, suffix) in zip(rows, column, strict=True):
            bold = "**" if len(column) > 1 and value is not None and value == best else ""
            row.append(f"{bold}{percent(value)}{bold}{suffix}")
    return rows


def one_model(metrics: Mapping[str, AttributeMetrics]) -> str:
    """Return a table of one model's metrics by attribute, independent of its thresholds."""
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
    """Return a table of the thresholds that ship, and of their precision, recall and coverage."""
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
    """Return a table of the values that have their own threshold; empty if none has."""
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
