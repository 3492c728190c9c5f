"""Estimate of the work and cost of a backfill, before it runs.

Each day is validated and planned, but not tagged. A later backfill reuses what these two steps write. The plan of the
first day is exactly the backfill's. The plans of later days are approximate: they are compared with what is published
now, without the changes of the days before them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from jobs.errors import CriticalDataError, RemovalsError
from jobs.lake.export_days import exported
from jobs.lake.layout import Lake
from jobs.nightly import plan as plan_step
from jobs.pages import display_text
from jobs.report import costs
from jobs.settings import Settings
from jobs.spark import sessions
from jobs.validation import validate
from schemas.documents import Plan, StepMetrics
from schemas.step_results import EstimateResult

log = logging.getLogger(__name__)

_RUNS: Final = 14  # the number of newest finished runs whose measurements are used
_COUNTS: Final = (
    "new",
    "changed",
    "model_changed",
    "waiting",
    "removed",
    "held",
    "held_pictures",
    "to_preprocess",
    "to_tag",
)
_COLUMNS: Final = [
    "day", "new", "changed", "new model", "waiting", "removed", "held", "held for picture", "to preprocess", "to tag", "time",
]  # fmt: skip

Rates = Mapping[str, costs.Fit]


@dataclass(frozen=True, slots=True)
class Day:
    """A day of the range."""

    ds: str
    plan: Plan | None = None
    seconds: float | None = None  # None if one of its steps was never measured
    why_not: str = ""  # the reason if the day has no plan

    def as_dict(self) -> dict[str, Any]:
        """Return the day for JSON: counts and seconds if it is planned, the reason if it is not."""
        if self.plan is None:
            return {"ds": self.ds, "why_not": self.why_not}
        counts = {name: getattr(self.plan, name) for name in (*_COUNTS, "unchanged")}
        return {"ds": self.ds, "run_id": self.plan.run_id, **counts, "seconds": _rounded(self.seconds)}


@dataclass(frozen=True, slots=True)
class Estimate:
    """The estimated work of a backfill from `first` to `last`."""

    first: str
    last: str
    days: tuple[Day, ...]  # every day of the range

    @property
    def planned(self) -> list[Day]:
        """The days that have a plan."""
        return [day for day in self.days if day.plan is not None]

    @property
    def seconds(self) -> float | None:
        """The seconds of all planned days, or None if those of one day are unknown."""
        known = [day.seconds for day in self.planned if day.seconds is not None]
        return sum(known) if len(known) == len(self.planned) else None

    def total(self, count: str) -> int:
        """Return the sum of one count of the plans over all planned days."""
        return sum(int(getattr(day.plan, count)) for day in self.planned)

    def result(self) -> EstimateResult:
        """Return the document that the step prints."""
        return EstimateResult(
            first=self.first,
            last=self.last,
            days=tuple(day.as_dict() for day in self.days),
            products=self.total("to_tag"),
            seconds=_rounded(self.seconds),
        )

    def table(self) -> str:
        """Return a Markdown table with aligned columns."""
        rows = [[d.ds, *(f"{getattr(d.plan, name):,}" for name in _COUNTS), _time(d.seconds)] for d in self.planned]
        rows.append(["all", *(f"{self.total(name):,}" for name in _COUNTS), _time(self.seconds)])
        widths = [max(map(len, column)) for column in zip(_COLUMNS, *rows, strict=True)]

        def line(cells: Sequence[str]) -> str:
            return f"| {' | '.join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))} |"

        lines = [line(_COLUMNS), line(["-" * width for width in widths])]
        by_day = dict(zip((day.ds for day in self.planned), map(line, rows), strict=False))
        lines += [by_day.get(day.ds) or f"| {day.ds.rjust(widths[0])} | {day.why_not} |" for day in self.days]
        return "\n".join([*lines, line(rows[-1])])


def estimate(
    settings: Settings,
    first: str,
    last: str,
    *,
    retag: bool = False,
    model: str | None = None,
    attributes: Sequence[str] = (),
    allow_removals: bool = False,
) -> Estimate:
    """Validate and plan each day from `first` to `last` that has an export, and estimate the remaining work.

    Nothing is published. A day that is refused, for a broken critical rule or too many removals, is listed with the
    reason.

    Args:
        settings: the lake, and the maximum share of products that a night tags again only for a new model.
        first: the first day.
        last: the last day.
        retag: as in `jobs.nightly.plan.plan`.
        model: likewise.
        attributes: likewise.
        allow_removals: likewise.

    Raises:
        JobError: as `jobs.lake.export_days.exported`, `validate` and `plan` raise it.
    """
    lake = Lake(settings.root)
    with_export, missing = exported(lake, first, last)
    rows = {ds: lake.raw_rows(ds) for ds in sorted([*with_export, *missing])}
    largest = max(n for n in rows.values() if n is not None)
    outcomes: dict[str, Plan | str] = {}
    with sessions.session(settings, largest):  # one JVM for all days
        for ds, n in rows.items():
            if n is None:
                outcomes[ds] = "missing: the day has no export"
                continue
            try:
                validate.validate(settings, ds)
                outcomes[ds] = plan_step.plan(
                    settings, ds, retag=retag, model=model, attributes=attributes, allow_removals=allow_removals
                )
            except RemovalsError as error:
                log.warning("estimate: %s", error)
                outcomes[ds] = "refused: it removes too many products"
            except CriticalDataError as error:
                log.warning("estimate: %s", error)
                outcomes[ds] = "refused: it breaks critical rules"
    planned = [outcome for outcome in outcomes.values() if isinstance(outcome, Plan)]
    measured = rates(lake, planned[0].model_version if planned else None)
    days = [
        Day(ds, outcome, cost(outcome, measured)) if isinstance(outcome, Plan) else Day(ds, why_not=outcome)
        for ds, outcome in outcomes.items()
    ]
    result = Estimate(first, last, tuple(days))
    log.info("estimate: compared with what is published now, at the rates of the newest runs\n%s", result.table())
    return result


def rates(lake: Lake, model_version: str | None) -> Rates:
    """Return the cost of each step as a function of its rows, from the newest finished runs.

    Steps that were never measured are left out. The rate of `tag` is that of this model if it was measured, and
    otherwise that of other models.
    """
    by_step: dict[str, list[StepMetrics]] = {}
    reports = costs.newest_reports(lake, _RUNS)
    for folder, files in [each for each in reports.items() if "ledger.json" in each[1]][-_RUNS:]:
        for metrics in costs.read_steps(folder, files).values():
            if metrics.rows:
                by_step.setdefault(metrics.step, []).append(metrics)
    tagged = by_step.get("tag", [])
    if by_this_model := [m for m in tagged if m.details.get("model_version") == model_version]:
        by_step["tag"] = by_this_model
    return {step: _rate(step, measured) for step, measured in by_step.items()}


def _rate(step: str, measured: Sequence[StepMetrics]) -> costs.Fit:
    """Return the line fitted to measurements; if they are too similar for a fit, a mean rate.

    The mean is per row for steps that grow with their rows, and per run for steps that process whole tables.
    """
    if fitted := costs.fit([(m.rows, m.seconds) for m in measured]):
        return fitted
    total = sum(m.seconds for m in measured)
    if step in ("preprocess", "tag"):
        return costs.Fit(0.0, total / sum(m.rows for m in measured), len(measured))
    return costs.Fit(total / len(measured), 0.0, len(measured))


def cost(plan: Plan, rates: Rates) -> float | None:
    """Return the seconds that a run of `plan` would take, one shard after another; None if a step was never measured.

    The step `plan` counts, because days after the first are planned again. `validate`, which is done, and `report` do
    not.
    """
    work = [("plan", plan.validation.valid), *(("tag", shard.rows) for shard in plan.shards)]
    if plan.to_preprocess:
        work.append(("preprocess", plan.to_preprocess))
    if plan.to_tag + plan.removed:
        work.append(("publish", plan.to_tag))
    if any(step not in rates for step, _ in work):
        return None
    return sum(rates[step].fixed + rates[step].per_row * rows for step, rows in work)


def _time(value: float | None) -> str:
    return "unknown" if value is None else display_text.seconds(value)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
