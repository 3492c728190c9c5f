"""A day's examples without a night: what training and experiments need."""

from __future__ import annotations

from jobs.lake.layout import Lake
from jobs.nightly import plan as plan_step
from jobs.nightly import preprocess
from jobs.runtime.step_metrics import refuse_several
from jobs.settings import Settings
from jobs.spark import sessions
from jobs.validation import validate


def prepare(settings: Settings, ds: str) -> int:
    """Validate the imported day `ds` and make the examples that are not there yet; return how many. One JVM does it all.

    Raises:
        JobError: what the steps raise: the day is missing or damaged, or the batch is not to be trusted.
    """
    refuse_several("prepare")
    with sessions.session(settings, Lake(settings.root).raw_rows(ds)):
        validate.validate(settings, ds)
        return preprocess.preprocess(settings, plan_step.plan(settings, ds, prepare=True).run_id)
