"""Scalars for TensorBoard that never end a training: where they cannot be written, that is said once and training goes on."""

from __future__ import annotations

import logging
from pathlib import Path

log = logging.getLogger(__name__)


class Scalars:
    """Writes the course of a training into a folder; into None nothing."""

    def __init__(self, folder: Path | None, purge_step: int) -> None:
        """Begin to write; points from `purge_step` on, of a training that is gone on with, are taken back."""
        self._writer = None
        if folder is None:
            return
        from torch.utils.tensorboard import SummaryWriter  # slow to load

        try:
            self._writer = SummaryWriter(str(folder), purge_step=purge_step)
        except OSError as error:
            self._stop(error)

    def add(self, values: dict[str, float], step: int) -> None:
        """Add a point to each of `values`, by name."""
        try:
            if self._writer is not None:
                for name, value in values.items():
                    self._writer.add_scalar(name, value, step)
        except OSError as error:
            self._stop(error)

    def flush(self) -> None:
        """See to it that what was added is on disk."""
        try:
            if self._writer is not None:
                self._writer.flush()
        except OSError as error:
            self._stop(error)

    def close(self) -> None:
        """Write what is left."""
        try:
            if self._writer is not None:
                self._writer.close()
        except OSError as error:
            self._stop(error)
        self._writer = None

    def _stop(self, error: OSError) -> None:
        log.warning("TensorBoard's logs end here, training goes on: %s", error)
        self._writer = None
