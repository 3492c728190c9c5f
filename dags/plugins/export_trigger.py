"""Airflow plugin: a trigger that waits for a file on S3. Airflow's triggerer imports triggers from the plugins folder."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from jobs.lake import storage


class ExportTrigger(BaseTrigger):
    """A trigger that fires when the file at an ``s3://`` URI exists."""

    def __init__(self, path: str, poke_interval: float) -> None:
        super().__init__()
        self.path, self.poke_interval = path, poke_interval

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class and the arguments from which Airflow creates the trigger again."""
        return "export_trigger.ExportTrigger", {"path": self.path, "poke_interval": self.poke_interval}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look for the file until it exists."""
        while not await asyncio.to_thread(storage.exists, storage.as_path(self.path)):
            await asyncio.sleep(self.poke_interval)
        yield TriggerEvent(True)
