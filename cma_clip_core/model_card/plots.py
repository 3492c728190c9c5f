"""Plots of precision and recall, calibration, robustness and modality weights, as SVG or PNG by the file's suffix.

matplotlib is imported where it is used, and draws without a screen. Every function returns the file that it wrote.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from cma_clip_core.arrays import Doubles
from cma_clip_core.evaluation.candidates import Candidates, candidates
from cma_clip_core.evaluation.metrics import best_values, calibration_error, reliability
from cma_clip_core.evaluation.predictions import Predictions
from cma_clip_core.evaluation.recall_at_precision import ends_of_equals
from cma_clip_core.model_documents import AttributeMetrics, Threshold

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# The colours of Okabe and Ito, which colour-blind people can distinguish.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
CYCLE: Final = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY)
GREY: Final = "#8A8F98"
_COLUMNS = 4
_POINTS = 600  # points of a curve: more are not visible
_STYLE: Final[dict[Any, Any]] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "grid.color": "#E6E8EB",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "plots",  # the same numbers give the same file
}


def precision_recall(
    path: Path, predictions: Mapping[str, Predictions], thresholds: Mapping[str, Threshold]
) -> Path:  # fmt: skip
    """Draw precision against recall of each attribute, with its target and the point of the shipped thresholds."""
    with _figure(path, len(predictions), 2.3) as (figure, axes):
        for ax, (name, p) in zip(axes, predictions.items(), strict=True):
            chosen = thresholds[name]
            every = candidates(p, chosen.temperature)
            ax.set(title=p.attribute.label, xlim=(0, 1.02), ylim=(0, 1.03))
            ax.axhline(p.attribute.target_precision, color=GREY, linestyle="--", linewidth=1)
            if not every.positives:
                _mark_empty(ax)
                continue
            recall, precision = curve(every)
            ax.plot(recall, precision, color=BLUE, linewidth=1.6)
            accepted = every.accepted(chosen.limits(p.attribute))
            if accepted.any():
                right = every.right[accepted].sum()
                ax.plot(right / every.positives, right / accepted.sum(), "o", color=RED, markersize=6, zorder=3)
            else:
                ax.text(0.5, 0.06, "nothing accepted", ha="center", color=RED)
        _labels(figure, axes, "recall", "precision")
        _legend(figure, [("precision at each recall", BLUE, "-"), ("target", GREY, "--"), ("as shipped", RED, "o")])
    return path


def curve(every: Candidates) -> tuple[Doubles, Doubles]:
    """Return recall and precision [points] of candidates at thresholds from high to low, thinned out for drawing."""
    order = np.argsort(-every.confidence, kind="stable")
    ends = ends_of_equals(every.confidence[order])
    ends = ends[np.unique(np.linspace(0, len(ends) - 1, _POINTS).round().astype(np.int64))]
    right = np.cumsum(every.right[order])[ends]
    return right / every.positives, right / (ends + 1)


def calibration(path: Path, predictions: Mapping[str, Predictions], thresholds: Mapping[str, Threshold]) -> Path:
    """Draw the reliability diagram of each attribute's best values, before and after temperature scaling."""
    with _figure(path, len(predictions), 2.3) as (figure, axes):
        for ax, (name, p) in zip(axes, predictions.items(), strict=True):
            ax.set(title=p.attribute.label, xlim=(0, 1.02), ylim=(0, 1.02))
            p = p.with_target()
            if not len(p):
                _mark_empty(ax)
                continue
            ax.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
            errors = []
            for temperature, colour in ((1.0, ORANGE), (thresholds[name].temperature, BLUE)):
                confidence, right = best_values(p, temperature)
                bins = reliability(confidence, right)
                ax.plot(bins.confidence, bins.accuracy, "o-", color=colour, markersize=3.5, linewidth=1.2)
                errors.append(100 * (calibration_error(confidence, right) or 0.0))
            note = f"T = {thresholds[name].temperature:.2f}\nerror {errors[0]:.1f} % → {errors[1]:.1f} %"
            ax.text(0.03, 0.97, note, transform=ax.transAxes, va="top", fontsize=8)
        _labels(figure, axes, "confidence", "share that is right")
        _legend(figure, [("before", ORANGE, "o-"), ("after its temperature", BLUE, "o-"), ("perfect", GREY, "--")])
    return path


def robustness(
    path: Path, shares: Sequence[float], recalls: Mapping[str, Mapping[str, Sequence[float]]]
) -> Path:  # fmt: skip
    """Draw recall against the share of products with another's text or picture, or of labels that lost their names.

    Args:
        path: the file.
        shares: the shares of the products, or of the labels, that are changed, 0 to 1.
        recalls: by change ("texts swapped") and method, the mean recall at 90 % precision at each share.
    """
    with _figure(path, len(recalls), 3.2, columns=3) as (figure, axes):
        methods = list(dict.fromkeys(method for lines in recalls.values() for method in lines))
        for ax, (changed, lines) in zip(axes, recalls.items(), strict=True):
            for method, values in lines.items():
                colour = CYCLE[methods.index(method) % len(CYCLE)]
                percents = [100 * share for share in shares], [100 * value for value in values]
                ax.plot(*percents, "o-", color=colour, markersize=4.5, linewidth=1.8, clip_on=False, zorder=3)
            ax.set(title=changed.capitalize(), xlim=(0, 100), ylim=(0, 100))
            ax.set_xticks([100 * share for share in shares])
        _labels(figure, axes, "changed, %", "mean recall at 90 % precision, %")
        _legend(figure, [(m, CYCLE[i % len(CYCLE)], "o-") for i, m in enumerate(methods)])
    return path


def modality_weights(path: Path, metrics: Mapping[str, AttributeMetrics], labels: Mapping[str, str]) -> Path:
    """Draw each attribute's mean attention on text and picture, with the most visual attribute at the top.

    Args:
        path: the file.
        metrics: by attribute name.
        labels: the display names of the attributes.
    """
    order = sorted((name for name, m in metrics.items() if m.n), key=lambda name: metrics[name].image_weight)
    height = 0.9 + 0.27 * max(len(order), 1)
    with _figure(path, 1, height, columns=1, width=6.0) as (figure, (ax,)):
        rows = np.arange(len(order))
        image = np.array([metrics[name].image_weight for name in order])
        text = np.array([metrics[name].text_weight for name in order])
        ax.barh(rows, image, color=BLUE, height=0.72)
        ax.barh(rows, text, left=image, color=ORANGE, height=0.72)
        for y, weight, other in zip(range(len(order)), image, text, strict=True):
            ends = ((0.01, weight, "left", "white"), (weight + other - 0.01, other, "right", "#222222"))
            for x, value, ha, colour in ends:
                if value >= 0.08:
                    ax.text(x, y, f"{100 * value:.0f} %", va="center", ha=ha, color=colour, fontsize=8)
        ax.set_yticks(rows, [labels.get(name, name) for name in order])
        ax.set(xlim=(0, 1), xticks=[])
        ax.grid(visible=False)
        ax.spines[["left", "bottom"]].set_visible(False)
        ax.tick_params(length=0)
        _legend(figure, [("picture", BLUE, "s"), ("text", ORANGE, "s")])
    return path


@contextmanager
def _figure(
    path: Path, panels: int, height: float, columns: int = _COLUMNS, width: float | None = None
) -> Iterator[tuple[Figure, list[Axes]]]:
    """Yield a figure of some panels, `height` inches each, and write it to `path`. Uses no global state of pyplot."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = max(min(columns, panels), 1)
    rows = max(-(-panels // columns), 1)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width or 2.6 * height / 2.3 * columns, height * rows + 0.4), layout="constrained")
        FigureCanvasAgg(figure)
        # Axes are labelled once for all panels. That is easier to read and faster to draw: texts take most of the time.
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel().tolist()
        for unused, above in zip(grid[panels:], grid[panels - columns :], strict=False):
            unused.set_visible(False)
            above.tick_params(labelbottom=True)
        yield figure, grid[:panels]
        path.parent.mkdir(parents=True, exist_ok=True)
        # With its date, an SVG would differ from run to run.
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def _labels(figure: Figure, axes: Sequence[Axes], x: str, y: str) -> None:
    if axes:
        figure.supxlabel(x, fontsize=9)
        figure.supylabel(y, fontsize=9)


def _legend(figure: Figure, entries: Sequence[tuple[str, str, str]]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [], [], color=colour, linestyle="--" if style == "--" else "-" if "-" in style else "",
            marker=style.strip("-") or None,
        )
        for _, colour, style in entries
    ]  # fmt: skip
    figure.legend(handles, [name for name, *_ in entries], loc="outside upper left", ncols=len(entries))


def _mark_empty(ax: Axes) -> None:
    ax.text(0.5, 0.5, "no labels", ha="center", color=GREY)
