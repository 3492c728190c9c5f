"""Preparation of the services in docker-compose.yml: creates whatever they need that does not exist yet."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from pathlib import Path
from typing import Final

from jobs.compose import s3_users
from jobs.demo.sample_catalog import generate
from jobs.importing.import_catalog import import_catalog
from jobs.lake import s3_preflight, storage
from jobs.lake.layout import Lake
from jobs.models.champion_pointer import champion
from jobs.orchestration import local_airflow
from jobs.runs.prepare_examples import prepare
from jobs.runtime.step_metrics import set_up_logging
from jobs.settings import Settings

log = logging.getLogger(__name__)

DAY: Final = "2026-11-20"  # day of the sample catalog
PRODUCTS: Final = 1000
_OLD_PASSWORDS: Final = Path("/airflow/shared/passwords.json")
GPU_SLOTS: Final = 2  # tasks that tag or train at once: one per worker on the queue `gpu`


def main() -> None:
    """Create the bucket and its users, Airflow's database, pool, connection and roles, the sample catalog, and a model."""
    set_up_logging()
    settings = Settings(progress=False)
    lake = Lake(settings.root)
    if not storage.on_disk(settings.root):
        s3_users.main()
        s3_preflight.check(settings.root, create=True)
    with contextlib.suppress(OSError):  # earlier releases kept the admin's password in this file, readable for everyone
        _OLD_PASSWORDS.unlink()
    local_airflow.set_up(settings, dict(os.environ), GPU_SLOTS)
    if lake.read_raw_manifest(DAY) is None:
        with tempfile.TemporaryDirectory() as folder:
            generate(Path(folder), products=PRODUCTS)
            import_catalog(settings, Path(folder), DAY, "sample")
    if champion(settings) is None:
        prepare(settings, DAY)
        from jobs.training.train import train  # loads torch, which most starts do not need

        train(settings, DAY)
    log.info("init: done")


if __name__ == "__main__":
    main()
