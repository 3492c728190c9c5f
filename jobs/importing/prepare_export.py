"""Import an export and make its examples: what training and experiments on a shop's own catalog need."""

from __future__ import annotations

from pathlib import Path

from jobs.importing.import_catalog import import_catalog
from jobs.runs.prepare_examples import prepare
from jobs.runtime.step_metrics import refuse_several
from jobs.settings import Settings


def prepare_export(settings: Settings, catalog: Path, ds: str, mapping: str) -> None:
    """Import the export in the folder `catalog` as the day `ds` and make the examples that are not there yet.

    Raises:
        JobError: what the steps raise: the export is missing or damaged, or the batch is not to be trusted.
    """
    refuse_several("prepare")
    import_catalog(settings, catalog, ds, mapping)  # may be another one than before, and is soon done
    prepare(settings, ds)
