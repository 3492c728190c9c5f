"""Work folders, from which a killed training resumes; a folder's name derives from everything that decides its course.

A training with another configuration, labelled set or number of processes has another folder, so that nothing must be
deleted to start it. The folder of an unfinished training stays until the training finishes or someone removes it.
"""

from __future__ import annotations

import json
import logging
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

from cma_clip_core.config import ModelConfig
from cma_clip_core.training.tensorboard import LOGS
from jobs.lake import storage
from jobs.lake.storage import AnyPath

log = logging.getLogger(__name__)

PREFIX = ".unfinished-"
ABOUT = "about.json"


def work_folder(parent: Path, config: ModelConfig, labelled_set: str, *more: Any, processes: int) -> Path:
    """Return the work folder of a training, below `parent`.

    Args:
        parent: the folder for finished results.
        config: the configuration, without parts that do not affect the training.
        labelled_set: id of the labelled set.
        more: further values that decide the course of the training, as JSON.
        processes: number of processes that train together; each has its share of the rows and its own random state.
    """
    from cma_clip_core.inputs.checkpoints import fingerprint

    name = fingerprint(config.model_dump(mode="json"), labelled_set, *more, processes)
    return parent / f"{PREFIX}{name}"


def begin(work: Path, config: ModelConfig, labelled_set: str, processes: int) -> None:
    """Describe a training in its folder, and log other unfinished trainings beside it with the action to take."""
    about = {"configuration": config.name, "labelled_set": labelled_set, "processes": processes}
    storage.write_bytes(work / ABOUT, json.dumps(about, indent=1).encode())
    for other in sorted(work.parent.glob(f"{PREFIX}*")):
        if other != work and other.is_dir():
            files = [path for path in other.rglob("*") if path.is_file()]
            newest = max((path.stat().st_mtime for path in files), default=other.stat().st_mtime)
            log.info(
                "unfinished: %s belongs to another training (%s), %.0f MB, last written %s: it resumes only when that training "
                "is started again; remove the folder if you do not need it",
                other, _about(other), sum(path.stat().st_size for path in files) / 1e6,
                f"{datetime.fromtimestamp(newest):%Y-%m-%d %H:%M}",
            )  # fmt: skip


def finish(work: Path, kept: AnyPath) -> None:
    """Remove a finished training's folder, except TensorBoard's logs, which become the folder `kept` for comparison.

    If the logs cannot be written, a warning is logged and nothing fails.
    """
    logs = work / LOGS
    try:
        if not storage.on_disk(kept):
            storage.send_folder(logs, kept)
        elif logs.is_dir():
            shutil.rmtree(kept, ignore_errors=True)  # logs of an earlier run of the same training
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(logs, kept)
    except OSError as error:
        log.warning("TensorBoard's logs are not kept: %s", error)
    shutil.rmtree(work, ignore_errors=True)


def labelled_set(work: AnyPath) -> str | None:
    """Return the id of the labelled set of an unfinished training; None if it is unknown."""
    about = _read(work)
    return str(about.get("labelled_set")) if about else None


def _read(folder: AnyPath) -> dict[str, Any] | None:
    try:
        about: dict[str, Any] = json.loads(storage.read_bytes(folder / ABOUT) or b"")
    except (OSError, ValueError):
        return None
    return about


def _about(folder: AnyPath) -> str:
    about = _read(folder)
    if about is None:
        return "not described"
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in about.items())
