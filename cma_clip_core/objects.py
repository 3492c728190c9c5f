"""Many small objects on S3, such as pictures: read, asked for and written by obstore, whose client is Rust's `object_store`.

Of s3fs each request takes milliseconds of processor time, several times what it takes to decode a small picture. Where the
server is and who we are is s3fs's to know (`jobs.object_store.place`): the usual chain, a profile, a role.
"""

from __future__ import annotations

import os
import threading
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

if TYPE_CHECKING:
    from botocore.credentials import ReadOnlyCredentials
    from obstore.store import ClientConfig, S3Config, S3Credential
    from s3fs import S3FileSystem

# As long as `jobs.object_store` waits for a server that does not answer, and for one that is slow for a moment.
_CONNECT: Final = timedelta(seconds=5)
_ANSWER: Final = timedelta(seconds=20)
_RETRIES: Final = 3
# Until keys are asked for again, less the five minutes that obstore does so before: what a role gives holds at least this long.
_KEYS: Final = timedelta(minutes=14)
_lock: Final = threading.Lock()


def read(fs: S3FileSystem, path: str, most: int) -> bytes | int | None:
    """Return the object at `path`, in one request.

    Args:
        fs: knows the server, and who we are.
        path: bucket and key, ``bucket/key``.
        most: bytes that are read at most.

    Returns:
        Its bytes; its size, where it has more bytes than `most`; None where there is none.

    Raises:
        OSError: the server, or the network to it, fails; names the object.
    """
    bucket, _, key = path.partition("/")
    try:
        found = obstore.get(_store(fs, bucket), key)
        size = found.meta["size"]
        return size if size > most else bytes(found.bytes())
    except FileNotFoundError:
        return None
    except BaseError as error:
        raise _failed(path, error) from error


def size(fs: S3FileSystem, path: str) -> int | None:
    """Return the bytes of the object at `path`; None where there is none. Arguments and errors as of `read`."""
    bucket, _, key = path.partition("/")
    try:
        return obstore.head(_store(fs, bucket), key)["size"]
    except FileNotFoundError:
        return None
    except BaseError as error:
        raise _failed(path, error) from error


def write(fs: S3FileSystem, path: str, data: bytes) -> None:
    """Make `data` the object at `path`, in one request. Arguments and errors as of `read`."""
    bucket, _, key = path.partition("/")
    try:
        obstore.put(_store(fs, bucket), key, data, use_multipart=False)
    except (BaseError, FileNotFoundError) as error:
        raise _failed(path, error) from error


def _failed(path: str, error: Exception) -> OSError:
    return OSError(f"s3://{path}: {str(error).partition('Debug source:')[0].strip()}")


def forget() -> None:
    """Take the environment anew: clients are kept as it was when they were made."""
    _made.cache_clear()


def _store(fs: S3FileSystem, bucket: str) -> S3Store:
    with _lock:  # else threads that all begin would make one each
        return _made(fs, bucket, os.getpid())


@lru_cache(maxsize=16)
def _made(fs: S3FileSystem, bucket: str, process: int) -> S3Store:  # noqa: ARG001 - connections do not survive a fork
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
    config: S3Config = {"endpoint": server.endpoint_url}
    if (region := server.region_name) and region != "aws-global":
        config["region"] = region
    client: ClientConfig = {"allow_http": True, "connect_timeout": _CONNECT, "timeout": _ANSWER}
    if trusted := os.environ.get("AWS_CA_BUNDLE"):
        client["root_certificate"] = Path(trusted).read_bytes()
    return S3Store(
        bucket,
        config=config,
        credential_provider=provide,
        client_options=client,
        retry_config={"max_retries": _RETRIES, "retry_timeout": 2 * _ANSWER},
    )
