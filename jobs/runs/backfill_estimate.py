"""What a backfill of some days would do and cost, told before it is done.

Each day is validated and planned, and no more: what these steps write is what a backfill finds again. The plan of the
first day is the backfill's own; each later one is compared with what is published now, not with what the days before it
would have changed by then.
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

_RUNS: Final = 14  # the newest finished runs, whose steps were measured
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
    seconds: float | None = None  # None: a step that it needs was not measured yet
    why_not: str = ""  # there is no plan

    def as_dict(self) -> dict[str, Any]:
        """Return the day as JSON has it: the counts and seconds of a planned one, why another is not."""
        if self.plan is None:
            return {"ds": self.ds, "why_not": self.why_not}
        counts = {name: getattr(self.plan, name) for name in (*_COUNTS, "unchanged")}
        return {"ds": self.ds, "run_id": self.plan.run_id, **counts, "seconds": _rounded(self.seconds)}


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a backfill from `first` to `last` would do."""

    first: str
    last: str
    days: tuple[Day, ...]  # all of the range

    @property
    def planned(self) -> list[Day]:
        """The days that can be done."""
        return [day for day in self.days if day.plan is not None]

    @property
    def seconds(self) -> float | None:
        """Seconds of all days; None where those of a day are not known."""
        known = [day.seconds for day in self.planned if day.seconds is not None]
        return sum(known) if len(known) == len(self.planned) else None

    def total(self, count: str) -> int:
        """Return the sum of a count of the plans over all days."""
        return sum(int(getattr(day.plan, count)) for day in self.planned)

    def result(self) -> EstimateResult:
        """Return it as the step prints it."""
        return EstimateResult(
            first=self.first,
            last=self.last,
            days=tuple(day.as_dict() for day in self.days),
            products=self.total("to_tag"),
            seconds=_rounded(self.seconds),
        )

    def table(self) -> str:
        """Return it as a Markdown table that is one to the eye too."""
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
    """Validate and plan each day from `first` to `last` that has an export, and tell what is left to do. Publishes nothing.

    A day whose batch is not to be trusted is listed with the reason.

    Args:
        settings: names the lake, and how many products a night tags again for a new model alone.
        first: first day.
        last: last day.
        retag, model, attributes, allow_removals: as `jobs.nightly.plan.plan` takes them.

    Raises:
        JobError: what `jobs.lake.export_days.exported`, `validate` and `plan` raise.
    """
    lake = Lake(settings.root)
    there, missing = exported(lake, first, last)
    rows = {ds: lake.raw_rows(ds) for ds in sorted([*there, *missing])}
    largest = max(n for n in rows.values() if n is not None)
    plans: dict[str, Plan | str] = {}
    with sessions.session(settings, largest):  # one JVM for all days
        for ds, n in rows.items():
            if n is None:
                plans[ds] = "missing: there is no export"
                continue
            try:
                validate.validate(settings, ds)
                plans[ds] = plan_step.plan(
                    settings, ds, retag=retag, model=model, attributes=attributes, allow_removals=allow_removals
                )
            except RemovalsError as error:
                log.warning("estimate: %s", error)
                plans[ds] = "refused: it removes too many products"
            except CriticalDataError as error:
                log.warning("estimate: %s", error)
                plans[ds] = "refused: it breaks critical rules"
    measured = rates(lake, next((found.model_version for found in plans.values() if isinstance(found, Plan)), None))
    days = [
        Day(ds, found, cost(found, measured)) if isinstance(found, Plan) else Day(ds, why_not=found)
        for ds, found in plans.items()
    ]
    made = Estimate(first, last, tuple(days))
    log.info("estimate: against what is published now, at the rates of the newest runs\n%s", made.table())
    return made


def rates(lake: Lake, model_version: str | None) -> Rates:
    """Return what each step cost in the newest finished runs, by its rows; steps that none had are not there.

    `tag` is that of this model where it was measured, else that of others.
    """
    found: dict[str, list[StepMetrics]] = {}
    reports = costs.newest_reports(lake, _RUNS)
    for folder, files in [each for each in reports.items() if "ledger.json" in each[1]][-_RUNS:]:
        for metrics in costs.read_steps(folder, files).values():
            if metrics.rows:
                found.setdefault(metrics.step, []).append(metrics)
    tagged = found.get("tag", [])
    if by_this := [m for m in tagged if m.details.get("model_version") == model_version]:
        found["tag"] = by_this
    return {step: _rate(step, measured) for step, measured in found.items()}


def _rate(step: str, measured: Sequence[StepMetrics]) -> costs.Fit:
    """Return the line through measurements; where they are too alike for one, the mean of what the step grows with."""
    if fitted := costs.fit([(m.rows, m.seconds) for m in measured]):
        return fitted
    total = sum(m.seconds for m in measured)
    if step in ("preprocess", "tag"):
        return costs.Fit(0.0, total / sum(m.rows for m in measured), len(measured))
    return costs.Fit(total / len(measured), 0.0, len(measured))  # what goes over the whole tables


def cost(plan: Plan, rates: Rates) -> float | None:
    """Return the seconds that a run of `plan` would take, shard after shard; None where a step was never measured.

    `plan` itself is counted, since days after the first are planned anew; `validate`, which is done, and `report` are not.
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
