"""The sensor that waits for a day's complete export, on a disk or on S3, without holding a worker. No DAG of its own."""

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
    """Waits for the manifest of a day's raw catalog, which `import-catalog` writes last.

    Deferred: the triggerer looks for the file, and no worker waits.
    """

    def __init__(self, *, day: Any, **kwargs: Any) -> None:
        lake = Lake(Settings().root)
        path = lake.relative(lake.raw_manifest(day))
        super().__init__(filepath=path, fs_conn_id=CONNECTION, deferrable=True, mode="reschedule", **kwargs)

    def execute(self, context: Context) -> None:
        """Defer until the manifest is there."""
        root = Settings().root
        if storage.on_disk(root):
            super().execute(context)
            return
        # Only here: Airflow has the folder of the plugins on the path where tasks run.
        from export_trigger import ExportTrigger

        place = root / self.filepath
        self.log.info("Looking for %s", place)
        if not storage.exists(place):
            trigger = ExportTrigger(str(place), self.poke_interval)
            self.defer(trigger=trigger, timeout=timedelta(seconds=self.timeout), method_name="execute_complete")

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Any) -> Any:
        """As FileSensor's; where the time is up, say what is missing and what to do."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except AirflowSensorTimeout:
            raise AirflowSensorTimeout(
                f"{Settings().root / self.filepath}: the day's export is not there, or not complete, after "
                f"{self.timeout / 3600:g} hours; bring it in (`python -m jobs import-catalog FOLDER --ds DAY`) and clear this task"
            ) from None
