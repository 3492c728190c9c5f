"""Import an export and make its examples, which training and experiments on a shop's own catalog need."""

from __future__ import annotations

from pathlib import Path

from jobs.importing.import_catalog import import_catalog
from jobs.runs.prepare_examples import prepare
from jobs.runtime.step_metrics import refuse_several
from jobs.settings import Settings


def prepare_export(settings: Settings, catalog: Path, ds: str, mapping: str) -> None:
    """Import the export in the folder `catalog` as the day `ds`, and make the examples that do not exist yet.

    Raises:
        JobError: a step failed: the export is missing or damaged, or the batch failed validation.
    """
    refuse_several("prepare")
    import_catalog(settings, catalog, ds, mapping)  # always: the export may have changed, and an import is quick
    prepare(settings, ds)
