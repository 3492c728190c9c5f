"""Access to many small S3 objects, such as pictures, through obstore, a binding of Rust's `object_store`.

A request of s3fs takes several times the processor time of decoding a small picture. The server's address and the
credentials still come from s3fs (`jobs.lake.s3_files.s3_path`): the usual chain, a profile, or a role.

A process that has used this module must not be forked, because obstore's threads would be missing in the child.
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
from fsspec.asyn import sync
from obstore.exceptions import BaseError
from obstore.store import S3Store

if TYPE_CHECKING:
    from botocore.credentials import ReadOnlyCredentials
    from obstore.store import ClientConfig, RetryConfig, S3Config, S3Credential
    from s3fs import S3FileSystem

_CONNECT: Final = timedelta(seconds=5)
_READ: Final = timedelta(seconds=20)  # wait for the next bytes of a response
_WHOLE: Final = timedelta(minutes=5)  # request and response, enough for a large picture over a slow line
# Wait up to a minute for a server that is busy or restarting.
_RETRIES: Final[RetryConfig] = {
    "max_retries": 10,
    "retry_timeout": timedelta(seconds=60),
    "backoff": {"init_backoff": timedelta(seconds=0.5), "max_backoff": timedelta(seconds=10), "base": 2},
}
# Validity reported for credentials; obstore renews them five minutes earlier. A role's credentials last at least this
# long.
_KEYS: Final = timedelta(minutes=14)
_STATUS: Final = re.compile(r"status code: (\d{3})")
_WORDS: Final = re.compile(r"<(Code|Message)>([^<]*)</")

_lock: Final = threading.Lock()
_process: int | None = None  # id of the process that uses obstore


class ObjectError(OSError):
    """A failure of the server, or of the network to it.

    Attributes:
        response: S3's response, in the form of botocore's errors.
    """

    def __init__(self, path: str, error: Exception) -> None:
        # Omit the rest of the message, which may repeat the request and with it a session's token.
        message = str(error).partition("Debug source:")[0]
        words = dict(_WORDS.findall(message))
        status = int(match[1]) if (match := _STATUS.search(message)) else 0
        if not words and status == HTTPStatus.FORBIDDEN:  # S3's response to a HEAD has no body
            words = {"Code": "AccessDenied"}
        self.response: dict[str, Any] = {"Error": words, "ResponseMetadata": {"HTTPStatusCode": status}}
        reason = ": ".join(words[name] for name in ("Code", "Message") if words.get(name))
        super().__init__(f"s3://{path}: {reason or message.partition(': <')[0].strip()}")


def read(fs: S3FileSystem, path: str, max_bytes: int) -> bytes | int | None:
    """Return the object at `path`, in one request.

    Args:
        fs: file system with the server's address and credentials.
        path: ``bucket/key``.
        max_bytes: maximum number of bytes to read.

    Returns:
        The object's bytes; its size if that exceeds `max_bytes`; None if it does not exist.

    Raises:
        ObjectError: the server, or the network to it, fails; the message names the object.
        OSError: a setting such as AWS_CA_BUNDLE names a file that does not exist.
    """
    bucket, _, key = path.partition("/")
    store = _store(fs, bucket, writes=False)
    try:
        result = obstore.get(store, key)
        size = result.meta["size"]
        return size if size > max_bytes else bytes(result.bytes())
    except FileNotFoundError:
        return None
    except BaseError as error:
        raise ObjectError(path, error) from error


class Head(NamedTuple):
    """Metadata of an object."""

    size: int  # bytes
    etag: str  # usually the MD5 of the content, in hex


def head(fs: S3FileSystem, path: str) -> Head | None:
    """Return the metadata of the object at `path`; None if it does not exist. Arguments and errors as for `read`."""
    bucket, _, key = path.partition("/")
    store = _store(fs, bucket, writes=False)
    try:
        meta = obstore.head(store, key)
    except FileNotFoundError:
        return None
    except BaseError as error:
        raise ObjectError(path, error) from error
    return Head(meta["size"], (meta["e_tag"] or "").strip('"'))


def write(fs: S3FileSystem, path: str, data: bytes) -> None:
    """Write `data` to the object at `path`, in one request. Arguments and errors as for `read`."""
    bucket, _, key = path.partition("/")
    store = _store(fs, bucket, writes=True)
    try:
        obstore.put(store, key, data, use_multipart=False)
    except (BaseError, FileNotFoundError) as error:  # the latter if the bucket does not exist
        raise ObjectError(path, error) from error


def forget() -> None:
    """Drop the cached clients, so that new ones use the current environment."""
    _cached_store.cache_clear()


def _store(fs: S3FileSystem, bucket: str, *, writes: bool) -> S3Store:
    global _process
    with _lock:  # otherwise threads that start together would each create a client
        if _process not in (None, os.getpid()):
            raise RuntimeError("obstore was used before this process was forked, and would never return")
        _process = os.getpid()
        return _cached_store(fs, bucket, writes)


@lru_cache(maxsize=16)
def _cached_store(fs: S3FileSystem, bucket: str, writes: bool) -> S3Store:
    """Return the client of a bucket, a new one at the first call."""

    async def keys() -> ReadOnlyCredentials:
        credentials = await fs.session.get_credentials()
        if credentials is None:
            raise ValueError("there are no credentials")
        frozen: ReadOnlyCredentials = await credentials.get_frozen_credentials()
        return frozen

    def provide() -> S3Credential:
        credentials = sync(fs.loop, keys)
        return {
            "access_key_id": credentials.access_key,
            "secret_access_key": credentials.secret_key,
            "token": credentials.token,
            "expires_at": datetime.now(UTC) + _KEYS,
        }

    server = fs.s3.meta  # connects
    config: S3Config = {"endpoint": server.endpoint_url, "region": server.region_name}
    client: ClientConfig = {"allow_http": True, "connect_timeout": _CONNECT, "timeout": _WHOLE}
    if not writes:  # the response to a write comes only after the whole upload
        client["read_timeout"] = _READ
    if trusted := os.environ.get("AWS_CA_BUNDLE"):
        client["root_certificate"] = Path(trusted).read_bytes()
    return S3Store(bucket, config=config, credential_provider=provide, client_options=client, retry_config=_RETRIES)
