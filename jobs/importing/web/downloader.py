"""Concurrent downloads of pictures, into the lake and into the record of downloads.

aiohttp makes the requests, because it lets the caller make each socket. The address that is checked is therefore the one
that is connected.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import random
import re
import tempfile
import threading
import time
import zlib
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import IO, Any, Final, Protocol
from urllib.parse import urljoin, urlsplit

import aiohttp
from tqdm import tqdm
from yarl import URL

from cma_clip_core.content import picture_files
from cma_clip_core.content.pictures import MAX_BYTES, PictureError
from jobs.importing.web.addresses import NOT_PUBLIC, AllowedHosts, WebAddress, checked_socket
from jobs.importing.web.download_log import Download, DownloadLog
from jobs.lake import storage
from jobs.lake.storage import AnyPath

_AT_ONCE: Final = 128  # downloads of all hosts together
_ATTEMPTS: Final = 4
FIRST_WAIT = 1.0  # seconds before the second attempt; each further wait is twice as long
_CONNECT: Final = 10.0  # seconds
TOTAL = 60.0  # seconds of an attempt
_LONGEST_WAIT: Final = 120.0  # seconds; a host that asks for more is treated as unreachable
_REDIRECTS: Final = 5
_IN_MEMORY: Final = 2**20  # bytes of a download; the rest waits in a temporary file
FLUSH_SECONDS = 20.0  # a killed import loses at most the record of this time
_GIVEN_UP: Final = 50  # addresses of a host that fail one after the other until the host is asked no more
_FRESH: Final = 30 * 86_400.0  # seconds that a server's max-age is believed at most
_HOSTS: Final = 100  # hosts that failures are counted for separately
_OTHERS: Final = "other hosts"
_RETRIED: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_MAX_AGE: Final = re.compile(r"(?:^|,)\s*max-age=(\d{1,10})\b")
_ENDINGS: Final = {"JPEG": "jpg", "PNG": "png", "GIF": "gif", "WebP": "webp", "BMP": "bmp", "TIFF": "tif"}


class PictureWriter(Protocol):
    """Writer of pictures into the lake."""

    def add(self, path: str, data: bytes) -> None:
        """Write a picture, at the latest before `finish` returns."""

    def finish(self) -> None:
        """Wait until all pictures are durably written. Raises OSError if one could not be written."""


@dataclass(frozen=True, slots=True)
class DownloadLimits:
    """Limits of downloads that settings give."""

    connections: int = 16  # of one host
    proxy: str | None = None


@dataclass(frozen=True, slots=True)
class WebPicture:
    """A picture in the lake."""

    path: str
    digest: str
    outcome: str  # stored (the writer counts it as added or known) | known (not stored again) | kept (its host failed)


class _RetryError(Exception):
    """A failure that may pass."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.wait = reason, wait


@dataclass(slots=True)
class _Host:
    slots: asyncio.Semaphore
    failed: int = 0  # addresses one after the other
    not_before: float = 0.0  # time until which the host asked to wait


@dataclass(slots=True)
class PictureDownloads:
    """Downloads of pictures in a thread of its own. Each address is asked for once in an import."""

    hosts: AllowedHosts
    log: DownloadLog
    writer: PictureWriter
    writer_lock: threading.Lock
    pictures: AnyPath  # folder of the lake's pictures
    ds: str
    limits: DownloadLimits = DownloadLimits()
    progress: bool = False
    failures: dict[str, Counter[str]] = field(default_factory=dict)  # host -> reason -> addresses
    _running: dict[str, Future[WebPicture]] = field(default_factory=dict)
    _failed: dict[str, PictureError] = field(default_factory=dict)
    _states: dict[str, _Host] = field(default_factory=dict)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _sessions: dict[bool, aiohttp.ClientSession] = field(default_factory=dict)  # by WebAddress.private
    _storing: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="picture"))
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))
    _flushed: float = field(default_factory=time.monotonic)
    _bar: tqdm[Any] | None = None

    def __post_init__(self) -> None:
        self._bar = tqdm(desc="downloads", unit="picture", disable=not self.progress, smoothing=0.05)

    def start(self, stack: contextlib.ExitStack) -> None:
        """Start the thread; it ends when `stack` closes."""
        thread = threading.Thread(target=self._loop.run_forever, name="downloads", daemon=True)
        thread.start()
        stack.callback(self._stop, thread)

    def request(self, url: str) -> Future[WebPicture]:
        """Begin the download of `url` unless it has begun. The result, or its PictureError, comes in the future."""
        if (running := self._running.get(url)) is not None:
            return _known(running)
        future: Future[WebPicture] = Future()
        if (failed := self._failed.get(url)) is not None:
            future.set_exception(failed)
            return future
        try:
            address = self.hosts.check(url)
        except PictureError as error:
            self._count_failure(_host(url), _reason(error))
            future.set_exception(error)
            return future
        future = asyncio.run_coroutine_threadsafe(self._download(address), self._loop)
        self._running[url] = future
        future.add_done_callback(lambda _: self._running.pop(url, None))
        return future

    def finish(self) -> None:
        """Write what is not yet written. All requested downloads must have ended."""
        self._storing.submit(self._flush).result()
        self.log.finish()
        assert self._bar is not None
        self._bar.close()

    def _stop(self, thread: threading.Thread) -> None:
        async def close() -> None:
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for session in self._sessions.values():
                await session.close()

        asyncio.run_coroutine_threadsafe(close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        thread.join()
        self._loop.close()
        self._storing.shutdown()

    async def _download(self, address: WebAddress) -> WebPicture:
        earlier = await self._loop.run_in_executor(self._storing, self.log.find, address.url)
        if earlier is not None:  # on S3 each look takes a request, so many are made at once
            size = await self._loop.run_in_executor(None, storage.size, self.pictures / earlier.path)
            earlier = earlier if size == earlier.bytes else None
        try:
            if earlier is not None and (earlier.ds == self.ds or earlier.fresh_until > time.time()):
                return await self._reuse(earlier, "known", earlier.fresh_until)
            state = self._states.setdefault(address.host, _Host(asyncio.Semaphore(self.limits.connections)))
            async with state.slots, self._slots:
                try:
                    return await self._ask_again(address, earlier, state)
                except PictureError as error:
                    self._count_failure(address.host, _reason(error))
                    if earlier is None:
                        if len(self._failed) < 100_000:
                            self._failed[address.url] = error
                        raise
                    return WebPicture(earlier.path, earlier.digest, "kept")
        finally:
            assert self._bar is not None
            self._bar.update()

    async def _ask_again(self, address: WebAddress, earlier: Download | None, state: _Host) -> WebPicture:
        """Ask for an address until it answers, up to `_ATTEMPTS` times. Raises PictureError."""
        for attempt in range(1, _ATTEMPTS + 1):
            if state.failed >= _GIVEN_UP:
                raise PictureError(
                    "unreachable", f"the host failed {_GIVEN_UP} times in a row and is not asked any more"
                )
            if (wait := state.not_before - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            try:
                picture = await asyncio.wait_for(self._ask(address, earlier), TOTAL)
                state.failed = 0
                return picture
            except PictureError:
                state.failed = 0  # it answers
                raise
            except (_RetryError, aiohttp.ClientError, OSError, TimeoutError, asyncio.IncompleteReadError) as error:
                reason = _failure(error)
                asked = error.wait if isinstance(error, _RetryError) else None
                if NOT_PUBLIC in str(error):
                    raise PictureError("forbidden", f"{address.host}: its address is {NOT_PUBLIC}") from error
                if attempt == _ATTEMPTS or (asked or 0) > _LONGEST_WAIT:
                    state.failed += 1
                    raise PictureError("unreachable", reason) from error
                if asked is not None:
                    state.not_before = max(state.not_before, time.monotonic() + asked)
                else:
                    await asyncio.sleep(FIRST_WAIT * 2 ** (attempt - 1) * random.uniform(0.75, 1.25))
            except ValueError as error:  # an address that the library cannot write
                raise PictureError("forbidden", f"not a web address: {error}"[:300]) from error
        raise AssertionError("unreachable code")

    async def _ask(self, address: WebAddress, earlier: Download | None) -> WebPicture:
        headers = {"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "catalog-attribute-tagger"}
        if earlier is not None and earlier.etag:
            headers["If-None-Match"] = earlier.etag
        if earlier is not None and earlier.modified:
            headers["If-Modified-Since"] = earlier.modified
        current = address
        for _ in range(_REDIRECTS + 1):
            session = self._session(current.private)
            url = URL(current.url.partition("#")[0], encoded=_is_encoded(current.url))
            async with session.get(url, headers=headers, allow_redirects=False, proxy=self.limits.proxy) as response:
                if response.status in (301, 302, 303, 307, 308):
                    target = urljoin(current.url, response.headers.get("Location", ""))
                    try:
                        current = self.hosts.check(target)
                    except PictureError as error:
                        raise PictureError(error.status, f"redirected to {target[:200]}: {error.detail}") from None
                    continue
                if response.status == 304 and earlier is not None:
                    return await self._reuse(earlier, "known", _fresh_until(response))
                if response.status in (404, 410):
                    raise PictureError("missing", f"HTTP {response.status}")
                if response.status in _RETRIED:
                    raise _RetryError(f"HTTP {response.status}", _retry_after(response.headers.get("Retry-After", "")))
                if response.status != 200:
                    raise PictureError("unreachable", f"HTTP {response.status}")
                return await self._receive(address, response)
        raise PictureError("unreachable", f"more than {_REDIRECTS} redirects")

    async def _receive(self, address: WebAddress, response: aiohttp.ClientResponse) -> WebPicture:
        """Store the body of `response`. Memory is bounded: all but its start waits in a file."""
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("identity", "", "gzip", "x-gzip", "deflate"):
            raise PictureError("broken", f"Content-Encoding {encoding[:50]}, which was not asked for")
        unpacker = zlib.decompressobj(47) if encoding not in ("identity", "") else None
        if unpacker is None and (response.content_length or 0) > MAX_BYTES:
            raise PictureError("too_large", f"{response.content_length:,} bytes; at most {MAX_BYTES:,}")
        with tempfile.SpooledTemporaryFile(_IN_MEMORY) as body:
            size = 0
            try:
                async for chunk in response.content.iter_chunked(2**16):
                    data = chunk if unpacker is None else unpacker.decompress(chunk, MAX_BYTES + 1 - size)
                    size += len(data)
                    if size > MAX_BYTES:
                        raise PictureError("too_large", f"more than {MAX_BYTES:,} bytes")
                    body.write(data)
            except zlib.error as error:
                raise _RetryError("a damaged Content-Encoding") from error
            if unpacker is not None and not unpacker.eof:
                raise _RetryError("a truncated Content-Encoding")
            store = functools.partial(self._store, address.url, body, response)
            return await self._loop.run_in_executor(self._storing, store)

    def _session(self, private: bool) -> aiohttp.ClientSession:
        session = self._sessions.get(private)
        if session is None:
            # A proxy may be in a private network; it connects in our place.
            check = None if self.limits.proxy else functools.partial(checked_socket, private=private)
            connector = aiohttp.TCPConnector(limit=0, ttl_dns_cache=60, socket_factory=check)
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT)
            session = aiohttp.ClientSession(
                connector=connector, timeout=timeout, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
            )
            self._sessions[private] = session
        return session

    # --- in the storing thread, one at a time

    def _store(self, url: str, body: IO[bytes], response: aiohttp.ClientResponse) -> WebPicture:
        body.seek(0)
        data = body.read()
        if not data:
            raise PictureError("empty", "the server sent no bytes")
        begins_as = picture_files.begins_as(data)
        if begins_as is None and (kind := picture_files.kind(data)) is not None:
            raise PictureError("broken", f"not a picture: {kind}")
        digest = hashlib.sha1(data, usedforsecurity=False).hexdigest()
        path = f"{digest[:2]}/{digest}.{_ending(begins_as, data)}"
        with self.writer_lock:
            self.writer.add(path, data)
        etag, modified = (response.headers.get(name, "")[:1_000] for name in ("ETag", "Last-Modified"))
        self._remember(Download(url, path, digest, len(data), etag, modified, _fresh_until(response), self.ds))
        return WebPicture(path, digest, "stored")

    async def _reuse(self, earlier: Download, outcome: str, fresh_until: float) -> WebPicture:
        remembered = replace(earlier, ds=self.ds, fresh_until=fresh_until)
        if remembered != earlier:
            await self._loop.run_in_executor(self._storing, self._remember, remembered)
        return WebPicture(earlier.path, earlier.digest, outcome)

    def _remember(self, download: Download) -> None:
        self.log.add(download)
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._flush()

    def _flush(self) -> None:
        with self.writer_lock:
            self.writer.finish()  # a record must not survive a picture
        self.log.flush()
        self._flushed = time.monotonic()

    def _count_failure(self, host: str, reason: str) -> None:
        if host not in self.failures and len(self.failures) >= _HOSTS:
            host = _OTHERS
        self.failures.setdefault(host, Counter())[reason] += 1


def _known(running: Future[WebPicture]) -> Future[WebPicture]:
    """Return a future with the result of `running`, whose picture must not be counted as stored twice."""
    copied: Future[WebPicture] = Future()

    def finish(done: Future[WebPicture]) -> None:
        if done.cancelled():
            copied.cancel()
        elif (error := done.exception()) is not None:
            copied.set_exception(error)
        else:
            result = done.result()
            copied.set_result(replace(result, outcome="known") if result.outcome == "stored" else result)

    running.add_done_callback(finish)
    return copied


def _host(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "no host")[:253]
    except ValueError:
        return "no host"


def _reason(error: PictureError) -> str:
    """Return the failure as one of few reasons, without what differs from address to address."""
    if error.status in ("host_not_allowed", "forbidden"):
        return f"{error.status}: {'redirected' if error.detail.startswith('redirected') else 'address refused'}"
    if error.status == "too_large":
        return "too_large"
    return f"{error.status}: {error.detail}"[:120]


def _failure(error: BaseException) -> str:
    if isinstance(error, _RetryError):
        return error.reason
    if isinstance(error, TimeoutError):
        return "time limit exceeded"
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return "the certificate is not valid"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "the host has no address"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the connection ended before the picture did"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"no connection: {error.os_error.strerror or 'failed'}"[:100]
    return type(error).__name__


def _is_encoded(url: str) -> bool:
    """Return whether `url` has escapes, which must reach the server as they are."""
    return "%" in url and url.isascii() and " " not in url


def _retry_after(text: str) -> float | None:
    """Return the seconds that a Retry-After header asks for; None if it asks for none."""
    if text.strip().isdigit():
        return float(text.strip()[:9])
    with contextlib.suppress(ValueError, TypeError):
        moment = parsedate_to_datetime(text)
        return max(0.0, ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds())
    return None


def _fresh_until(response: aiohttp.ClientResponse) -> float:
    """Return the time until which the server says that the picture does not change; 0 if it does not say."""
    control = response.headers.get("Cache-Control", "").lower()
    match = _MAX_AGE.search(control)
    if match is None or "no-cache" in control or "no-store" in control:
        return 0.0
    return time.time() + min(float(match[1]), _FRESH)


def _ending(begins_as: str | None, data: bytes) -> str:
    if begins_as is not None:
        return _ENDINGS[begins_as]
    return "avif" if data[4:12] in (b"ftypavif", b"ftypavis") else "img"
