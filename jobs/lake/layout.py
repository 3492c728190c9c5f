"""Paths in the lake, and readers of the documents there."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from datetime import date
from pathlib import Path, PurePosixPath
from typing import Final

from jobs.errors import JobError
from jobs.lake import storage
from jobs.lake.storage import AnyPath
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
from schemas.loading import ContractError, parse_yaml
from schemas.taxonomy import Taxonomy

IMPORTED: Final = re.compile(
    r"[0-9a-f]{2}/([0-9a-f]{40})\.[a-z0-9]{1,5}"
)  # a picture, named by the SHA-1 of its content
MISSING: Final = "missing"  # first part of the URI of a picture that import could not find; not a folder of the lake
LABELLED_TABLE: Final = "products.parquet"  # in the folder of a labelled set
_REPAIR: Final = "`python -m jobs tables repair` shows how to rebuild it, and loses nothing"
PRODUCTS: Final = "_products"  # name of the product table in a run's manifest, beside the names of the attributes


def check_day(ds: str, option: str = "--ds") -> str:
    """Return `ds`, the value of `option`. Raises JobError if it is not a day written as YYYY-MM-DD."""
    try:
        if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", ds):
            raise ValueError
        date.fromisoformat(ds)
    except ValueError:
        raise JobError(f"{option} {ds!r} is not a day; write it as 2026-11-20") from None
    return ds


def is_run(name: str) -> bool:
    """Return whether `name` has the form of a run id."""
    return re.fullmatch(r"\d{4}-\d{2}-\d{2}-[a-z]*-?[0-9a-f]{8}", name) is not None


def check_run(run_id: str) -> str:
    """Return `run_id`. Raises JobError if it does not have the form of a run id."""
    if not is_run(run_id):
        raise JobError(f"--run {run_id!r} is not a run id; `python -m jobs plan` prints it, e.g. 2026-11-20-1f3a09bc")
    return run_id


@dataclass(frozen=True, slots=True)
class Lake:
    """Paths of the zones of a lake, and readers of the documents in them."""

    root: AnyPath

    # catalog
    def raw(self, ds: str) -> AnyPath:
        return self.root / "catalog" / "raw" / f"ds={ds}"

    def raw_manifest(self, ds: str) -> AnyPath:
        """Return the path of the file that marks the export of a day as complete. It is written last."""
        return self.raw(ds) / "_manifest.json"

    @property
    def pictures(self) -> AnyPath:
        return self.root / "catalog" / "pictures"

    @property
    def picture_addresses(self) -> AnyPath:
        """The folder of the record of pictures that were downloaded, by address."""
        return self.root / "catalog" / "picture_addresses"

    def valid(self, ds: str) -> AnyPath:
        return self.root / "catalog" / "valid" / f"ds={ds}"

    def quarantine(self, ds: str) -> AnyPath:
        return self.root / "catalog" / "quarantine" / f"ds={ds}"

    # plans, examples, labelled sets, predictions
    def plan(self, run_id: str) -> AnyPath:
        return self.root / "plans" / f"ds={run_id[:10]}" / f"run={run_id}"

    def plan_file(self, run_id: str, shard: int) -> AnyPath:
        return self.plan(run_id) / "products" / f"shard={shard}" / "part-00000.parquet"

    def removed(self, run_id: str) -> AnyPath:
        return self.plan(run_id) / "removed"

    @property
    def all_examples(self) -> AnyPath:
        """The folder of all examples.

        A process that refers to existing examples, or reads predictions of other runs, holds its lock shared. A process
        that removes examples holds it exclusively.
        """
        return self.root / "examples"

    def examples(self, run_id: str) -> AnyPath:
        return self.all_examples / f"ds={run_id[:10]}" / f"run={run_id}"

    def labelled(self, ds: str, set_id: str) -> AnyPath:
        return self.root / "labelled" / f"ds={ds}" / f"set={set_id}"

    def predictions(self, run_id: str) -> AnyPath:
        return self.root / "predictions" / f"run={run_id}"

    def prediction_file(self, run_id: str, shard: int) -> AnyPath:
        return self.predictions(run_id) / f"shard={shard:05d}.parquet"

    # published
    @property
    def current(self) -> AnyPath:
        """The pointer for readers: one line for each Parquet file of the live run."""
        return self.root / "attribute_tables" / "current"

    def run(self, run_id: str) -> AnyPath:
        return self.root / "attribute_tables" / "runs" / run_id

    @property
    def history(self) -> AnyPath:
        return self.root / "attribute_history"

    def history_run(self, ds: str, run_id: str) -> AnyPath:
        return self.history / f"ds={ds}" / f"run={run_id}"

    @property
    def history_index(self) -> AnyPath:
        return self.history / "index.json"

    def left_index(self, run_id: str) -> AnyPath:
        """Return the path of the history index as it was when another run replaced `run_id` as the live run."""
        return self.history / "left" / f"{run_id}.json"

    def expired(self, run_id: str) -> AnyPath:
        """Return the path of the document that remains of an expired run."""
        return self.root / "expired" / f"{run_id}.json"

    # models, reports
    @property
    def models(self) -> AnyPath:
        return self.root / "models"

    @property
    def towers(self) -> AnyPath:
        """The folder of pretrained towers, one subfolder each."""
        return self.root / "towers"

    @property
    def experiments(self) -> AnyPath:
        return self.root / "experiments"

    @property
    def champion(self) -> AnyPath:
        """The file that names the champion and its predecessors."""
        return self.models / "champion"

    def model_reports(self, ds: str, version: str) -> AnyPath:
        """Return the folder of the metrics and the log of a training."""
        return self.root / "reports" / f"ds={ds}" / f"model={version}"

    @property
    def models_reports(self) -> AnyPath:
        """The folder of reports that compare challengers with champions."""
        return self.root / "reports" / "models"

    @property
    def work(self) -> Path:
        """The local work folder: the lake itself, or, for a lake on S3, a folder of this user in TMPDIR."""
        return self.root if storage.on_disk(self.root) else storage.own_folder(str(self.root))

    def local_model(self, version: str) -> Path:
        """Return the folder of a model version on this machine: the original, or a copy. A version never changes."""
        return storage.local_copy(self.models / version, self.work / "models" / version)

    @property
    def scratch(self) -> AnyPath:
        """The folder of temporary data. A step removes its own data at its end."""
        return self.root / "scratch"

    def reports(self, run_id: str) -> AnyPath:
        return self.root / "reports" / f"ds={run_id[:10]}" / f"run={run_id}"

    def relative(self, path: AnyPath) -> str:
        """Return `path` relative to the lake, as it is written in documents."""
        return storage.relative(path, self.root)

    # documents
    def read_taxonomy(self, path: str, fingerprint: str | None = None) -> Taxonomy:
        """Return the taxonomy at `path`, relative to the lake.

        Args:
            path: the path of the YAML file.
            fingerprint: the fingerprint that the taxonomy must have; None allows any.

        Raises:
            JobError: the file is missing or broken, or holds another taxonomy.
        """
        data = storage.read_bytes(self.root / path)
        if data is None:
            raise JobError(f"{self.root / path}: the file does not exist; {storage.RESTORE}, or plan the day again")
        try:
            taxonomy = parse_yaml(data.decode(), Taxonomy, str(self.root / path))
        except (ContractError, UnicodeDecodeError) as error:
            raise JobError(str(error)) from error
        if fingerprint is not None and taxonomy.fingerprint != fingerprint:
            raise JobError(
                f"{self.root / path}: it is not the taxonomy that was planned with ({taxonomy.fingerprint}, not {fingerprint}): it was "
                f"changed, or its disk fails; {storage.RESTORE}, or plan the day again"
            )
        return taxonomy

    def read_raw_manifest(self, ds: str) -> RawManifest | None:
        return storage.read_document(
            self.raw_manifest(ds), RawManifest,
            f"import the day again: `python -m jobs import-catalog FOLDER --ds {ds}`",
        )  # fmt: skip

    def raw_rows(self, ds: str) -> int | None:
        """Return the number of lines in the raw catalog of `ds`, or None if it has no export."""
        manifest = self.read_raw_manifest(ds)
        return None if manifest is None else manifest.rows

    def read_validation(self, ds: str) -> Validation:
        validation = storage.read_document(
            self.valid(ds) / "current.json", Validation, f"`python -m jobs validate --ds {ds}` makes it again"
        )
        if validation is None:
            raise JobError(f"{self.valid(ds)}: the day is not validated; run `python -m jobs validate --ds {ds}`")
        return validation

    def read_expired(self, run_id: str) -> Expired | None:
        return storage.read_document(self.expired(run_id), Expired)

    def has_expired(self, run_id: str) -> bool:
        """Return whether a run has expired, even if some of its files still exist."""
        return storage.exists(self.expired(run_id))

    def check_not_expired(self, run_id: str) -> None:
        """Raise JobError if a run has expired."""
        expired = self.read_expired(run_id)
        if expired is not None:
            raise JobError(
                f"{run_id} has expired: `maintenance` removed it from the lake on {expired.expired_at:%Y-%m-%d}; its day can be "
                f"run again: `python -m jobs night --ds {expired.ds}`"
            )

    def find_plan(self, run_id: str) -> Plan | None:
        """Return the plan of a run, or None if it has no plan or has expired."""
        return None if self.has_expired(check_run(run_id)) else self._plan_document(run_id)

    def _plan_document(self, run_id: str) -> Plan | None:
        return storage.read_document(self.plan(run_id) / "plan.json", Plan, replan(run_id[:10]))

    def read_plan(self, run_id: str) -> Plan:
        self.check_not_expired(check_run(run_id))
        plan = self._plan_document(run_id)
        if plan is None:
            raise JobError(
                f"{self.plan(run_id)}: the plan does not exist; run `python -m jobs plan --ds {run_id[:10]}`"
            )
        return plan

    def read_examples_manifest(self, run_id: str) -> ExamplesManifest | None:
        return storage.read_document(
            self.examples(run_id) / "_manifest.json", ExamplesManifest,
            f"`python -m jobs preprocess --run {run_id}` makes it again",
        )  # fmt: skip

    def find_examples_manifest(self, run_id: str) -> ExamplesManifest | None:
        """Return the manifest of a run's examples, or None if it is missing or broken.

        A broken manifest is logged; the examples are then made again.
        """
        path = self.examples(run_id) / "_manifest.json"
        return storage.find_document(path, ExamplesManifest, "its examples are made again where they are needed")

    def has_examples(self, path: str) -> bool:
        """Return whether a run's example folder exists and all its files have their full size.

        Args:
            path: the folder, relative to the lake.
        """
        folder = self.root / path
        if not (storage.exists(folder.parent / "_manifest.json") and storage.exists(folder)):
            return False
        manifest = self.find_examples_manifest(folder.parent.name.removeprefix("run="))
        files = [file for file in manifest.files if file.path.startswith(f"{path}/")] if manifest else []
        return manifest is not None and all(storage.size(self.root / file.path) == file.bytes for file in files)

    def read_manifest(self, run_id: str) -> RunManifest | None:
        """Return the manifest of a run, or None if it has none or has expired."""
        return None if self.has_expired(run_id) else self._read_manifest(run_id)

    def read_record(self, run_id: str) -> RunManifest | None:
        """Return the manifest of a run, even if it has expired; or None if the run wrote nothing."""
        expired = self.read_expired(run_id)
        return self._read_manifest(run_id) if expired is None else expired.manifest

    def _read_manifest(self, run_id: str) -> RunManifest | None:
        return storage.read_document(self.run(run_id) / "manifest.json", RunManifest, rewrite(run_id))

    def read_ledger(self, run_id: str) -> Ledger | None:
        return storage.read_document(self.reports(run_id) / "ledger.json", Ledger, self._ledger_remedy(run_id))

    def find_ledger(self, run_id: str) -> Ledger | None:
        """Return the ledger of a run, or None if it is missing or broken.

        A broken ledger is logged; `publish` writes it again.
        """
        return storage.find_document(self.reports(run_id) / "ledger.json", Ledger, self._ledger_remedy(run_id))

    @staticmethod
    def _ledger_remedy(run_id: str) -> str:
        return f"`python -m jobs publish --run {run_id}` writes it again"

    def read_history_index(self, content: bytes | None = None) -> HistoryIndex:
        """Return the history index, parsed from `content` if the caller has read it already.

        Raises:
            JobError: the index is broken, or it is missing although it existed.
        """
        content = storage.read_bytes(self.history_index) if content is None else content
        if content is None:
            if (trace := self.trace_of_publication()) is not None:
                raise JobError(
                    f"{self.history_index}: it is missing, although {trace} shows that it existed; {_REPAIR}"
                )
            return HistoryIndex()
        index = storage.from_bytes(self.history_index, content, HistoryIndex, _REPAIR)
        # An index of version 0.1.0 does not name the live run; only the pointer did.
        return index if index.live else index.model_copy(update={"live": self.current_run()})

    def trace_of_publication(self) -> AnyPath | None:
        """Return a path that proves an earlier publication, whatever happened to the index; or None."""
        if storage.exists(self.current):
            return self.current
        left = storage.children(self.history / "left")
        # A ledger is written after the index names the run. A run that was killed earlier has a manifest, but no
        # ledger.
        runs = (path.name for path in storage.children(self.run("-").parent))
        ledgers = (self.reports(run) / "ledger.json" for run in runs if is_run(run))
        return next(itertools.chain(left, (ledger for ledger in ledgers if storage.exists(ledger))), None)

    def current_lines(self) -> list[str]:
        """Return the paths of the live run's attribute files, or an empty list if nothing is published.

        Raises:
            JobError: the pointer is broken.
        """
        content = storage.read_bytes(self.current)
        if content is None:
            return []
        try:
            *lines, end = content.decode().split("\n")
        except UnicodeDecodeError:
            lines, end = [], "?"
        if end or not lines or not all(is_run(_run_of(line)) for line in lines):
            raise JobError(f"{self.current}: it does not list the files of a run, or it is damaged; {_REPAIR}")
        return lines

    def current_run(self) -> str | None:
        """Return the id of the live run according to the pointer for readers, or None if nothing is published.

        Raises:
            JobError: the pointer is broken.
        """
        lines = self.current_lines()
        # The root is ignored: the pointer of a lake that was moved has the old paths until the next publication.
        return _run_of(lines[0]) if lines else None


def _run_of(line: str) -> str:
    """Return the run id from a line of the pointer: the name of the folder two levels above the file."""
    return PurePosixPath(line).parent.parent.name


def replan(ds: str) -> str:
    """Return the remedy for a damaged file that `plan` wrote."""
    return (
        f"plan the day again with the same options, e.g. `python -m jobs plan --ds {ds}`: the same inputs give the same "
        "plan, and finished work stays"
    )


def rewrite(run_id: str) -> str:
    """Return the remedy for a damaged file that `publish` wrote."""
    return (
        f"`python -m jobs publish --run {run_id}` writes it again from that night's predictions; or put it back from a copy "
        "of the lake"
    )
