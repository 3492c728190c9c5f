"""What the services of docker-compose.yml need before they start; run again, it makes what is not there."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Final

from jobs import s3_check, standalone, storage
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
GPU_SLOTS: Final = 2  # tasks that tag or train at once: the workers on the queue `gpu`


def main() -> None:
    """Make the bucket, Airflow's database, pool, connection and password, the sample catalog, and a model."""
    set_up_logging()
    settings = Settings(progress=False)
    lake = Lake(settings.root)
    if not storage.on_disk(settings.root):
        fs, (bucket, *_) = settings.root.fs, settings.root.path.split("/")
        if not fs.exists(bucket):
            log.info("init: bucket %s", bucket)
            fs.call_s3("create_bucket", Bucket=bucket)
        s3_check.check(settings.root, create=True)
    passwords = Path(os.environ["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"])
    storage.write_bytes(passwords, json.dumps({"admin": os.environ["AIRFLOW_ADMIN_PASSWORD"]}).encode())
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
