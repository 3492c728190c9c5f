"""A sensor that waits for a day's complete export, on disk or on S3, without occupying a worker. This file has no DAG."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.providers.standard.sensors.filesystem import FileSensor
from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowSensorTimeout

from jobs.lake import storage
from jobs.lake.layout import Lake
from jobs.orchestration.local_airflow import CONNECTION
from jobs.settings import Settings


class ExportSensor(FileSensor):
    """A sensor for the manifest of a day's raw catalog, which `import-catalog` writes last.

    It is deferred: the triggerer looks for the file, so no worker waits.
    """

    def __init__(self, *, day: Any, **kwargs: Any) -> None:
        lake = Lake(Settings().root)
        path = lake.relative(lake.raw_manifest(day))
        super().__init__(filepath=path, fs_conn_id=CONNECTION, deferrable=True, mode="reschedule", **kwargs)

    def execute(self, context: Context) -> None:
        """Defer until the manifest exists."""
        root = Settings().root
        if storage.on_disk(root):
            super().execute(context)
            return
        # Imported here because only the processes that run tasks have the plugins on their path.
        from export_trigger import ExportTrigger

        path = root / self.filepath
        self.log.info("Looking for %s", path)
        if not storage.exists(path):
            trigger = ExportTrigger(str(path), self.poke_interval)
            self.defer(trigger=trigger, timeout=timedelta(seconds=self.timeout), method_name="execute_complete")

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Any) -> Any:
        """Resume as FileSensor does. On a timeout, raise an error that names the missing file and the remedy."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except AirflowSensorTimeout:
            raise AirflowSensorTimeout(
                f"{Settings().root / self.filepath}: the day's export is not there, or not complete, after "
                f"{self.timeout / 3600:g} hours; bring it in (`python -m jobs import-catalog FOLDER --ds DAY`) and clear this task"
            ) from None
