"""Serial publication of concurrent runs: a run whose plan became stale is planned again on the current state.

Nights of several days, including backfills, may run at the same time. Each publishes by one swap, if the lake is still
in the state that it was planned on. If another run came first, the day is planned again here. Its examples and
predictions exist already (`jobs.nightly.reuse_predictions`), so little more than the merge is repeated. The resulting
tables are the same as if the runs had run one after another.
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

ATTEMPTS = 10  # each failed attempt means that another run has published


def publish_in_turn(settings: Settings, run_id: str) -> Ledger:
    """Publish a tagged run, planning its day again if the plan is stale; return the ledger of the published run.

    Raises:
        StalePlanError: other runs came first `ATTEMPTS` times.
        JobError: as plan, preprocess, tag and publish raise it.
    """
    for _ in range(ATTEMPTS - 1):
        try:
            return publish.publish(settings, run_id)
        except StalePlanError as error:
            log.warning("publish: %s", error)
            run_id = _plan_again(settings, Lake(settings.root).read_plan(run_id)).run_id
            log.info("publish: run %s replaces it", run_id)
    return publish.publish(settings, run_id)


def _plan_again(settings: Settings, stale: Plan) -> Plan:
    """Plan a day again with the same options, and preprocess and tag it, so that it can be published."""
    plan = plan_step.plan(
        settings,
        stale.ds,
        retag=stale.retag,
        model=stale.model_version if stale.model_given else None,
        attributes=stale.attributes,
        replaces=stale.run_id,
        allow_removals=stale.removals_allowed,
    )
    preprocess.preprocess(settings, plan.run_id)
    if plan.shards:
        tag.tag(settings, plan.run_id)
    return plan
