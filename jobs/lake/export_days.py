"""Days of the catalog that have an export. Imports nothing heavy, because DAG files use it too."""

from __future__ import annotations

from datetime import date

from jobs.errors import JobError
from jobs.lake import storage
from jobs.lake.layout import Lake, check_day

MOST = 1000  # days of one backfill


def exported(lake: Lake, first: str, last: str, most: int = MOST) -> tuple[list[str], list[str]]:
    """Return the days from `first` to `last` with a complete export, and those without one, both oldest first.

    Args:
        lake: the lake whose days are listed.
        first: the first day.
        last: the last day, inclusive.
        most: the maximum number of days.

    Raises:
        JobError: `first` or `last` is not a day, `first` is after `last`, there are too many days, or none has an
            export.
    """
    begin, end = (date.fromisoformat(check_day(day)) for day in (first, last))
    if begin > end:
        raise JobError(f"the first day, {first}, is after the last, {last}")
    days = [date.fromordinal(day).isoformat() for day in range(begin.toordinal(), end.toordinal() + 1)]
    if len(days) > most:
        raise JobError(f"{first} to {last} are {len(days):,} days; at most {most:,} at a time")
    with_export = [day for day in days if is_exported(lake, day)]
    if not with_export:
        raise JobError(
            f"no day from {first} to {last} has an export in {lake.root / 'catalog' / 'raw'}; the lake has "
            f"{_known(lake)}. Import it: `python -m jobs import-catalog FOLDER --ds {first}`"
        )
    return with_export, [day for day in days if day not in with_export]


def newest(lake: Lake, until: str | None = None) -> str:
    """Return the newest day with a complete export; with `until`, the newest up to that day.

    Raises:
        JobError: no such day exists.
    """
    for day in reversed(_named(lake)):
        if (until is None or day <= until) and is_exported(lake, day):
            return day
    raise JobError(
        f"{lake.root / 'catalog' / 'raw'}: no day{f' up to {until}' if until else ''} has an export; import one: "
        "`python -m jobs import-catalog FOLDER --ds YYYY-MM-DD`"
    )


def is_exported(lake: Lake, ds: str) -> bool:
    """Return whether the export of a day is complete. Its manifest is written last."""
    return storage.exists(lake.raw_manifest(ds))


def _named(lake: Lake) -> list[str]:
    """Return the days that have a folder, complete or not, oldest first."""
    return [path.name.removeprefix("ds=") for path in storage.children(lake.raw("-").parent, "ds=")]


def _known(lake: Lake) -> str:
    days = [day for day in _named(lake) if is_exported(lake, day)]
    return f"{len(days)}, from {days[0]} to {days[-1]}" if days else "none"
