"""Training checkpoints: written atomically, read without running code, refused if they belong to another training.

A checkpoint is the state of an unfinished training, on the machine that trains. A finished model is in the registry.
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
FORMAT = 3  # of the state that `cma_clip_core.training.loop` writes and reads; 3 added the picture evidence


def fingerprint(*parts: Any) -> str:
    """Return sixteen hex digits that identify `parts`, any JSON values. A checkpoint resumes only if they match."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint; an existing one stays unchanged until the new one is complete.

    Raises:
        CheckpointWriteError: it cannot be written, for example on a full disk; the previous one still exists.
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
        kept = f"the previous checkpoint is kept: {path}" if path.exists() else "there is no previous one"
        raise CheckpointWriteError(
            f"{path}: the checkpoint cannot be written: {error}; {kept}; make room and resume"
        ) from error


def load_checkpoint(path: Path, training: str) -> dict[str, Any] | None:
    """Return a checkpoint's state, or None if the file does not exist.

    Args:
        path: the checkpoint's file.
        training: fingerprint of the training that resumes from it.

    Raises:
        CheckpointError: it is broken, from another version of this program, or from another training.
    """
    try:
        # weights_only: only tensors and plain values, no code
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except Exception as error:  # the type of error depends on where the file is truncated
        raise CheckpointError(
            f"{path}: the checkpoint is broken ({type(error).__name__}: {error}); delete it to train from the start"
        ) from error
    if isinstance(state, dict) and state.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: the checkpoint was written by another version of this program; delete it to train from the start"
        )
    if not isinstance(state, dict) or state.get("fits") != training:
        raise CheckpointError(
            f"{path}: the checkpoint belongs to another training (other configuration, taxonomy, examples or seed); "
            "delete it to train from the start"
        )
    return state
