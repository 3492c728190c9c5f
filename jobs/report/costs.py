"""What the steps of a night cost, and what part of that does not grow with the rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

import numpy as np

from jobs import storage
from jobs.errors import JobError
from jobs.lake import Lake
from schemas.documents import Plan, StepMetrics

ORDER: Final = ("validate", "plan", "preprocess", "tag", "publish")

_NIGHTS = 14  # that a fit looks at
_SPREAD = 1.5  # the most rows must be this many times the fewest for a fit to mean anything


@dataclass(frozen=True, slots=True)
class Fit:
    """``seconds = fixed + rows * per_row``, by least squares over some measurements."""

    fixed: float
    per_row: float
    points: int


@dataclass(frozen=True, slots=True)
class Cost:
    """One step, or one shard of `tag`, on the timeline."""

    name: str
    metrics: StepMetrics
    offset: float  # seconds after the first step's start, pauses cut out
    fit: Fit | None


@dataclass(frozen=True, slots=True)
class Costs:
    """The steps of a night, in the order they started."""

    steps: tuple[Cost, ...]
    busy: float  # seconds in which at least one step ran
    paused: float  # seconds between the first start and the last end in which none did


def read_costs(lake: Lake, plan: Plan) -> Costs:
    """Return what each step of a run cost. The report's own cost is not in it: it is known when the page is written."""
    validation = lake.root / "reports" / f"ds={plan.ds}" / f"validation-{plan.validation.version}"
    found = {**_read(validation), **_read(lake.reports(plan.run_id))}
    found.pop("report", None)
    started = sorted(found.items(), key=lambda item: (item[1].started_at, item[0]))
    fits = {step: fit(points) for step, points in _points(lake).items()}
    if not started:
        return Costs((), 0.0, 0.0)
    steps, busy, paused = [], 0.0, 0.0
    end = started[0][1].started_at
    for name, metrics in started:
        pause = max(0.0, (metrics.started_at - end).total_seconds())
        paused += pause
        end = max(end, metrics.started_at + timedelta(seconds=metrics.seconds))
        offset = (metrics.started_at - started[0][1].started_at).total_seconds() - paused
        busy = max(busy, offset + metrics.seconds)
        steps.append(Cost(name, metrics, offset, fits.get(metrics.step)))
    return Costs(tuple(steps), busy, paused)


def _read(folder: Path) -> dict[str, StepMetrics]:
    found = {}
    for path in sorted((folder / "steps").glob("*.json")):
        metrics = storage.read_document(path, StepMetrics)
        if metrics is not None:
            found[path.stem] = metrics
    return found


def _points(lake: Lake) -> dict[str, list[tuple[int, float]]]:
    """Return the rows and seconds of each step in the last nights."""
    folders = sorted((lake.root / "reports").glob("ds=*/*/steps"), key=lambda path: path.stat().st_mtime)
    points: dict[str, list[tuple[int, float]]] = {}
    for folder in folders[-2 * _NIGHTS :]:  # a night has a folder for its run and one for its validation
        try:
            for metrics in _read(folder.parent).values():
                if metrics.rows:
                    points.setdefault(metrics.step, []).append((metrics.rows, metrics.seconds))
        except JobError:  # another night's broken file is not this night's trouble
            continue
    return points


def fit(points: Sequence[tuple[int, float]]) -> Fit | None:
    """Return the line through measurements, or None where they cannot tell a fixed part from a growing one."""
    rows = [n for n, _ in points]
    if len(points) < 2 or max(rows) < _SPREAD * min(rows):
        return None
    per_row, fixed = np.polyfit(rows, [seconds for _, seconds in points], 1)
    if per_row <= 0 or fixed <= 0:
        return None
    return Fit(float(fixed), float(per_row), len(points))


def total(steps: Iterable[Cost]) -> float:
    """Return the seconds of all steps together, parallel ones counted each."""
    return sum(step.metrics.seconds for step in steps)
