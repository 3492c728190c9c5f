"""A whole night in one process: the steps of the Airflow DAG, without Airflow."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.lake.layout import Lake
from jobs.lake.storage import AnyPath
from jobs.nightly import plan as plan_step
from jobs.nightly import preprocess, tag
from jobs.report.nightly_report import report
from jobs.runs.republish import publish_in_turn
from jobs.settings import Settings
from jobs.spark import sessions
from jobs.startup.background_import import preload
from jobs.validation import validate
from schemas.documents import Ledger


def night(
    settings: Settings,
    ds: str,
    *,
    retag: bool = False,
    model: str | None = None,
    attributes: Sequence[str] = (),
    allow_removals: bool = False,
) -> tuple[Ledger, AnyPath]:
    """Run every step for the catalog of `ds`, and return the ledger and the path of the report.

    It is safe to run it again at any time.

    Args:
        settings: the settings of all steps.
        ds: the day.
        retag: as in `jobs.nightly.plan.plan`.
        model: likewise.
        attributes: likewise.
        allow_removals: likewise.

    Raises:
        JobError: as the steps raise it; the results of finished steps stay.
    """
    preload("great_expectations.expectations", "cma_clip_core.tagger")
    with sessions.session(settings, Lake(settings.root).raw_rows(ds)):  # one JVM for all steps
        validate.validate(settings, ds)
        plan = plan_step.plan(
            settings, ds, retag=retag, model=model, attributes=attributes, allow_removals=allow_removals
        )
        preprocess.preprocess(settings, plan.run_id)
        if plan.shards:
            tag.tag(settings, plan.run_id)
        ledger = publish_in_turn(settings, plan.run_id)
    return ledger, report(settings, ledger.run_id)
