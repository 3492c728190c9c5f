"""A day's examples without a night: what training and experiments need."""

from __future__ import annotations

import logging
from pathlib import Path

from cma_clip_core.config import load_config
from jobs import plan as plan_step
from jobs import preprocess, spark, validate
from jobs.dataset import example_folders
from jobs.errors import JobError
from jobs.import_catalog import import_catalog
from jobs.lake import Lake
from jobs.settings import Settings
from jobs.steps import refuse_several
from schemas.taxonomy import load_taxonomy

log = logging.getLogger(__name__)


def prepare(settings: Settings, ds: str) -> int:
    """Validate the imported day `ds` and make the examples that are not there yet; return how many. One JVM does it all.

    Raises:
        JobError: what the steps raise: the day is missing or damaged, or the batch is not to be trusted.
    """
    refuse_several("prepare")
    with spark.session(settings, Lake(settings.root).raw_rows(ds)):
        validate.validate(settings, ds)
        return preprocess.preprocess(settings, plan_step.plan(settings, ds, prepare=True).run_id)


def prepare_export(settings: Settings, catalog: Path, ds: str, mapping: str) -> None:
    """Import the export in the folder `catalog` as the day `ds` and make its examples, where there are none that fit.

    Raises:
        JobError: what the steps raise: the export is missing or damaged, or the batch is not to be trusted.
    """
    refuse_several("prepare")
    lake = Lake(settings.root)
    try:
        example_folders(lake, ds, load_config(settings.model_config_name), load_taxonomy(settings.taxonomy))
    except JobError:
        pass
    else:
        log.info("prepare: the examples of %s are there", ds)
        return
    if lake.read_raw_manifest(ds) is None:
        import_catalog(settings, catalog, ds, mapping)
    prepare(settings, ds)
