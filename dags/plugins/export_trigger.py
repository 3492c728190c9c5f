"""Airflow's triggerer looks for a day's export on S3. In the plugins, where the triggerer finds it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from jobs.lake import storage


class ExportTrigger(BaseTrigger):
    """Fires once there is a file at `place`, an ``s3://`` URI."""

    def __init__(self, place: str, poke_interval: float) -> None:
        super().__init__()
        self.place, self.poke_interval = place, poke_interval

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what it is made anew from."""
        return "export_trigger.ExportTrigger", {"place": self.place, "poke_interval": self.poke_interval}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look, and look again."""
        while not await asyncio.to_thread(storage.exists, storage.as_path(self.place)):
            await asyncio.sleep(self.poke_interval)
        yield TriggerEvent(True)
