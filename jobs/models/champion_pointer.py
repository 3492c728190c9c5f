"""The champion: which model version the nights use. One small file, swapped whole; loads no torch.

Its first line is the champion, the next one the champion before it, and so on: going back takes no other file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cma_clip_core import registry
from cma_clip_core.errors import CoreError
from cma_clip_core.versions import is_version
from jobs.errors import JobError
from jobs.lake import storage
from jobs.lake.layout import Lake
from jobs.settings import Settings

_REPAIR: Final = "`python -m jobs models repair` shows how it would be made again, and loses nothing"
REMEMBERED = 100  # champions


@dataclass(frozen=True, slots=True)
class Champions:
    """The champion and those before it, as they were when they were read: what a swap is compared with."""

    content: bytes | None  # of the file; None: there is none

    @property
    def versions(self) -> tuple[str, ...]:
        """The champion, and after it those before it."""
        return tuple((self.content or b"").decode().split())

    @property
    def live(self) -> str | None:
        """The champion; None where no model was promoted yet."""
        return next(iter(self.versions), None)


def champions(settings: Settings) -> Champions:
    """Return the champions of this instant.

    Raises:
        JobError: the file that names them is damaged.
    """
    path = Lake(settings.root).champion
    content = storage.read_bytes(path)
    if content is not None:
        words = content.decode(errors="replace").split()
        wrong = next((word for word in words if not is_version(word)), None)
        if wrong is not None or not words:
            what = f"{wrong[:50]!r} in it is no model version" if wrong is not None else "it is empty"
            raise JobError(f"{path}: damaged: {what}; {_REPAIR}")
    return Champions(content)


def champion(settings: Settings) -> str | None:
    """Return the champion's version, or None where no model was promoted yet."""
    return champions(settings).live


def promote(settings: Settings, version: str, seen: Champions | None = None) -> None:
    """Make a model version the champion.

    Args:
        settings: names the lake.
        version: the new champion.
        seen: the champions when it was judged, or found to need no judging; None: those of this instant.

    Raises:
        JobError: there is no such version, or one of its files is not what was saved.
        SwapLostError: the champion is no longer the one that it was judged against; nothing was changed.
    """
    lake = Lake(settings.root)
    check_whole(lake, version)
    before = champions(settings) if seen is None else seen
    _swap(settings, version, before, (version, *(before.versions if before.live != version else before.versions[1:])))


def rollback(settings: Settings) -> str:
    """Make the champion before this one the champion again, and return it.

    Raises:
        JobError: there is none before it, it is no longer there, or one of its files is not what was saved.
        SwapLostError: someone else promoted a version in the same instant.
    """
    lake, before = Lake(settings.root), champions(settings)
    if len(before.versions) < 2:
        raise JobError(f"{lake.champion}: there is no champion before {before.live or 'the first one'}")
    version = before.versions[1]
    check_whole(lake, version)
    _swap(settings, version, before, before.versions[1:])
    return version


def check_whole(lake: Lake, version: str) -> None:
    """Raise JobError where there is no such model version, or one of its files is not what was saved."""
    check_version(lake, version)
    try:
        registry.check(lake.models / version)
    except CoreError as error:
        raise JobError(f"{version} cannot be the champion: {error}") from error


def check_version(lake: Lake, version: str) -> None:
    """Raise JobError where there is no such model version."""
    versions = registry.list_versions(lake.models)
    if version not in versions:
        raise JobError(f"{version!r} is no model version in {lake.models}; there are {versions or 'none'}")


def check_champion(lake: Lake, version: str) -> None:
    """Raise JobError where the champion is not among the model versions."""
    if version not in registry.list_versions(lake.models):
        raise JobError(f"{lake.champion}: it names {version}, and {lake.models} has no such version; {_REPAIR}")


def never_promoted(lake: Lake) -> str:
    """Return what is to be said of versions that there are where there is no champion; nothing where there are none."""
    versions = registry.list_versions(lake.models)
    if not versions:
        return ""
    return (
        f". There are versions, and {lake.champion} is missing: `python -m jobs models promote {versions[-1]}` makes one the "
        f"champion; where there was one, {_REPAIR}"
    )


def _swap(settings: Settings, version: str, before: Champions, after: tuple[str, ...]) -> None:
    content = "".join(f"{v}\n" for v in after[:REMEMBERED]).encode()
    try:
        storage.compare_and_swap(Lake(settings.root).champion, before.content, content)
    except storage.SwapLostError as error:
        raise storage.SwapLostError(
            f"{version} was to follow the champion {before.live or '(none)'}, but the champion is now "
            f"{champion(settings) or '(none)'}: someone else changed it meanwhile; promote it again"
        ) from error
