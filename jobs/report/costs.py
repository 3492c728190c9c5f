"""Time and memory of a night's steps, split into a fixed part and a part that grows with the rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import numpy as np

from jobs.lake import storage
from jobs.lake.layout import Lake
from jobs.lake.storage import AnyPath
from schemas.documents import Plan, StepMetrics

_SHARDS: Final = 8  # a step with more shards is drawn as one row
_NIGHTS: Final = 14  # recent nights that a fit uses
_SPREAD: Final = 1.5  # a fit needs a largest night of at least this many times the rows of the smallest


@dataclass(frozen=True, slots=True)
class Fit:
    """A least-squares line through some measurements: ``seconds = fixed + rows * per_row``."""

    fixed: float
    per_row: float
    points: int


@dataclass(frozen=True, slots=True)
class Bar:
    """The time span of a step, or of one of its shards: seconds since the first step started, without pauses."""

    offset: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Cost:
    """One row of the timeline: a shard if the step has few of them, otherwise the whole step."""

    name: str
    bars: tuple[Bar, ...]
    rows: int
    peak_rss_bytes: int
    device: str
    parts: dict[str, float]  # seconds by activity, if the step records them
    fit: Fit | None

    @property
    def seconds(self) -> float:
        """Working time, summed over shards even if they ran in parallel."""
        return sum(bar.seconds for bar in self.bars)


@dataclass(frozen=True, slots=True)
class Costs:
    """The steps of a night, in the order in which they started."""

    steps: tuple[Cost, ...]
    busy: float  # seconds in which at least one step ran
    paused: float  # seconds between the first start and the last end in which no step ran


Reports = Mapping[AnyPath, Sequence[str]]  # report folder -> its files; oldest day first


def read_costs(lake: Lake, plan: Plan, newest: Reports) -> Costs:
    """Return the cost of each step of a run, with a fit over the newest nights.

    The report's own cost is left out: it is known only when the page is written.
    """
    validation = lake.root / "reports" / f"ds={plan.ds}" / f"validation-{plan.validation.version}"
    measured = {**read_steps(validation), **read_steps(lake.reports(plan.run_id))}
    measured.pop("report", None)
    started = sorted(measured.items(), key=lambda item: (item[1].started_at, item[0]))
    if not started:
        return Costs((), 0.0, 0.0)
    bars, busy, paused = {}, 0.0, 0.0
    end = started[0][1].started_at
    for name, metrics in started:
        paused += max(0.0, (metrics.started_at - end).total_seconds())
        end = max(end, metrics.started_at + timedelta(seconds=metrics.seconds))
        offset = (metrics.started_at - started[0][1].started_at).total_seconds() - paused
        busy = max(busy, offset + metrics.seconds)
        bars[name] = Bar(offset, metrics.seconds)
    fits = {step: fit(points) for step, points in _points(newest).items()}
    shards = Counter(metrics.step for _, metrics in started)
    groups: dict[str, list[str]] = {}
    for name, metrics in started:
        groups.setdefault(name if shards[metrics.step] <= _SHARDS else metrics.step, []).append(name)
    steps = []
    for group, names in groups.items():
        members = [measured[name] for name in names]
        title = group if len(names) == 1 else f"{group}, {len(names)} shards"
        steps.append(
            Cost(
                name=title,
                bars=tuple(bars[name] for name in names),
                rows=sum(m.rows for m in members),
                peak_rss_bytes=max(m.peak_rss_bytes for m in members),
                device=str(members[0].details.get("device", "")),
                parts=_parts(members),
                fit=fits.get(members[0].step),
            )
        )
    return Costs(tuple(steps), busy, paused)


def _parts(members: Sequence[StepMetrics]) -> dict[str, float]:
    """Return the seconds of each activity in the main thread of `tag`. Reading and preparing run in the background."""
    parts: dict[str, float] = {}
    for name, key in (("model", "forward"), ("waiting for input", "wait"), ("rows", "assemble"), ("writing", "write")):
        seconds = sum(v for m in members if isinstance(v := m.details.get(key), int | float))
        if seconds:
            parts[name] = seconds
    return parts


def read_steps(folder: AnyPath, files: Sequence[str] | None = None) -> dict[str, StepMetrics]:
    """Return the measurements of the steps in a report folder, by file name. Damaged files are logged and left out.

    Args:
        folder: the report folder.
        files: the files in it, if the caller knows them.
    """
    if files is None:
        files = [f"steps/{path.name}" for path in storage.children(folder / "steps")]
    steps = {}
    for name in files:
        if not name.startswith("steps/") or not name.endswith(".json"):
            continue  # a temporary file, or a file of somebody else
        metrics = storage.find_document(folder / name, StepMetrics, "the step's cost is not shown")
        if metrics is not None:
            steps[name.removeprefix("steps/").removesuffix(".json")] = metrics
    return steps


def newest_reports(lake: Lake, days: int) -> Reports:
    """Return the report folders of the newest `days` days with their files. Makes few requests, even for a long history."""
    reports = lake.root / "reports"
    newest = storage.children(reports, "ds=")[-days:]
    folders: dict[AnyPath, list[str]] = {}
    for path in storage.files_below(reports, newest[0].name) if newest else ():
        day, _, rest = path.partition("/")
        run, _, name = rest.partition("/")
        if name and day.startswith("ds="):  # the same folder also holds reports on models
            folders.setdefault(reports / day / run, []).append(name)
    return folders


def _points(newest: Reports) -> dict[str, list[tuple[int, float]]]:
    """Return the rows and seconds of each step in the last nights."""
    points: dict[str, list[tuple[int, float]]] = {}
    for folder, files in list(newest.items())[-2 * _NIGHTS :]:  # a night has two: its run and its validation
        for metrics in read_steps(folder, files).values():
            if metrics.rows:
                points.setdefault(metrics.step, []).append((metrics.rows, metrics.seconds))
    return points


def fit(points: Sequence[tuple[int, float]]) -> Fit | None:
    """Fit a line through (rows, seconds); return None if the points cannot separate a fixed part from a growing one."""
    rows = [n for n, _ in points]
    if len(points) < 2 or max(rows) < _SPREAD * min(rows):
        return None
    per_row, fixed = np.polyfit(rows, [seconds for _, seconds in points], 1)
    if per_row <= 0 or fixed <= 0:
        return None
    return Fit(float(fixed), float(per_row), len(points))
