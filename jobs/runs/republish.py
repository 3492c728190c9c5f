"""Publications one after the other: a run whose plan went stale is planned anew on what is published now, and goes on.

Nights of several days, backfills among them, may run at once. Each publishes by one swap, if the lake still holds what it
was planned on. Where another run was first, the day is planned anew here; its examples and predictions are there already
(`jobs.nightly.reuse_predictions`), so that little but the merge is done again. The tables end as if the runs had been one after the other.
"""

from __future__ import annotations

import logging

from jobs.errors import StalePlanError
from jobs.lake.layout import Lake
from jobs.nightly import plan as plan_step
from jobs.nightly import preprocess, publish, tag
from jobs.settings import Settings
from schemas.documents import Ledger, Plan

log = logging.getLogger(__name__)

ATTEMPTS = 10  # each lost one is a publication of someone else


def publish_in_turn(settings: Settings, run_id: str) -> Ledger:
    """Publish a tagged run, planned anew where it is stale; return its ledger, or that of the run that took its place.

    Raises:
        StalePlanError: others were first `ATTEMPTS` times.
        JobError: what plan, preprocess, tag and publish raise.
    """
    for _ in range(ATTEMPTS - 1):
        try:
            return publish.publish(settings, run_id)
        except StalePlanError as error:
            log.warning("publish: %s", error)
            run_id = _again(settings, Lake(settings.root).read_plan(run_id)).run_id
            log.info("publish: run %s takes its place", run_id)
    return publish.publish(settings, run_id)


def _again(settings: Settings, stale: Plan) -> Plan:
    """Plan a day anew as it was planned, and bring it to where it can be published."""
    made = plan_step.plan(
        settings,
        stale.ds,
        retag=stale.retag,
        model=stale.model_version if stale.model_given else None,
        attributes=stale.attributes,
        replaces=stale.run_id,
        allow_removals=stale.removals_allowed,
    )
    preprocess.preprocess(settings, made.run_id)
    if made.shards:
        tag.tag(settings, made.run_id)
    return made
