"""Locks among processes that share nothing but an object store: leases that their holders renew.

A lock is one object that says who holds it, changed by conditional writes alone. Its holder writes it anew every few
seconds. Who waits takes it over when it has seen it unchanged for `LEASE_SECONDS` of its own clock: clocks are never
compared. A holder that cannot renew in time (its network is gone, its machine slept) ends itself before that.

One that slept may wake up in the middle of its work, before it looks at its lease. So each hold of a lock has a token, which
is in the object as long as nobody else has taken over, and `confirm` looks whether it still is: right before each request that
removes objects, and before each document that says that something is done (`jobs.lake.storage`).

Several may share a lock: each writes an object of its own and then looks whether someone has it alone; who wants it alone
takes the lock and then waits until those objects are gone. Whichever comes first, one sees the other.
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
from jobs.lake.s3_files import ConditionFailedError, Found

if TYPE_CHECKING:
    from upath import UPath

log = logging.getLogger(__name__)

LEASE_SECONDS: Final = 30.0
_LOOK_SECONDS: Final = 1.0
_held: Final[set[Lease]] = set()  # by this process


class LeaseLostError(JobError):
    """Somebody else has taken over a lock that this process held, since it was not renewed in time."""


class _Watch:
    """For how long an object has been seen unchanged."""

    def __init__(self) -> None:
        self._etag, self._since = "", 0.0

    def seconds(self, found: Found) -> float:
        now = time.monotonic()
        if found.etag != self._etag:
            self._etag, self._since = found.etag, now
        return now - self._since


class Lease:
    """An object that is written anew until it is released."""

    def __init__(self, path: UPath, replaces: Found | None, lost: Callable[[], None]) -> None:
        """Take the lease, whose object now is `replaces`. Raises ConditionFailedError where it no longer is."""
        self._token = uuid.uuid4().hex
        self._path, self._held, self._lost = path, s3_files.put(path, self._content(), replaces), lost
        self._released = threading.Event()
        _held.add(self)
        self._thread = threading.Thread(target=self._renew, name=f"lease of {path.name}", daemon=True)
        self._thread.start()

    def _content(self, *, free: bool = False) -> bytes:
        """Return what no other write says: an object's tag is a hash of its content."""
        who = {"token": self._token, "write": uuid.uuid4().hex, "process": os.getpid()}
        return json.dumps({"holder": None if free else who, **({"freed": who} if free else {})}).encode()

    def _renew(self) -> None:
        renewed = _now()
        while not self._released.wait(LEASE_SECONDS / 6):
            try:
                self._held = s3_files.put(self._path, self._content(), self._held)
                renewed = _now()
            except ConditionFailedError:
                log.error("%s: another process has taken this lock over; this one ends", self._path)
                self._lost()
                return
            except OSError as error:
                if _now() - renewed > LEASE_SECONDS * 2 / 3:
                    log.error("%s: this lock could not be renewed (%s); this process ends", self._path, error)
                    self._lost()
                    return
                log.warning("%s: this lock could not be renewed, it is tried again: %s", self._path, error)

    def confirm(self) -> None:
        """Raise LeaseLostError where it is somebody else's by now."""
        found = s3_files.read(self._path)
        if found is None or not self._is_own(found):
            raise LeaseLostError(
                f"{self._path}: another process has taken this lock over, since this one did not renew it in time; it "
                "changes nothing any more. The other one goes on with the work; start the step again to see it done"
            )

    def _is_own(self, found: Found) -> bool:
        try:
            return bool(json.loads(found.data)["holder"]["token"] == self._token)
        except (ValueError, TypeError, KeyError):
            return False

    def release(self, *, remove: bool) -> None:
        """Let go. Its last time stays to be seen, unless it is to be removed.

        Raises:
            LeaseLostError: it was somebody else's by now.
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
    """Return seconds of a clock that goes on while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def confirm() -> None:
    """Raise LeaseLostError where a lock that this process holds is somebody else's by now."""
    for lease in tuple(_held):
        lease.confirm()


def _is_free(found: Found) -> bool:
    try:
        return json.loads(found.data)["holder"] is None
    except (ValueError, TypeError, KeyError):
        return False  # of no writer of ours; taken over when it does not change


def _end() -> None:
    """End this process: what it still does, another one does by now."""
    os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def locked(path: UPath, *, busy: str | None = None, lost: Callable[[], None] = _end) -> Iterator[None]:
    """Hold the lock whose object is at `path`, alone.

    Args:
        path: of the object.
        busy: what to say where another process holds it and renews it; left out, it is waited for.
        lost: what to do where it is lost in between; this process ends, if nothing else is said.

    Raises:
        JobError: another process holds it, and `busy` is given.
    """
    lease = _take(path, busy, lost)
    try:
        yield
    finally:
        lease.release(remove=False)


def _take(path: UPath, busy: str | None, lost: Callable[[], None]) -> Lease:
    watch, told, changes, last = _Watch(), False, 0, ""
    while True:
        found = s3_files.read(path)
        if found is None or _is_free(found) or watch.seconds(found) >= LEASE_SECONDS:
            with contextlib.suppress(ConditionFailedError):
                return Lease(path, found, lost)
            continue
        changes += found.etag != last
        last = found.etag
        if busy is not None and changes > 1:  # it is renewed
            raise JobError(f"{path.parent / path.name.removeprefix('.').removesuffix('.lock')}: {busy}")
        if not told:
            log.info("%s: another process is at work there; it is waited for", path)
            told = True
        time.sleep(_LOOK_SECONDS)


def is_held(path: UPath) -> bool:
    """Whether somebody holds the lock at `path`, or did not let go of it."""
    found = s3_files.read(path)
    return found is not None and not _is_free(found)


@contextlib.contextmanager
def shared(path: UPath, *, lost: Callable[[], None] = _end) -> Iterator[None]:
    """Hold the lock whose object is at `path` together with others that share it."""
    own = _sharers(path) / f"{uuid.uuid4().hex}.json"
    watch = _Watch()
    while True:
        lease = Lease(own, None, lost)
        found = s3_files.read(path)
        if found is None or _is_free(found) or watch.seconds(found) >= LEASE_SECONDS:
            break
        lease.release(remove=True)
        time.sleep(_LOOK_SECONDS)
    try:
        yield
    finally:
        lease.release(remove=True)


@contextlib.contextmanager
def alone(path: UPath, *, busy: str | None = None, lost: Callable[[], None] = _end) -> Iterator[None]:
    """Hold the lock whose object is at `path`, which others share, when none of these does any more."""
    with locked(path, busy=busy, lost=lost):
        watches: dict[str, _Watch] = {}
        while True:
            listed = s3_files.children(_sharers(path))
            at_work = [
                sharer
                for sharer in listed
                if (found := s3_files.read(sharer)) is not None
                and not _is_free(found)
                and watches.setdefault(sharer.name, _Watch()).seconds(found) < LEASE_SECONDS
            ]
            if not at_work:
                break
            time.sleep(_LOOK_SECONDS)
        confirm()
        s3_files.remove(listed)  # of processes that have died; one that comes now is not among them
        yield


def _sharers(path: UPath) -> UPath:
    return path.with_name(f"{path.name}.shared")
