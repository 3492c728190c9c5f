"""Scalars for TensorBoard that never end a training: where they cannot be written, that is said once and training goes on."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

LOGS: Final = "tensorboard"  # the folder of a training's logs, beside its checkpoints and after it

log = logging.getLogger(__name__)


class Scalars:
    """Writes the course of a training into a folder; into None nothing."""

    def __init__(self, folder: Path | None, purge_step: int) -> None:
        """Begin to write; points from `purge_step` on, of a training that is gone on with, are taken back."""
        self._writer: Any = None
        if folder is None:
            return
        from torch.utils.tensorboard import SummaryWriter  # slow to load

        with self._ending_at_an_error():
            self._writer = SummaryWriter(str(folder), purge_step=purge_step)

    def add(self, values: dict[str, float], step: int) -> None:
        """Add a point to each of `values`, by name."""
        if self._writer is not None:
            with self._ending_at_an_error():
                for name, value in values.items():
                    self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """See to it that what was added is on disk."""
        if self._writer is not None:
            with self._ending_at_an_error():
                self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            with self._ending_at_an_error():
                self._writer.close()
        self._writer = None

    @contextlib.contextmanager
    def _ending_at_an_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            log.warning("TensorBoard's logs end here, training goes on: %s", error)
            self._writer = None
