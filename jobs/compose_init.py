"""What the services of docker-compose.yml need before they start; run again, it makes what is not there."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from pathlib import Path
from typing import Final

from jobs import compose_s3, s3_check, standalone, storage
from jobs.importing.import_catalog import import_catalog
from jobs.lake import Lake
from jobs.models import champion
from jobs.prepare import prepare
from jobs.sample_catalog import generate
from jobs.settings import Settings
from jobs.steps import set_up_logging
from jobs.train import train

log = logging.getLogger(__name__)

DAY: Final = "2026-11-20"  # of the sample catalog
PRODUCTS: Final = 1000
_OLD_PASSWORDS: Final = Path("/airflow/shared/passwords.json")
GPU_SLOTS: Final = 2  # tasks that tag or train at once: the workers on the queue `gpu`


def main() -> None:
    """Make the bucket and its users, Airflow's database, pool, connection and roles, the sample catalog, and a model."""
    set_up_logging()
    settings = Settings(progress=False)
    lake = Lake(settings.root)
    if not storage.on_disk(settings.root):
        compose_s3.main()
        s3_check.check(settings.root, create=True)
    with contextlib.suppress(OSError):  # an earlier release kept the admin's password there, for everyone to read
        _OLD_PASSWORDS.unlink()
    standalone.set_up(settings, dict(os.environ), GPU_SLOTS)
    if lake.read_raw_manifest(DAY) is None:
        with tempfile.TemporaryDirectory() as folder:
            generate(Path(folder), products=PRODUCTS)
            import_catalog(settings, Path(folder), DAY, "sample")
    if champion(settings) is None:
        prepare(settings, DAY)
        train(settings, DAY)
    log.info("init: done")


if __name__ == "__main__":
    main()
