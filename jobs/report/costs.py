"""What the steps of a night cost, and what part of that does not grow with the rows."""

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

_SHARDS: Final = 8  # that are drawn apart
_NIGHTS: Final = 14  # that a fit looks at
_SPREAD: Final = 1.5  # the most rows must be this many times the fewest for a fit to mean anything


@dataclass(frozen=True, slots=True)
class Fit:
    """``seconds = fixed + rows * per_row``, by least squares over some measurements."""

    fixed: float
    per_row: float
    points: int


@dataclass(frozen=True, slots=True)
class Bar:
    """When a step, or one shard of it, was at work: seconds after the first step's start, pauses cut out."""

    offset: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Cost:
    """One step on the timeline. Shards are apart where they are few, else one step together."""

    name: str
    bars: tuple[Bar, ...]
    rows: int
    peak_rss_bytes: int
    device: str
    parts: dict[str, float]  # of the time: seconds by what they went to, where the step says so
    fit: Fit | None

    @property
    def seconds(self) -> float:
        """Time at work, that of parallel shards counted each."""
        return sum(bar.seconds for bar in self.bars)


@dataclass(frozen=True, slots=True)
class Costs:
    """The steps of a night, in the order they started."""

    steps: tuple[Cost, ...]
    busy: float  # seconds in which at least one step ran
    paused: float  # seconds between the first start and the last end in which none did


Reports = Mapping[AnyPath, Sequence[str]]  # report folders, oldest day first, and the files in each


def read_costs(lake: Lake, plan: Plan, newest: Reports) -> Costs:
    """Return what each step of a run cost, beside what it costs in the newest nights.

    The report's own cost is not in it: it is known when the page is written.
    """
    validation = lake.root / "reports" / f"ds={plan.ds}" / f"validation-{plan.validation.version}"
    found = {**read_steps(validation), **read_steps(lake.reports(plan.run_id))}
    found.pop("report", None)
    started = sorted(found.items(), key=lambda item: (item[1].started_at, item[0]))
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
        members = [found[name] for name in names]
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
    """Return the seconds of what ran one after the other in `tag`; reading and preparing run beside it."""
    parts: dict[str, float] = {}
    for name, key in (("model", "forward"), ("waiting for input", "wait"), ("rows", "assemble"), ("writing", "write")):
        seconds = sum(v for m in members if isinstance(v := m.details.get(key), int | float))
        if seconds:
            parts[name] = seconds
    return parts


def read_steps(folder: AnyPath, files: Sequence[str] | None = None) -> dict[str, StepMetrics]:
    """Return what was measured of the steps in a report folder, by file name. One that is broken is left out, and said.

    Args:
        folder: the report folder.
        files: those in it, where that is known.
    """
    if files is None:
        files = [f"steps/{path.name}" for path in storage.children(folder / "steps")]
    found = {}
    for name in files:
        if not name.startswith("steps/") or not name.endswith(".json"):
            continue  # a temporary file, or what somebody else put there
        metrics = storage.find_document(folder / name, StepMetrics, "the step's cost is not shown")
        if metrics is not None:
            found[name.removeprefix("steps/").removesuffix(".json")] = metrics
    return found


def newest_reports(lake: Lake, days: int) -> Reports:
    """Return the report folders of so many newest days, and the files in each. Few requests, however long the history."""
    reports = lake.root / "reports"
    known = storage.children(reports, "ds=")[-days:]
    found: dict[AnyPath, list[str]] = {}
    for path in storage.files_below(reports, known[0].name) if known else ():
        day, _, rest = path.partition("/")
        run, _, name = rest.partition("/")
        if name and day.startswith("ds="):  # beside the days are reports on models
            found.setdefault(reports / day / run, []).append(name)
    return found


def _points(newest: Reports) -> dict[str, list[tuple[int, float]]]:
    """Return the rows and seconds of each step in the last nights."""
    points: dict[str, list[tuple[int, float]]] = {}
    for folder, files in list(newest.items())[-2 * _NIGHTS :]:  # a night's run has one, and its validation
        for metrics in read_steps(folder, files).values():
            if metrics.rows:
                points.setdefault(metrics.step, []).append((metrics.rows, metrics.seconds))
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
