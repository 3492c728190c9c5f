"""The champion pointer: one small file, swapped atomically, that names the model version for the nights. Loads no torch.

The first line is the champion, the second line the previous champion, and so on. A rollback needs no other file.
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
REMEMBERED = 100  # champions in the file


@dataclass(frozen=True, slots=True)
class Champions:
    """The champion and the previous ones at the time of reading. A swap fails if the file has changed since."""

    content: bytes | None  # of the file; None: the file does not exist

    @property
    def versions(self) -> tuple[str, ...]:
        """The champion and the previous ones, newest first."""
        return tuple((self.content or b"").decode().split())

    @property
    def live(self) -> str | None:
        """The champion; None if no model was promoted yet."""
        return next(iter(self.versions), None)


def champions(settings: Settings) -> Champions:
    """Read the champion and the previous ones.

    Raises:
        JobError: the file that names them is damaged.
    """
    path = Lake(settings.root).champion
    content = storage.read_bytes(path)
    if content is not None:
        words = content.decode(errors="replace").split()
        wrong = next((word for word in words if not is_version(word)), None)
        if wrong is not None or not words:
            fault = f"{wrong[:50]!r} in it is no model version" if wrong is not None else "it is empty"
            raise JobError(f"{path}: damaged: {fault}; {_REPAIR}")
    return Champions(content)


def champion(settings: Settings) -> str | None:
    """Return the champion's version, or None if no model was promoted yet."""
    return champions(settings).live


def promote(settings: Settings, version: str, seen: Champions | None = None) -> None:
    """Make a model version the champion.

    Args:
        settings: names the lake.
        version: the new champion.
        seen: the champions that the version was judged against; None: read them now.

    Raises:
        JobError: the version does not exist, or one of its files was changed.
        SwapLostError: the champion has changed since the version was judged; nothing was written.
    """
    lake = Lake(settings.root)
    check_files(lake, version)
    before = champions(settings) if seen is None else seen
    _swap(settings, version, before, (version, *(before.versions if before.live != version else before.versions[1:])))


def rollback(settings: Settings) -> str:
    """Make the previous champion the champion again, and return it.

    Raises:
        JobError: no previous champion is known, it no longer exists, or one of its files was changed.
        SwapLostError: another process promoted a version at the same time.
    """
    lake, before = Lake(settings.root), champions(settings)
    if len(before.versions) < 2:
        raise JobError(f"{lake.champion}: no champion precedes {before.live or 'the first one'}")
    version = before.versions[1]
    check_files(lake, version)
    _swap(settings, version, before, before.versions[1:])
    return version


def check_files(lake: Lake, version: str) -> None:
    """Raise JobError if the model version does not exist, or one of its files was changed."""
    check_version(lake, version)
    try:
        registry.check(lake.models / version)
    except CoreError as error:
        raise JobError(f"{version} cannot be the champion: {error}") from error


def check_version(lake: Lake, version: str) -> None:
    """Raise JobError if the model version does not exist."""
    versions = registry.list_versions(lake.models)
    if version not in versions:
        raise JobError(f"{version!r} is no model version in {lake.models}; there are {versions or 'none'}")


def check_champion(lake: Lake, version: str) -> None:
    """Raise JobError if the champion is not among the model versions."""
    if version not in registry.list_versions(lake.models):
        raise JobError(f"{lake.champion}: it names {version}, and {lake.models} has no such version; {_REPAIR}")


def never_promoted(lake: Lake) -> str:
    """Return advice for a lake that has versions but no champion; empty if it has no versions."""
    versions = registry.list_versions(lake.models)
    if not versions:
        return ""
    return (
        f". Versions exist, but {lake.champion} is missing: `python -m jobs models promote {versions[-1]}` makes one the "
        f"champion; if a champion existed before, {_REPAIR}"
    )


def _swap(settings: Settings, version: str, before: Champions, after: tuple[str, ...]) -> None:
    content = "".join(f"{v}\n" for v in after[:REMEMBERED]).encode()
    try:
        storage.compare_and_swap(Lake(settings.root).champion, before.content, content)
    except storage.SwapLostError as error:
        raise storage.SwapLostError(
            f"{version} was to follow the champion {before.live or '(none)'}, but the champion is now "
            f"{champion(settings) or '(none)'}: another process changed it meanwhile; promote it again"
        ) from error
