"""Locks between processes that share only an object store: leases that their holders renew.

A lock is one object that names its holder. It is changed by conditional writes only, and its holder rewrites it every
few seconds. A waiting process takes it over after it has seen it unchanged for `LEASE_SECONDS` of its own clock; clocks
of different machines are never compared. A holder that cannot renew in time (no network, a suspended machine) ends
itself before that.

A process that was suspended may resume in the middle of its work, before it checks its lease. Each hold of a lock
therefore has a token, which stays in the object until another process takes over. `confirm` compares the token right
before each request that removes objects, and before each document that marks work as done (`jobs.lake.storage`).

A lock can also be shared. A sharer writes an object of its own, and then checks whether another process holds the lock
exclusively. A process that wants it exclusively takes the lock, and then waits until all objects of sharers are gone.
Whoever comes second sees the other.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from jobs.errors import JobError
from jobs.lake import s3_files
from jobs.lake.s3_files import ConditionFailedError, ObjectVersion

if TYPE_CHECKING:
    from upath import UPath

log = logging.getLogger(__name__)

LEASE_SECONDS: Final = 30.0
_LOOK_SECONDS: Final = 1.0
_held: Final[set[Lease]] = set()  # the leases that this process holds


class LeaseLostError(JobError):
    """A lock that this process held was not renewed in time, and another process has taken it over."""


class _Watch:
    """A timer of how long an object has been seen unchanged."""

    def __init__(self) -> None:
        self._etag, self._since = "", 0.0

    def seconds(self, seen: ObjectVersion) -> float:
        now = time.monotonic()
        if seen.etag != self._etag:
            self._etag, self._since = seen.etag, now
        return now - self._since


class Lease:
    """An object that is rewritten until the lease is released."""

    def __init__(self, path: UPath, replaces: ObjectVersion | None, lost: Callable[[], None]) -> None:
        """Take the lease if its object is still `replaces`. Raises ConditionFailedError if it is another one."""
        self._token = uuid.uuid4().hex
        self._path, self._held, self._lost = path, s3_files.put(path, self._content(), replaces), lost
        self._released = threading.Event()
        _held.add(self)
        self._thread = threading.Thread(target=self._renew, name=f"lease of {path.name}", daemon=True)
        self._thread.start()

    def _content(self, *, free: bool = False) -> bytes:
        """Return content that no other write has, because an ETag is a hash of the content."""
        holder = {"token": self._token, "write": uuid.uuid4().hex, "process": os.getpid()}
        return json.dumps({"holder": None if free else holder, **({"freed": holder} if free else {})}).encode()

    def _renew(self) -> None:
        renewed = _now()
        while not self._released.wait(LEASE_SECONDS / 6):
            try:
                self._held = s3_files.put(self._path, self._content(), self._held)
                renewed = _now()
            except ConditionFailedError:
                log.error("%s: another process has taken this lock over; this process ends", self._path)
                self._lost()
                return
            except OSError as error:
                if _now() - renewed > LEASE_SECONDS * 2 / 3:
                    log.error("%s: cannot renew this lock (%s); this process ends", self._path, error)
                    self._lost()
                    return
                log.warning("%s: cannot renew this lock, trying again: %s", self._path, error)

    def confirm(self) -> None:
        """Raise LeaseLostError if another process has taken the lease over."""
        current = s3_files.read(self._path)
        if current is None or not self._is_own(current):
            raise LeaseLostError(
                f"{self._path}: another process has taken this lock over, because this one did not renew it in time; this "
                "process changes nothing more. The other one continues the work; start the step again to see its result"
            )

    def _is_own(self, current: ObjectVersion) -> bool:
        try:
            return bool(json.loads(current.data)["holder"]["token"] == self._token)
        except (ValueError, TypeError, KeyError):
            return False

    def release(self, *, remove: bool) -> None:
        """Release the lease. Its object stays, marked as free, unless `remove` is given.

        Raises:
            LeaseLostError: another process has taken it over.
        """
        self._released.set()
        self._thread.join()
        _held.discard(self)
        try:
            self._held = s3_files.put(self._path, self._content(free=True), self._held)
        except ConditionFailedError as error:
            raise LeaseLostError(f"{self._path}: another process has taken this lock over meanwhile") from error
        if remove:
            s3_files.remove([self._path])


def _now() -> float:
    """Return the seconds of a clock that also runs while the machine is suspended."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def confirm() -> None:
    """Raise LeaseLostError if another process has taken over a lock that this process holds."""
    for lease in tuple(_held):
        lease.confirm()


def _is_free(current: ObjectVersion) -> bool:
    try:
        return json.loads(current.data)["holder"] is None
    except (ValueError, TypeError, KeyError):
        return False  # not written by this project; taken over if it does not change


def _end() -> None:
    """End this process, because another one does its work now."""
    os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def locked(path: UPath, *, busy: str | None = None, lost: Callable[[], None] = _end) -> Iterator[None]:
    """Hold the lock whose object is at `path` exclusively among callers of `locked` and `exclusive`.

    Args:
        path: the path of the object.
        busy: the error text if another process holds and renews the lock; without it, wait for the lock.
        lost: called if the lock is lost meanwhile; by default this process ends.

    Raises:
        JobError: another process holds the lock, and `busy` is given.
    """
    lease = _take(path, busy, lost)
    try:
        yield
    finally:
        lease.release(remove=False)


def _take(path: UPath, busy: str | None, lost: Callable[[], None]) -> Lease:
    watch, logged, changes, last = _Watch(), False, 0, ""
    while True:
        current = s3_files.read(path)
        if current is None or _is_free(current) or watch.seconds(current) >= LEASE_SECONDS:
            with contextlib.suppress(ConditionFailedError):
                return Lease(path, current, lost)
            continue
        changes += current.etag != last
        last = current.etag
        if busy is not None and changes > 1:  # its holder renews it
            raise JobError(f"{path.parent / path.name.removeprefix('.').removesuffix('.lock')}: {busy}")
        if not logged:
            log.info("%s: another process is working there; waiting for it", path)
            logged = True
        time.sleep(_LOOK_SECONDS)


def is_held(path: UPath) -> bool:
    """Return whether a process holds the lock at `path`, or ended without releasing it."""
    current = s3_files.read(path)
    return current is not None and not _is_free(current)


@contextlib.contextmanager
def shared(path: UPath, *, lost: Callable[[], None] = _end) -> Iterator[None]:
    """Hold the lock whose object is at `path` together with other sharers."""
    own = _sharers(path) / f"{uuid.uuid4().hex}.json"
    watch = _Watch()
    while True:
        lease = Lease(own, None, lost)
        current = s3_files.read(path)
        if current is None or _is_free(current) or watch.seconds(current) >= LEASE_SECONDS:
            break
        lease.release(remove=True)
        time.sleep(_LOOK_SECONDS)
    try:
        yield
    finally:
        lease.release(remove=True)


@contextlib.contextmanager
def exclusive(path: UPath, *, busy: str | None = None, lost: Callable[[], None] = _end) -> Iterator[None]:
    """Hold the lock whose object is at `path` exclusively; wait until no process shares it any more."""
    with locked(path, busy=busy, lost=lost):
        watches: dict[str, _Watch] = {}
        while True:
            listed = s3_files.children(_sharers(path))
            active = [
                sharer
                for sharer in listed
                if (current := s3_files.read(sharer)) is not None
                and not _is_free(current)
                and watches.setdefault(sharer.name, _Watch()).seconds(current) < LEASE_SECONDS
            ]
            if not active:
                break
            time.sleep(_LOOK_SECONDS)
        confirm()
        s3_files.remove(listed)  # left by dead processes; a new sharer is not in this listing
        yield


def _sharers(path: UPath) -> UPath:
    return path.with_name(f"{path.name}.shared")
