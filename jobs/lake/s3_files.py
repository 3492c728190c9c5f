"""Objects on S3, and the conditions that a write may have: that there is nothing yet, or still what was read.

What S3 gives is enough for all that a lake needs: an object appears whole or not at all, whoever reads or lists after a
write sees it, and a PUT may be conditional (``If-None-Match``, ``If-Match``). There is no rename, and no lock (`jobs.lake.leases`).
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from jobs.errors import JobError

if TYPE_CHECKING:
    from s3fs import S3FileSystem
    from upath import UPath

log = logging.getLogger(__name__)

MOST_REMOVED: Final = 1000  # objects a request
_CHUNK: Final = 8 * 2**20  # bytes read at a time
# s3fs sends data of twice its chunk in parts and leaves the condition out. What is swapped is a thousand times smaller.
_MOST_CONDITIONAL: Final = 32 * 2**20
_FAILED: Final = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "412", "409"})
# Seconds, and tries: an address that does not answer is told within half a minute, a server that is slow for a moment is waited for.
_CLIENT: Final = {"connect_timeout": 5, "read_timeout": 20, "retries": {"mode": "standard", "total_max_attempts": 4}}


class ConditionFailedError(Exception):
    """There is something else than a conditional write was to replace; nothing was written."""


class Found(NamedTuple):
    """An object's content, and what a conditional write names it by."""

    data: bytes
    etag: str


def s3_path(uri: str, client: Mapping[str, Any] = _CLIENT) -> UPath:
    """Return the place that an ``s3://`` URI names. Where its server is, and who we are, the environment says.

    As every AWS client: ``AWS_ENDPOINT_URL``, ``AWS_REGION``, ``AWS_ACCESS_KEY_ID`` or a profile, a role, a container's credentials.
    """
    from upath import UPath

    # Of botocore the variable has another name than of all other clients.
    region = {"region_name": os.environ["AWS_REGION"]} if os.environ.get("AWS_REGION") else {}
    # Nothing is remembered of listings: others write here too.
    return UPath(uri, use_listings_cache=False, config_kwargs=dict(client), client_kwargs=region)


def forget() -> None:
    """Take the environment anew: connections of this process are kept as it was when they were made."""
    from s3fs import S3FileSystem

    from cma_clip_core.content import s3_objects

    S3FileSystem.clear_instance_cache()
    s3_objects.forget()


def read(path: UPath) -> Found | None:
    """Return the object at `path`; None where there is none."""
    fs, bucket, key = _split(path)
    try:
        answer = fs.call_s3("get_object", Bucket=bucket, Key=key)
    except FileNotFoundError:
        return None
    return Found(_body(fs, answer), answer["ETag"])


def _body(fs: S3FileSystem, answer: dict[str, Any]) -> bytes:
    from fsspec.asyn import sync

    async def read_all() -> bytes:
        async with answer["Body"] as body:
            return bytes(await body.read())

    return bytes(sync(fs.loop, read_all))


def put(path: UPath, data: bytes, replaces: Found | None) -> Found:
    """Write `data` at `path` if that still is what `replaces` says (None: nothing), and return it as it is there now.

    Where the answer to the write was lost and it was sent again, the second one finds its own data: it has been written.

    Raises:
        ConditionFailedError: there is something else.
    """
    if len(data) > _MOST_CONDITIONAL:
        raise ValueError(f"{path}: {len(data):,} bytes are too many for a conditional write")
    fs, bucket, key = _split(path)
    condition = {"IfNoneMatch": "*"} if replaces is None else {"IfMatch": replaces.etag}
    try:
        answer = fs.call_s3("put_object", Bucket=bucket, Key=key, Body=data, **condition)
    except OSError as error:
        if replaces is not None and isinstance(error, FileNotFoundError):  # so S3 says of what was removed meanwhile
            raise ConditionFailedError(str(path)) from None
        if code(error) not in _FAILED and not isinstance(error, FileExistsError):
            raise
        found = read(path)
        if found is not None and found.data == data:
            return found
        raise ConditionFailedError(str(path)) from None
    return Found(data, answer["ETag"])


def upload(source: Path, path: UPath) -> None:
    """Make the local file `source` the object at `path`, whole or not at all."""
    path.fs.put_file(str(source), path.path)


def download(path: UPath, target: Path) -> None:
    """Copy the object at `path` to the local file `target`. Raises FileNotFoundError where there is none."""
    path.fs.get_file(path.path, str(target))


def sha256(path: UPath) -> str:
    """Return the hex SHA-256 of the object at `path`."""
    digest = hashlib.sha256()
    with path.fs.open(path.path, "rb", block_size=_CHUNK, cache_type="readahead") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


class Entry(NamedTuple):
    """What is in a folder: an object, or what is a folder elsewhere."""

    path: UPath
    written: float | None  # seconds since 1970, by the server's clock; None: a folder


def entries(folder: UPath, prefix: str = "") -> list[Entry]:
    """Return what there is in `folder` whose name begins with `prefix`, in order.

    One request for each thousand of them, whatever lies below or beside them.
    """
    fs, bucket, key = _split(folder)
    start = f"{key.rstrip('/')}/" if key else ""
    found: dict[str, float | None] = {}
    for page in _pages(fs, Bucket=bucket, Prefix=start + prefix, Delimiter="/"):
        found |= {each["Key"][len(start) :]: each["LastModified"].timestamp() for each in page.get("Contents", ())}
        found |= {each["Prefix"][len(start) :].rstrip("/"): None for each in page.get("CommonPrefixes", ())}
    return [Entry(folder / name, found[name]) for name in sorted(found) if name]


def children(folder: UPath, prefix: str = "") -> list[UPath]:
    """Return the places of `entries`."""
    return [entry.path for entry in entries(folder, prefix)]


class Object(NamedTuple):
    """An object as a listing shows it."""

    path: UPath
    bytes: int
    written: float  # seconds since 1970, by the server's clock


def below(folder: UPath, first: str = "") -> Iterator[Object]:
    """Yield all objects in `folder` and below, in order, from the name `first` on. One request for each thousand."""
    fs, bucket, key = _split(folder)
    start = f"{key.rstrip('/')}/" if key else ""
    for page in _pages(fs, Bucket=bucket, Prefix=start, **({"StartAfter": start + first} if first else {})):
        for each in page.get("Contents", ()):
            if name := each["Key"][len(start) :]:
                yield Object(folder / name, each["Size"], each["LastModified"].timestamp())


def _pages(fs: S3FileSystem, **asked: Any) -> Iterator[dict[str, Any]]:
    more: dict[str, str] = {}
    while True:
        page = fs.call_s3("list_objects_v2", **asked, **more)
        yield page
        if not page.get("IsTruncated"):
            return
        more = {"ContinuationToken": page["NextContinuationToken"]}


def remove(paths: list[UPath]) -> None:
    """Remove objects, `MOST_REMOVED` a request; one that is not there is none."""
    for start in range(0, len(paths), MOST_REMOVED):
        some = paths[start : start + MOST_REMOVED]
        fs, bucket, _ = _split(some[0])
        asked = {"Objects": [{"Key": _split(path)[2]} for path in some], "Quiet": True}
        answer = fs.call_s3("delete_objects", Bucket=bucket, Delete=asked)
        if refused := answer.get("Errors"):
            first = refused[0]
            raise JobError(
                f"s3://{bucket}/{first.get('Key')}: it cannot be removed: {first.get('Message') or first.get('Code')}"
            )


def code(error: BaseException) -> str:
    """Return S3's own code of an error, such as NoSuchBucket; '' where it has none."""
    return str(_response(error).get("Error", {}).get("Code", ""))


def status(error: BaseException) -> int:
    """Return the HTTP status that S3 answered an error with; 0 where it did not answer."""
    return int(_response(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _response(error: BaseException) -> dict[str, Any]:
    return getattr(error, "response", None) or getattr(error.__cause__, "response", None) or {}


def _split(path: UPath) -> tuple[S3FileSystem, str, str]:
    fs: S3FileSystem = path.fs
    bucket, key, _ = fs.split_path(path.path)
    return fs, bucket, key
