"""Examples of a day without a night, for training and experiments."""

from __future__ import annotations

from jobs.lake.layout import Lake
from jobs.nightly import plan as plan_step
from jobs.nightly import preprocess
from jobs.runtime.step_metrics import refuse_several
from jobs.settings import Settings
from jobs.spark import sessions
from jobs.validation import validate
from schemas.taxonomy import load_taxonomy


def prepare(settings: Settings, ds: str) -> int:
    """Validate the imported day `ds`, make its missing examples, and return their number. One JVM serves all steps.

    Raises:
        ContractError: the taxonomy is wrong; checked before Spark starts.
        JobError: as the steps raise it: the day is missing or damaged, or its batch breaks a critical rule.
    """
    refuse_several("prepare")
    load_taxonomy(settings.taxonomy)  # a fault of the file is reported at once, not after the validation
    with sessions.session(settings, Lake(settings.root).raw_rows(ds)):
        validate.validate(settings, ds)
        return preprocess.preprocess(settings, plan_step.plan(settings, ds, prepare=True).run_id)
