"""Many small objects on S3, such as pictures: read, asked for and written by obstore, whose client is Rust's `object_store`.

Of s3fs each request takes several times the processor time that it takes to decode a small picture. Where the server is and
who we are is s3fs's to know (`jobs.lake.s3_files.place`): the usual chain, a profile, a role.

A process that has used it must not be forked: its threads would be missing in the child.
"""

from __future__ import annotations

import os
import re
import threading
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

if TYPE_CHECKING:
    from botocore.credentials import ReadOnlyCredentials
    from obstore.store import ClientConfig, RetryConfig, S3Config, S3Credential
    from s3fs import S3FileSystem

_CONNECT: Final = timedelta(seconds=5)
_READ: Final = timedelta(seconds=20)  # until the next bytes of an answer
_WHOLE: Final = timedelta(minutes=5)  # request and answer, a large picture's over a thin line too
# A server that is busy, or starts anew, is waited for as long as a minute.
_RETRIES: Final[RetryConfig] = {
    "max_retries": 10,
    "retry_timeout": timedelta(seconds=60),
    "backoff": {"init_backoff": timedelta(seconds=0.5), "max_backoff": timedelta(seconds=10), "base": 2},
}
# Until keys are asked for again, less the five minutes that obstore does so before: what a role gives holds at least this long.
_KEYS: Final = timedelta(minutes=14)
_STATUS: Final = re.compile(r"status code: (\d{3})")
_WORDS: Final = re.compile(r"<(Code|Message)>([^<]*)</")

_lock: Final = threading.Lock()
_process: int | None = None  # that uses it


class ObjectError(OSError):
    """The server, or the network to it, fails.

    Attributes:
        response: what S3 said, as botocore's errors have it.
    """

    def __init__(self, path: str, error: Exception) -> None:
        # Not all of the answer: it can repeat what was sent, a session's token with it.
        told = str(error).partition("Debug source:")[0]
        words = dict(_WORDS.findall(told))
        status = int(found[1]) if (found := _STATUS.search(told)) else 0
        if not words and status == HTTPStatus.FORBIDDEN:  # to a HEAD, S3 answers without words
            words = {"Code": "AccessDenied"}
        self.response: dict[str, Any] = {"Error": words, "ResponseMetadata": {"HTTPStatusCode": status}}
        why = ": ".join(words[name] for name in ("Code", "Message") if words.get(name))
        super().__init__(f"s3://{path}: {why or told.partition(': <')[0].strip()}")


def read(fs: S3FileSystem, path: str, most: int) -> bytes | int | None:
    """Return the object at `path`, in one request.

    Args:
        fs: knows the server, and who we are.
        path: bucket and key, ``bucket/key``.
        most: bytes that are read at most.

    Returns:
        Its bytes; its size, where it has more bytes than `most`; None where there is none.

    Raises:
        ObjectError: the server, or the network to it, fails; names the object.
        OSError: a setting names a file that is not there, such as AWS_CA_BUNDLE.
    """
    bucket, _, key = path.partition("/")
    store = _store(fs, bucket, writes=False)
    try:
        found = obstore.get(store, key)
        there = found.meta["size"]
        return there if there > most else bytes(found.bytes())
    except FileNotFoundError:
        return None
    except BaseError as error:
        raise ObjectError(path, error) from error


class Head(NamedTuple):
    """What a server says of an object without sending it."""

    size: int  # bytes
    etag: str  # of most objects the MD5 of their content, in hex


def head(fs: S3FileSystem, path: str) -> Head | None:
    """Return what there is at `path`; None where there is no object. Arguments and errors as of `read`."""
    bucket, _, key = path.partition("/")
    store = _store(fs, bucket, writes=False)
    try:
        found = obstore.head(store, key)
    except FileNotFoundError:
        return None
    except BaseError as error:
        raise ObjectError(path, error) from error
    return Head(found["size"], (found["e_tag"] or "").strip('"'))


def write(fs: S3FileSystem, path: str, data: bytes) -> None:
    """Make `data` the object at `path`, in one request. Arguments and errors as of `read`."""
    bucket, _, key = path.partition("/")
    store = _store(fs, bucket, writes=True)
    try:
        obstore.put(store, key, data, use_multipart=False)
    except (BaseError, FileNotFoundError) as error:  # the latter: no such bucket
        raise ObjectError(path, error) from error


def forget() -> None:
    """Take the environment anew: clients are kept as it was when they were made."""
    _made.cache_clear()


def _store(fs: S3FileSystem, bucket: str, *, writes: bool) -> S3Store:
    global _process
    with _lock:  # else threads that all begin would make one each
        if _process not in (None, os.getpid()):
            raise RuntimeError("obstore was used before this process was forked, and would wait for ever")
        _process = os.getpid()
        return _made(fs, bucket, writes)


@lru_cache(maxsize=16)
def _made(fs: S3FileSystem, bucket: str, writes: bool) -> S3Store:
    """Return the client of a bucket."""
    from fsspec.asyn import sync

    async def keys() -> ReadOnlyCredentials:
        found = await fs.session.get_credentials()
        if found is None:
            raise ValueError("there are no credentials")
        frozen: ReadOnlyCredentials = await found.get_frozen_credentials()
        return frozen

    def provide() -> S3Credential:
        found = sync(fs.loop, keys)
        return {
            "access_key_id": found.access_key,
            "secret_access_key": found.secret_key,
            "token": found.token,
            "expires_at": datetime.now(UTC) + _KEYS,
        }

    server = fs.s3.meta  # connects
    config: S3Config = {"endpoint": server.endpoint_url, "region": server.region_name}
    client: ClientConfig = {"allow_http": True, "connect_timeout": _CONNECT, "timeout": _WHOLE}
    if not writes:  # of what is written the answer comes last
        client["read_timeout"] = _READ
    if trusted := os.environ.get("AWS_CA_BUNDLE"):
        client["root_certificate"] = Path(trusted).read_bytes()
    return S3Store(bucket, config=config, credential_provider=provide, client_options=client, retry_config=_RETRIES)
