"""Storage operations: the same tests on a disk and on a real S3 server."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import JobError
from jobs.lake import leases, s3_files, storage
from jobs.lake.storage import AnyPath, SwapLostError
from schemas.loading import Strict
from tests import s3

WRITERS, SWAPS = 16, 12


@pytest.fixture(params=["disk", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> AnyPath:
    if request.param == "disk":
        return tmp_path
    path: AnyPath = request.getfixturevalue("on_s3")
    return path


def test_a_file_appears_whole_or_not_at_all(root: AnyPath) -> None:
    path = root / "a" / "b.txt"
    with storage.whole_file(path) as temporary:
        temporary.write_bytes(b"one")
        assert storage.read_bytes(path) is None
    assert storage.read_bytes(path) == b"one"
    kept: list[Path] = []

    def fail() -> None:
        with storage.whole_file(path) as temporary:
            kept.append(temporary)
            temporary.write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert storage.read_bytes(path) == b"one"
    assert not kept[0].exists()
    assert [child.name for child in storage.children(root / "a")] == ["b.txt"]


def test_a_large_file_is_sent_whole(root: AnyPath) -> None:
    data = os.urandom(2**20) * 120  # more than one part
    path = root / "large.bin"
    with storage.whole_file(path) as temporary:
        temporary.write_bytes(data)
    assert storage.read_bytes(path) == data
    import hashlib

    assert storage.sha256(path) == hashlib.sha256(data).hexdigest()


def test_create_only_once(root: AnyPath) -> None:
    storage.compare_and_swap(root / "x", None, b"first")
    with pytest.raises(SwapLostError):
        storage.compare_and_swap(root / "x", None, b"second")
    assert storage.read_bytes(root / "x") == b"first"


def test_swap_only_what_was_expected(root: AnyPath) -> None:
    path = root / "x"
    with pytest.raises(SwapLostError):
        storage.compare_and_swap(path, b"nothing there", b"new")
    assert storage.read_bytes(path) is None
    storage.compare_and_swap(path, None, b"one")
    with pytest.raises(SwapLostError):
        storage.compare_and_swap(path, b"other", b"two")
    storage.compare_and_swap(path, b"one", b"two")
    assert storage.read_bytes(path) == b"two"


def _count(path: str, writer: int) -> None:
    root = s3_files.s3_path(path) if path.startswith("s3://") else Path(path)
    lost = 0
    for swap in range(SWAPS):
        while True:
            before = storage.read_bytes(root)
            after = json.dumps([*json.loads(before or b"[]"), [writer, swap]]).encode()
            try:
                storage.compare_and_swap(root, before, after)
            except SwapLostError:  # otherwise all losers would try again at the same time
                lost += 1
                time.sleep(random.uniform(0, min(0.25, 0.01 * lost)))
            else:
                lost = 0
                break


def test_no_concurrent_swap_is_lost(root: AnyPath) -> None:
    """16 writers swap one file 12 times each."""
    path = root / "counted"
    context = multiprocessing.get_context("spawn")
    groups = [context.Process(target=_count_many, args=(str(path), n)) for n in range(2)]
    for process in groups:
        process.start()
    for process in groups:
        process.join(300)
        assert process.exitcode == 0
    swaps = json.loads(storage.read_bytes(path) or b"[]")
    assert sorted(swaps) == [[writer, swap] for writer in range(WRITERS) for swap in range(SWAPS)]
    for writer in range(WRITERS):  # each thread sees its own writes
        assert [swap for by, swap in swaps if by == writer] == list(range(SWAPS))


def _count_many(path: str, group: int) -> None:
    """A process with half of the writers, each in a thread."""
    failed: list[BaseException] = []

    def work(writer: int) -> None:
        try:
            _count(path, writer)
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=work, args=(n,)) for n in range(WRITERS) if n % 2 == group]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def test_listings(root: AnyPath) -> None:
    assert storage.children(root / "none") == []
    for name in ("ds=1/a.txt", "ds=2/run=x/b.txt", "ds=2/run=y/b.txt", "other.txt", "ds=1.txt"):
        storage.write_bytes(root / name, b"")
    assert [path.name for path in storage.children(root)] == ["ds=1", "ds=1.txt", "ds=2", "other.txt"]
    assert [path.name for path in storage.children(root, "ds=1")] == ["ds=1", "ds=1.txt"]
    assert [path.name for path in storage.children(root / "ds=2", "run=")] == ["run=x", "run=y"]
    assert storage.exists(root / "ds=2")
    assert storage.exists(root / "ds=2" / "run=x" / "b.txt")
    assert not storage.exists(root / "ds")
    every = ["ds=1.txt", "ds=1/a.txt", "ds=2/run=x/b.txt", "ds=2/run=y/b.txt", "other.txt"]
    assert storage.files_below(root) == every
    assert storage.files_below(root, "ds=2") == every[2:]
    assert storage.files_below(root, "p") == storage.files_below(root / "none") == []
    storage.remove_folder(root / "ds=2")
    assert [path.name for path in storage.children(root)] == ["ds=1", "ds=1.txt", "other.txt"]


def test_more_than_a_page_of_objects(on_s3: AnyPath) -> None:
    for n in range(5):
        storage.write_bytes(on_s3 / f"f{n}", b"")
    assert not storage.on_disk(on_s3)
    fs, bucket, key = s3_files._split(on_s3)
    pages = list(s3_files._pages(fs, Bucket=bucket, Prefix=f"{key}/", MaxKeys=2))
    assert [len(page["Contents"]) for page in pages] == [2, 2, 1]


# --- locks


def test_a_lock_is_waited_for(root: AnyPath) -> None:
    order: list[str] = []

    def second() -> None:
        with storage.locked(root / "x"):
            order.append("second")

    with storage.locked(root / "x"):
        waiting = threading.Thread(target=second)
        waiting.start()
        waiting.join(1.5)
        order.append("first")
    waiting.join(20)
    assert order == ["first", "second"]


def test_sharers_of_a_lock_do_not_wait_but_an_exclusive_holder_does(root: AnyPath) -> None:
    order: list[str] = []

    def alone() -> None:
        with storage.locked(root / "x"):
            order.append("alone")

    with storage.locked(root / "x", shared=True), storage.locked(root / "x", shared=True):
        waiting = threading.Thread(target=alone)
        waiting.start()
        waiting.join(1.5)
        order.append("shared")
    waiting.join(20)
    assert order == ["shared", "alone"]
    with storage.locked(root / "x", shared=True):
        pass


HOLDS = """
import sys, time
from pathlib import Path
from jobs.lake import s3_files, storage
root = s3_files.s3_path(sys.argv[1]) if sys.argv[1].startswith("s3://") else Path(sys.argv[1])
with storage.locked(root / "x", shared=sys.argv[2] == "shared"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("how", ["alone", "shared"])
def test_a_lock_of_a_process_that_died_is_free(root: AnyPath, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(leases, "LEASE_SECONDS", 3.0)
    command = [sys.executable, "-c", HOLDS, str(root), how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        if how == "alone":
            with storage.unless_busy(root / "x") as free:
                assert not free
        holder.send_signal(signal.SIGKILL)
    start = time.monotonic()
    with storage.locked(root / "x"):
        assert time.monotonic() - start < 25  # with the lease of 3 s that was set, not of 30 s


def test_a_lock_that_is_busy_says_so(root: AnyPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "LEASE_SECONDS", 6.0)
    with storage.locked(root / "x"):
        with pytest.raises(JobError, match="x: in use"), storage.locked(root / "x", busy="in use"):
            pass
        with storage.unless_busy(root / "x") as free:
            assert not free
    with storage.locked(root / "x", busy="in use"):
        pass
    with storage.unless_busy(root / "x") as free:
        assert free
    with storage.unless_busy(root / "never used") as free:
        assert free


def test_a_holder_that_lost_its_lease_gets_an_error(on_s3: AnyPath, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process has taken over the lock of a suspended holder."""
    monkeypatch.setattr(leases, "LEASE_SECONDS", 3.0)
    lost = threading.Event()
    path: Any = on_s3 / ".x.lock"

    def hold() -> None:
        with leases.locked(path, lost=lost.set):
            storage.write_bytes(path, b'{"holder": "another"}')
            assert lost.wait(60)

    with pytest.raises(leases.LeaseLostError):
        hold()


# --- a network that fails


def first_times(n: int, fault: s3.Fault, method: str = "PUT") -> Any:
    """A fault that the first `n` requests of a method meet."""
    left = iter(range(n))
    return lambda asked, _: fault if asked == method and next(left, None) is not None else None


@pytest.mark.parametrize("fault", ["503", "slow", "cut", "lost"])
def test_a_write_is_sent_again(faulty: tuple[AnyPath, s3.Proxy], fault: s3.Fault) -> None:
    root, proxy = faulty
    proxy.fault = first_times(2, fault)
    storage.write_bytes(root / "x", b"one")
    assert storage.read_bytes(root / "x") == b"one"


@pytest.mark.parametrize("fault", ["503", "lost"])
def test_a_swap_whose_answer_was_lost_is_recognized_as_its_own(
    faulty: tuple[AnyPath, s3.Proxy], fault: s3.Fault
) -> None:
    root, proxy = faulty
    storage.compare_and_swap(root / "x", None, b"zero")
    proxy.fault = first_times(1, fault)
    storage.compare_and_swap(root / "x", b"zero", b"one")
    proxy.fault = first_times(1, fault)
    storage.compare_and_swap(root / "y", None, b"one")
    proxy.fault = first_times(1, fault)
    with pytest.raises(SwapLostError):
        storage.compare_and_swap(root / "y", None, b"two")
    assert storage.read_bytes(root / "y") == b"one"


@pytest.mark.parametrize("fault", ["503", "cut"])
def test_a_read_is_sent_again(faulty: tuple[AnyPath, s3.Proxy], fault: s3.Fault) -> None:
    root, proxy = faulty
    storage.write_bytes(root / "x", b"one")
    proxy.fault = first_times(2, fault, "GET")
    assert storage.read_bytes(root / "x") == b"one"


UPLOADS = """
import sys
from jobs.lake import s3_files, storage
with storage.whole_file(s3_files.s3_path(sys.argv[1]) / "large.bin") as temporary:
    with temporary.open("wb") as file:
        for _ in range(120):
            file.write(bytes(2**20))
    print("written", flush=True)
print("sent", flush=True)
"""


@pytest.mark.long
def test_a_killed_upload_leaves_nothing(faulty: tuple[AnyPath, s3.Proxy]) -> None:
    root, proxy = faulty
    proxy.fault = lambda method, _: "slow" if method in ("PUT", "POST") else None
    command = [sys.executable, "-c", UPLOADS, str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as sending:
        assert sending.stdout is not None
        assert sending.stdout.readline() == "written\n"
        deadline = time.monotonic() + 60
        while not any(method in ("PUT", "POST") for method, _ in proxy.seen) and time.monotonic() < deadline:
            time.sleep(0.02)
        sending.send_signal(signal.SIGKILL)
    assert storage.read_bytes(root / "large.bin") is None
    assert storage.children(root) == []
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "sent"
    assert len(storage.read_bytes(root / "large.bin") or b"") == 120 * 2**20


# --- documents


class Paper(Strict):
    name: str
    lines: tuple[str, ...]


PAPER = Paper(name="first", lines=("one", "two", "naïve"))


def test_a_document_with_a_flipped_bit_or_a_lost_end_is_refused_with_a_remedy(tmp_path: Path) -> None:
    path = tmp_path / "paper.json"
    storage.write_document(path, PAPER)
    whole = path.read_bytes()
    assert storage.read_document(path, Paper) == PAPER
    assert json.loads(whole)["name"] == "first"  # it stays a JSON document that a person can read
    prefix = whole.index(b"sha256:")  # only a few bytes of JSON syntax come before it
    damaged = [whole[:n] for n in (0, 1, len(whole) // 2, len(whole) - 3)]
    damaged += [
        whole[:n] + bytes([whole[n] ^ (1 << bit)]) + whole[n + 1 :]
        for n in range(prefix, len(whole))
        for bit in range(8)
    ]
    for data in damaged:
        with pytest.raises(JobError, match=r"paper\.json: not a Paper, or damaged: .*; write it again$"):
            storage.from_bytes(path, data, Paper, "write it again")


def test_a_document_without_a_checksum_is_read(tmp_path: Path) -> None:
    path = tmp_path / "paper.json"
    path.write_text(PAPER.model_dump_json(indent=1))
    assert storage.read_document(path, Paper) == PAPER
    path.write_text('{"name": "first"}')
    with pytest.raises(JobError, match=r"lines: Field required; put it back from a copy of the lake$"):
        storage.read_document(path, Paper)


def test_a_broken_document_that_can_be_made_again_is_logged_and_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "paper.json"
    assert storage.find_document(path, Paper, "it is made again") is None
    assert not caplog.records
    path.write_bytes(b"\x00")
    assert storage.find_document(path, Paper, "it is made again") is None
    assert f"{path}: not a Paper" in caplog.text


# --- a loss of power


def test_a_file_its_name_and_the_folders_made_for_it_are_synced_in_that_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, bool]] = []  # the synced paths, and whether the file had its final name by then
    path, sync = tmp_path / "a" / "b" / "c.txt", os.fsync

    def told(descriptor: int) -> None:
        synced.append((str(Path(f"/proc/self/fd/{descriptor}").readlink()), path.exists()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", told)
    storage.write_bytes(path, b"x")
    *made, (file, was_there), (folder, is_there) = synced
    assert {where for where, _ in made} == {str(tmp_path), str(tmp_path / "a")}
    assert Path(file).parent == path.parent
    assert (was_there, folder, is_there) == (False, str(path.parent), True)
    synced.clear()
    storage.write_bytes(path, b"y")
    assert len(synced) == 2  # the folders exist by now


# --- a suspended holder


def test_a_suspended_holder_that_lost_its_lease_removes_and_finishes_nothing(
    on_s3: AnyPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder stops renewing, like a suspended machine; another process takes over, and the first one resumes."""
    monkeypatch.setattr(leases, "LEASE_SECONDS", 600.0)  # it does not renew while the test lasts
    work, lock = on_s3 / "work", on_s3 / ".work.lock"
    for n in range(3):
        storage.write_bytes(work / f"part-{n}", b"of the one who took over")

    def wakes_up() -> None:
        with storage.locked(work):
            storage.write_bytes(lock, b'{"holder": {"token": "of another"}}')  # type: ignore[arg-type]
            with pytest.raises(leases.LeaseLostError, match="another process has taken this lock over"):
                storage.remove_folder(work)
            with pytest.raises(leases.LeaseLostError):
                storage.write_document(work / "manifest.json", PAPER)

    with pytest.raises(leases.LeaseLostError):
        wakes_up()
    assert [path.name for path in storage.children(work)] == ["part-0", "part-1", "part-2"]
    storage.remove_folder(work)  # a process without a lock checks none
    assert storage.children(work) == []


def test_a_lease_is_checked_before_each_removing_request(
    faulty: tuple[AnyPath, s3.Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, proxy = faulty
    monkeypatch.setattr(s3_files, "MOST_REMOVED", 2)
    for n in range(5):
        storage.write_bytes(root / "work" / f"part-{n}", b"")
    with storage.locked(root / "work"):
        proxy.seen.clear()
        storage.remove_folder(root / "work")
        asked = [method for method, path in proxy.seen if method == "POST" or ".work.lock" in path]
    assert [method for method in asked if method != "PUT"] == ["GET", "POST"] * 3
