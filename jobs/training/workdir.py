"""Where a training that was killed goes on: a folder named by all that decides its course.

Another configuration, set of examples or number of processes is another training, in another folder, so that nothing has
to be deleted to begin it. What was begun stays until it is finished or someone removes it.
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
    """Return the folder below `parent` in which a training goes on.

    Args:
        parent: where what is finished goes.
        config: all of it that decides the course of the training.
        labelled_set: id of the examples' set.
        more: what else decides it, as JSON holds it.
        processes: how many train together: each has its share of the rows, and its own random state.
    """
    from cma_clip_core.inputs.checkpoints import fingerprint

    name = fingerprint(config.model_dump(mode="json"), labelled_set, *more, processes)
    return parent / f"{PREFIX}{name}"


def begin(work: Path, config: ModelConfig, labelled_set: str, processes: int) -> None:
    """Write what a training is of into its folder, and log which others are unfinished beside it, and what to do."""
    about = {"configuration": config.name, "labelled_set": labelled_set, "processes": processes}
    storage.write_bytes(work / ABOUT, json.dumps(about, indent=1).encode())
    for other in sorted(work.parent.glob(f"{PREFIX}*")):
        if other != work and other.is_dir():
            files = [path for path in other.rglob("*") if path.is_file()]
            newest = max((path.stat().st_mtime for path in files), default=other.stat().st_mtime)
            log.info(
                "unfinished: %s is of another training (%s), %.0f MB, last written %s: it goes on only where that is started "
                "again; remove the folder if it is not wanted",
                other, _about(other), sum(path.stat().st_size for path in files) / 1e6,
                f"{datetime.fromtimestamp(newest):%Y-%m-%d %H:%M}",
            )  # fmt: skip


def finish(work: Path, kept: AnyPath) -> None:
    """Remove a finished training's folder. TensorBoard's logs become the folder `kept`, so that trainings can be compared
    afterwards; where they cannot be written, that is said, and nothing fails.
    """
    logs = work / LOGS
    try:
        if not storage.on_disk(kept):
            storage.send_folder(logs, kept)
        elif logs.is_dir():
            shutil.rmtree(kept, ignore_errors=True)  # of the same training done before
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(logs, kept)
    except OSError as error:
        log.warning("TensorBoard's logs are not kept: %s", error)
    shutil.rmtree(work, ignore_errors=True)


def labelled_set(work: AnyPath) -> str | None:
    """Return the id of the labelled set of an unfinished training; None where nothing says it."""
    found = _read(work)
    return str(found.get("labelled_set")) if found else None


def _read(folder: AnyPath) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(storage.read_bytes(folder / ABOUT) or b"")
    except (OSError, ValueError):
        return None
    return found


def _about(folder: AnyPath) -> str:
    found = _read(folder)
    if found is None:
        return "nothing says of what"
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in found.items())
