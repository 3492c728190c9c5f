"""Where everything is in the lake."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Final

from jobs import storage
from jobs.errors import JobError
from schemas.documents import (
    ExamplesManifest,
    Expired,
    HistoryIndex,
    Ledger,
    Plan,
    RawManifest,
    RunManifest,
    Validation,
)

PRODUCTS: Final = "_products"  # what a run's manifest calls the state of the products, beside the attributes' names


def check_day(ds: str, option: str = "--ds") -> str:
    """Return `ds`, the value of `option`. Raises JobError where it is no day written YYYY-MM-DD."""
    try:
        if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", ds):
            raise ValueError
        date.fromisoformat(ds)
    except ValueError:
        raise JobError(f"{option} {ds!r} is not a day; write it as 2026-11-20") from None
    return ds


def is_run(name: str) -> bool:
    """Whether `name` could name a run."""
    return re.fullmatch(r"\d{4}-\d{2}-\d{2}-[a-z]*-?[0-9a-f]{8}", name) is not None


def check_run(run_id: str) -> str:
    """Return `run_id`. Raises JobError where it could name anything but a run."""
    if not is_run(run_id):
        raise JobError(f"--run {run_id!r} is not a run id; `python -m jobs plan` prints it, e.g. 2026-11-20-1f3a09bc")
    return run_id


@dataclass(frozen=True, slots=True)
class Lake:
    """Paths of the zones and readers of the documents in them."""

    root: Path

    # catalog
    def raw(self, ds: str) -> Path:
        return self.root / "catalog" / "raw" / f"ds={ds}"

    def raw_manifest(self, ds: str) -> Path:
        """What marks a day's export as complete: written last."""
        return self.raw(ds) / "_manifest.json"

    @property
    def pictures(self) -> Path:
        return self.root / "catalog" / "pictures"

    def valid(self, ds: str) -> Path:
        return self.root / "catalog" / "valid" / f"ds={ds}"

    def quarantine(self, ds: str) -> Path:
        return self.root / "catalog" / "quarantine" / f"ds={ds}"

    # plans, examples, labelled sets, predictions
    def plan(self, run_id: str) -> Path:
        return self.root / "plans" / f"ds={run_id[:10]}" / f"run={run_id}"

    def plan_file(self, run_id: str, shard: int) -> Path:
        return self.plan(run_id) / "products" / f"shard={shard}" / "part-00000.parquet"

    def removed(self, run_id: str) -> Path:
        return self.plan(run_id) / "removed"

    @property
    def all_examples(self) -> Path:
        """Who is about to name examples that are there, or reads what other runs predicted, shares its lock; who removes
        some has it alone.
        """
        return self.root / "examples"

    def examples(self, run_id: str) -> Path:
        return self.all_examples / f"ds={run_id[:10]}" / f"run={run_id}"

    def labelled(self, ds: str, set_id: str) -> Path:
        return self.root / "labelled" / f"ds={ds}" / f"set={set_id}"

    def predictions(self, run_id: str) -> Path:
        return self.root / "predictions" / f"run={run_id}"

    def prediction_file(self, run_id: str, shard: int) -> Path:
        return self.predictions(run_id) / f"shard={shard:05d}.parquet"

    # published
    @property
    def current(self) -> Path:
        """The pointer: one line for each Parquet file of the live run."""
        return self.root / "attribute_tables" / "current"

    def run(self, run_id: str) -> Path:
        return self.root / "attribute_tables" / "runs" / run_id

    @property
    def history(self) -> Path:
        return self.root / "attribute_history"

    def history_run(self, ds: str, run_id: str) -> Path:
        return self.history / f"ds={ds}" / f"run={run_id}"

    @property
    def history_index(self) -> Path:
        return self.history / "index.json"

    def left_index(self, run_id: str) -> Path:
        """The history index as it was when `run_id` was last live and another run took its place."""
        return self.history / "left" / f"{run_id}.json"

    def expired(self, run_id: str) -> Path:
        """What is left of a run that has expired."""
        return self.root / "expired" / f"{run_id}.json"

    # models, reports
    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def towers(self) -> Path:
        """Pretrained towers, a folder each."""
        return self.root / "towers"

    @property
    def experiments(self) -> Path:
        return self.root / "experiments"

    @property
    def champion(self) -> Path:
        """The file that names the champion, and those before it."""
        return self.models / "champion"

    @property
    def models_reports(self) -> Path:
        """Challengers against champions."""
        return self.root / "reports" / "models"

    @property
    def scratch(self) -> Path:
        """What nothing in outlives its step."""
        return self.root / "scratch"

    def reports(self, run_id: str) -> Path:
        return self.root / "reports" / f"ds={run_id[:10]}" / f"run={run_id}"

    def relative(self, path: Path) -> str:
        """Return `path` as documents name it: relative to the lake."""
        return str(path.relative_to(self.root))

    # documents
    def read_raw_manifest(self, ds: str) -> RawManifest | None:
        return storage.read_document(self.raw_manifest(ds), RawManifest)

    def raw_rows(self, ds: str) -> int | None:
        """Return how many lines the raw catalog of `ds` has; None where there is none."""
        manifest = self.read_raw_manifest(ds)
        return None if manifest is None else manifest.rows

    def read_validation(self, ds: str) -> Validation:
        found = storage.read_document(self.valid(ds) / "current.json", Validation)
        if found is None:
            raise JobError(f"{self.valid(ds)}: the day is not validated; run `python -m jobs validate --ds {ds}`")
        return found

    def read_expired(self, run_id: str) -> Expired | None:
        return storage.read_document(self.expired(run_id), Expired)

    def has_expired(self, run_id: str) -> bool:
        """Whether a run has expired, be it that some of it is still there."""
        return self.expired(run_id).exists()

    def check_not_expired(self, run_id: str) -> None:
        """Raise JobError where a run has expired."""
        found = self.read_expired(run_id)
        if found is not None:
            raise JobError(
                f"{run_id} has expired: `maintenance` took it out of the lake on {found.expired_at:%Y-%m-%d}; its day can be "
                f"run again: `python -m jobs night --ds {found.ds}`"
            )

    def find_plan(self, run_id: str) -> Plan | None:
        """Return the plan of a run; None where there is none, or it has expired."""
        return None if self.has_expired(check_run(run_id)) else self._plan_document(run_id)

    def _plan_document(self, run_id: str) -> Plan | None:
        return storage.read_document(self.plan(run_id) / "plan.json", Plan)

    def read_plan(self, run_id: str) -> Plan:
        self.check_not_expired(check_run(run_id))
        found = self._plan_document(run_id)
        if found is None:
            raise JobError(f"{self.plan(run_id)}: there is no such plan; run `python -m jobs plan --ds {run_id[:10]}`")
        return found

    def read_examples_manifest(self, run_id: str) -> ExamplesManifest | None:
        return storage.read_document(self.examples(run_id) / "_manifest.json", ExamplesManifest)

    def has_examples(self, path: str) -> bool:
        """Whether the folder `path`, relative to the lake, of a run's examples is there, whole."""
        folder = self.root / path
        return folder.is_dir() and (folder.parent / "_manifest.json").is_file()

    def read_manifest(self, run_id: str) -> RunManifest | None:
        """Return the manifest of a run whose tables and changes are all there, or None."""
        return None if self.has_expired(run_id) else self._read_manifest(run_id)

    def read_record(self, run_id: str) -> RunManifest | None:
        """Return what a run wrote, be it that it has expired; None where it wrote nothing."""
        expired = self.read_expired(run_id)
        return self._read_manifest(run_id) if expired is None else expired.manifest

    def _read_manifest(self, run_id: str) -> RunManifest | None:
        return storage.read_document(self.run(run_id) / "manifest.json", RunManifest)

    def read_ledger(self, run_id: str) -> Ledger | None:
        return storage.read_document(self.reports(run_id) / "ledger.json", Ledger)

    def read_history_index(self) -> HistoryIndex:
        found = storage.read_document(self.history_index, HistoryIndex) or HistoryIndex()
        # An index of version 0.1.0 does not name the live run: the pointer alone did.
        return found if found.live else found.model_copy(update={"live": self.current_run()})

    def current_lines(self) -> list[str]:
        """Return the paths of the live run's attribute files; empty where nothing is published."""
        try:
            return self.current.read_text().split("\n")[:-1]
        except FileNotFoundError:
            return []

    def current_run(self) -> str | None:
        """Return the id of the live run, or None where nothing is published."""
        lines = self.current_lines()
        # Of a lake that was moved too: its pointer still has the old place's paths until the next publication.
        return Path(lines[0]).parent.parent.name if lines else None
