"""Which days of the catalog there are. Loads nothing heavy: DAG files ask it too."""

from __future__ import annotations

from datetime import date

from jobs.errors import JobError
from jobs.lake import Lake, check_day
from jobs.settings import Settings

MOST = 1000  # days of one backfill: Airflow maps a task over 1,024 at most


def exported(settings: Settings, first: str, last: str) -> tuple[list[str], list[str]]:
    """Return the days from `first` to `last` whose export is complete in the lake, and those without one; oldest first.

    Raises:
        JobError: one of them is no day, the first is after the last, they are too many, or none has an export.
    """
    begin, end = (date.fromisoformat(check_day(day)) for day in (first, last))
    if begin > end:
        raise JobError(f"the first day, {first}, is after the last, {last}")
    days = [date.fromordinal(day).isoformat() for day in range(begin.toordinal(), end.toordinal() + 1)]
    if len(days) > MOST:
        raise JobError(f"{first} to {last} are {len(days):,} days; at most {MOST:,} at a time")
    lake = Lake(settings.root)
    there = [day for day in days if is_exported(lake, day)]
    if not there:
        raise JobError(
            f"no day from {first} to {last} has an export in {lake.root / 'catalog' / 'raw'}; the lake has "
            f"{_known(lake)}. Import it: `python -m jobs import-catalog FOLDER --ds {first}`"
        )
    return there, [day for day in days if day not in there]


def newest(settings: Settings, until: str | None = None) -> str:
    """Return the newest day whose export is complete, up to `until` if that is given.

    Raises:
        JobError: there is none.
    """
    lake = Lake(settings.root)
    days = [day for day in _days(lake) if until is None or day <= until]
    if not days:
        raise JobError(
            f"{lake.root / 'catalog' / 'raw'}: no day{f' up to {until}' if until else ''} has an export; import one: "
            "`python -m jobs import-catalog FOLDER --ds YYYY-MM-DD`"
        )
    return days[-1]


def is_exported(lake: Lake, ds: str) -> bool:
    """Whether the export of a day is complete: its manifest is written last."""
    return lake.raw_manifest(ds).is_file()


def _days(lake: Lake) -> list[str]:
    found = lake.root.glob(lake.relative(lake.raw_manifest("*")))
    return sorted(path.parent.name.removeprefix("ds=") for path in found)


def _known(lake: Lake) -> str:
    days = _days(lake)
    return f"{len(days)}, from {days[0]} to {days[-1]}" if days else "none"
