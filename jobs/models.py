"""The champion: which model version the nights use. One small file, swapped whole; loads no torch.

Its first line is the champion, the next one the champion before it, and so on: going back takes no other file.
"""

from __future__ import annotations

from cma_clip_core import registry
from jobs import storage
from jobs.errors import JobError
from jobs.lake import Lake
from jobs.settings import Settings

REMEMBERED = 100  # champions


def champion(settings: Settings) -> str | None:
    """Return the champion's version, or None where no model was promoted yet."""
    champions = _champions(Lake(settings.root))[1]
    return champions[0] if champions else None


def promote(settings: Settings, version: str, *, instead_of: str | None = None) -> None:
    """Make a model version the champion.

    Args:
        settings: names the lake.
        version: the new champion.
        instead_of: the champion that it was judged against; None: whichever there is.

    Raises:
        JobError: there is no such version, or the champion is another than the one it was judged against.
        SwapLostError: someone else promoted a version in the same instant.
    """
    lake = Lake(settings.root)
    check_version(lake, version)
    before, champions = _champions(lake)
    if instead_of is not None and champions[:1] != [instead_of]:
        raise JobError(
            f"{version} was judged against {instead_of}, but the champion is now {champions[0]}; promote it again"
        )
    if champions[:1] != [version]:
        _swap(lake, before, [version, *champions])


def rollback(settings: Settings) -> str:
    """Make the champion before this one the champion again, and return it.

    Raises:
        JobError: there is none before it, or it is no longer there.
        SwapLostError: someone else promoted a version in the same instant.
    """
    lake = Lake(settings.root)
    before, champions = _champions(lake)
    if len(champions) < 2:
        raise JobError(f"{lake.champion}: there is no champion before {champions[0] if champions else 'the first one'}")
    check_version(lake, champions[1])
    _swap(lake, before, champions[1:])
    return champions[1]


def check_version(lake: Lake, version: str) -> None:
    """Raise JobError where there is no such model version."""
    versions = registry.list_versions(lake.models)
    if version not in versions:
        raise JobError(f"{version!r} is no model version in {lake.models}; there are {versions or 'none'}")


def _champions(lake: Lake) -> tuple[bytes | None, list[str]]:
    try:
        data = lake.champion.read_bytes()
    except FileNotFoundError:
        return None, []
    return data, data.decode().split()


def _swap(lake: Lake, before: bytes | None, champions: list[str]) -> None:
    storage.compare_and_swap(lake.champion, before, "".join(f"{v}\n" for v in champions[:REMEMBERED]).encode())
