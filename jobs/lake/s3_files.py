"""Objects on S3: reads, listings, removal, and writes that can be conditional.

A lake relies on three guarantees of S3:

* An object appears whole or not at all.
* Every read or listing after a write sees that write.
* A PUT can be conditional: the object does not exist yet (``If-None-Match``), or is still the one read (``If-Match``).

S3 has neither a rename nor locks; `jobs.lake.leases` builds locks from conditional writes.
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

MOST_REMOVED: Final = 1000  # objects per request
_CHUNK: Final = 8 * 2**20  # bytes read at a time
# s3fs sends data of twice its chunk size in parts and drops the condition. Swapped documents are a thousand times
# smaller.
_MOST_CONDITIONAL: Final = 32 * 2**20
_FAILED: Final = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "412", "409"})
# An address that does not answer is reported within half a minute; a server that is slow for a moment gets more
# attempts.
_CLIENT: Final = {"connect_timeout": 5, "read_timeout": 20, "retries": {"mode": "standard", "total_max_attempts": 4}}


class ConditionFailedError(Exception):
    """The object is not the one that a conditional write was to replace; nothing was written."""


class ObjectVersion(NamedTuple):
    """The content of an object, and the ETag by which a conditional write refers to it."""

    data: bytes
    etag: str


def s3_path(uri: str, client: Mapping[str, Any] = _CLIENT) -> UPath:
    """Return the path of an ``s3://`` URI.

    The environment gives the endpoint and the credentials, as for every AWS client: ``AWS_ENDPOINT_URL``,
    ``AWS_REGION``, and ``AWS_ACCESS_KEY_ID``, a profile, a role, or the credentials of a container.
    """
    from upath import UPath

    # botocore reads AWS_DEFAULT_REGION, all other clients AWS_REGION.
    region = {"region_name": os.environ["AWS_REGION"]} if os.environ.get("AWS_REGION") else {}
    # Listings are not cached, because other processes write here too.
    return UPath(uri, use_listings_cache=False, config_kwargs=dict(client), client_kwargs=region)


def forget() -> None:
    """Drop this process's cached connections, so that new ones use the current environment."""
    from s3fs import S3FileSystem

    from cma_clip_core.content import s3_objects

    S3FileSystem.clear_instance_cache()
    s3_objects.forget()


def read(path: UPath) -> ObjectVersion | None:
    """Return the object at `path`, or None if it does not exist."""
    fs, bucket, key = _split(path)
    try:
        answer = fs.call_s3("get_object", Bucket=bucket, Key=key)
    except FileNotFoundError:
        return None
    return ObjectVersion(_body(fs, answer), answer["ETag"])


def _body(fs: S3FileSystem, answer: dict[str, Any]) -> bytes:
    from fsspec.asyn import sync

    async def read_all() -> bytes:
        async with answer["Body"] as body:
            return bytes(await body.read())

    return bytes(sync(fs.loop, read_all))


def put(path: UPath, data: bytes, replaces: ObjectVersion | None) -> ObjectVersion:
    """Write `data` to `path` if the object is still `replaces` (None: if it does not exist), and return the new object.

    If the answer to a write is lost, the client sends the write again. The condition then fails, but the object holds
    the same data, so the write succeeded.

    Raises:
        ConditionFailedError: the object is another one.
    """
    if len(data) > _MOST_CONDITIONAL:
        raise ValueError(f"{path}: {len(data):,} bytes are too many for a conditional write")
    fs, bucket, key = _split(path)
    condition = {"IfNoneMatch": "*"} if replaces is None else {"IfMatch": replaces.etag}
    try:
        answer = fs.call_s3("put_object", Bucket=bucket, Key=key, Body=data, **condition)
    except OSError as error:
        if replaces is not None and isinstance(error, FileNotFoundError):  # the object was removed meanwhile
            raise ConditionFailedError(str(path)) from None
        if code(error) not in _FAILED and not isinstance(error, FileExistsError):
            raise
        current = read(path)
        if current is not None and current.data == data:
            return current
        raise ConditionFailedError(str(path)) from None
    return ObjectVersion(data, answer["ETag"])


def upload(source: Path, path: UPath) -> None:
    """Upload the local file `source` to the object at `path`, whole or not at all."""
    path.fs.put_file(str(source), path.path)


def download(path: UPath, target: Path) -> None:
    """Download the object at `path` to the local file `target`. Raises FileNotFoundError if it does not exist."""
    path.fs.get_file(path.path, str(target))


def sha256(path: UPath) -> str:
    """Return the hex SHA-256 of the object at `path`."""
    digest = hashlib.sha256()
    with path.fs.open(path.path, "rb", block_size=_CHUNK, cache_type="readahead") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


class Entry(NamedTuple):
    """An entry of a folder: an object, or a common prefix, which stands for a subfolder."""

    path: UPath
    written: float | None  # seconds since 1970, by the server's clock; None for a subfolder


def entries(folder: UPath, prefix: str = "") -> list[Entry]:
    """Return the entries of `folder` whose names begin with `prefix`, in order.

    Each request lists a thousand entries. Objects in subfolders, or without the prefix, add no requests.
    """
    fs, bucket, key = _split(folder)
    start = f"{key.rstrip('/')}/" if key else ""
    written: dict[str, float | None] = {}
    for page in _pages(fs, Bucket=bucket, Prefix=start + prefix, Delimiter="/"):
        written |= {each["Key"][len(start) :]: each["LastModified"].timestamp() for each in page.get("Contents", ())}
        written |= {each["Prefix"][len(start) :].rstrip("/"): None for each in page.get("CommonPrefixes", ())}
    return [Entry(folder / name, written[name]) for name in sorted(written) if name]


def children(folder: UPath, prefix: str = "") -> list[UPath]:
    """Return the paths of `entries`."""
    return [entry.path for entry in entries(folder, prefix)]


class Object(NamedTuple):
    """An object in a listing."""

    path: UPath
    bytes: int
    written: float  # seconds since 1970, by the server's clock


def below(folder: UPath, first: str = "") -> Iterator[Object]:
    """Yield all objects below `folder`, in order, starting after the name `first`. Each request lists a thousand."""
    fs, bucket, key = _split(folder)
    start = f"{key.rstrip('/')}/" if key else ""
    for page in _pages(fs, Bucket=bucket, Prefix=start, **({"StartAfter": start + first} if first else {})):
        for each in page.get("Contents", ()):
            if name := each["Key"][len(start) :]:
                yield Object(folder / name, each["Size"], each["LastModified"].timestamp())


def _pages(fs: S3FileSystem, **request: Any) -> Iterator[dict[str, Any]]:
    more: dict[str, str] = {}
    while True:
        page = fs.call_s3("list_objects_v2", **request, **more)
        yield page
        if not page.get("IsTruncated"):
            return
        more = {"ContinuationToken": page["NextContinuationToken"]}


def remove(paths: list[UPath]) -> None:
    """Remove objects, `MOST_REMOVED` per request. An object that does not exist is no error."""
    for start in range(0, len(paths), MOST_REMOVED):
        some = paths[start : start + MOST_REMOVED]
        fs, bucket, _ = _split(some[0])
        request = {"Objects": [{"Key": _split(path)[2]} for path in some], "Quiet": True}
        answer = fs.call_s3("delete_objects", Bucket=bucket, Delete=request)
        if refused := answer.get("Errors"):
            first = refused[0]
            raise JobError(
                f"s3://{bucket}/{first.get('Key')}: it cannot be removed: {first.get('Message') or first.get('Code')}"
            )


def code(error: BaseException) -> str:
    """Return the S3 code of an error, such as NoSuchBucket, or '' if it has none."""
    return str(_response(error).get("Error", {}).get("Code", ""))


def status(error: BaseException) -> int:
    """Return the HTTP status of an S3 error, or 0 if the server did not answer."""
    return int(_response(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _response(error: BaseException) -> dict[str, Any]:
    return getattr(error, "response", None) or getattr(error.__cause__, "response", None) or {}


def _split(path: UPath) -> tuple[S3FileSystem, str, str]:
    fs: S3FileSystem = path.fs
    bucket, key, _ = fs.split_path(path.path)
    return fs, bucket, key
