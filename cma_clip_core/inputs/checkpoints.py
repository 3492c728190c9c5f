"""Training checkpoints: written whole or not at all, read without running code, refused where they do not fit.

A checkpoint is the state of an unfinished training, on the machine that trains; a finished model is in the registry.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch

from cma_clip_core.content.paths import sync_folder
from cma_clip_core.errors import CheckpointError, CheckpointWriteError

CHECKPOINT = "checkpoint.pt"
FORMAT = 3  # what `cma_clip_core.training.loop` writes and reads: 3 has what is heard of the picture alone


def fingerprint(*parts: Any) -> str:
    """Return sixteen hex digits of anything JSON can hold: what a checkpoint must fit to be resumed."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint; one that is there stays as it is until the new one is whole.

    Raises:
        CheckpointWriteError: it cannot be written, such as on a full disk; the one before is still there.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save(state | {"format": FORMAT}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
        temporary.unlink(missing_ok=True)
        kept = f"the checkpoint before it is kept: {path}" if path.exists() else "there is none before it"
        raise CheckpointWriteError(
            f"{path}: the checkpoint cannot be written: {error}; {kept}; make room and resume"
        ) from error


def load_checkpoint(path: Path, fits: str) -> dict[str, Any] | None:
    """Return a checkpoint's state, or None where there is none.

    Args:
        path: the checkpoint's file.
        fits: fingerprint of the training that wants to resume it.

    Raises:
        CheckpointError: it is broken, of another version of this program, or of another training.
    """
    try:
        # weights_only: tensors and plain values alone, no code
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except Exception as error:  # a truncated file raises whatever its missing part would have been
        raise CheckpointError(
            f"{path}: the checkpoint is broken ({type(error).__name__}: {error}); delete it to train from the start"
        ) from error
    if isinstance(state, dict) and state.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: the checkpoint was written by another version of this program; delete it to train from the start"
        )
    if not isinstance(state, dict) or state.get("fits") != fits:
        raise CheckpointError(
            f"{path}: the checkpoint is of another training (other configuration, taxonomy, examples or seed); "
            "delete it to train from the start"
        )
    return state
