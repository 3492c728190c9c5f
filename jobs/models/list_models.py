"""List the model versions, or show one. Loads no torch and reads no weights, so it is fast even with a lake on S3."""

from __future__ import annotations

from cma_clip_core import registry
from cma_clip_core.errors import CoreError
from cma_clip_core.evaluation.metrics import learnt, mean_of
from cma_clip_core.model_documents import Metrics
from jobs.errors import JobError
from jobs.lake.layout import Lake
from jobs.lake.storage import AnyPath
from jobs.models.champion_pointer import champion, check_version
from jobs.settings import Settings


def show_model(settings: Settings, version: str) -> None:
    """Print a version's name and model card.

    Raises:
        JobError: the version does not exist, or its card cannot be read or was changed.
    """
    lake = Lake(settings.root)
    check_version(lake, version)
    try:
        card = registry.read_card(lake.models / version)
    except CoreError as error:
        raise JobError(str(error)) from error
    print(f"Model version {version}\n\n{card}", end="")


def list_models(settings: Settings) -> None:
    """Print the model versions, oldest first; mark the champion, and give the reason for a broken version.

    Documents are read and compared with their hashes. Other files, including the weights, need only exist.
    """
    lake = Lake(settings.root)
    versions, live = registry.list_versions(lake.models), champion(settings)
    if not versions:
        print(f"no models in {lake.models}; run `python -m jobs train`")
        return
    print(f"  {'version':<18} {'configuration':<14} {'taxonomy':<12} {'recall at target':>16} {'accuracy':>9}")
    for version in versions:
        try:
            shown = _summarise(lake.models / version)
        except CoreError as error:
            shown = f"broken: {' '.join(str(error).split())}"
        print(f"{'*' if version == live else ' '} {version:<18} {shown}")
    if live is not None and live not in versions:
        print(f"the champion {live} is gone: `models promote` another one, or `models rollback`")


def _summarise(folder: AnyPath) -> str:
    registry.check_complete(folder)
    registry.read_thresholds(folder)
    config, taxonomy = registry.read_config(folder), registry.read_taxonomy(folder)
    test = learnt(registry.read_json(folder / registry.METRICS, Metrics))
    recall, accuracy = mean_of(test, "recall_at_target"), mean_of(test, "accuracy")
    return f"{config.name:<14} {taxonomy.name:<12} {recall:>16.3f} {accuracy:>9.3f}"
