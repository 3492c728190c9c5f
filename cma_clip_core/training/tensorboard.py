"""Scalar logs for TensorBoard. A failed write is logged once and never stops the training."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

LOGS: Final = "tensorboard"  # the folder of the logs, beside the checkpoints and later beside the finished model

log = logging.getLogger(__name__)


class Scalars:
    """A log of scalars in a folder; with a folder of None it writes nothing."""

    def __init__(self, folder: Path | None, purge_step: int) -> None:
        """Open the log; when a training resumes, drop the points from `purge_step` on."""
        self._writer: Any = None
        if folder is None:
            return
        from torch.utils.tensorboard import SummaryWriter  # slow to load

        with self._ending_at_an_error():
            self._writer = SummaryWriter(str(folder), purge_step=purge_step)

    def add(self, values: dict[str, float], step: int) -> None:
        """Add one point to each of the named scalars."""
        if self._writer is not None:
            with self._ending_at_an_error():
                for name, value in values.items():
                    self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Write all added points to disk."""
        if self._writer is not None:
            with self._ending_at_an_error():
                self._writer.flush()

    def close(self) -> None:
        """Write the remaining points and close the log."""
        if self._writer is not None:
            with self._ending_at_an_error():
                self._writer.close()
        self._writer = None

    @contextlib.contextmanager
    def _ending_at_an_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            log.warning("TensorBoard's logs end here; training continues: %s", error)
            self._writer = None
