"""Pictures on a real S3 server behind a failing network: reads by preprocess and writes by import."""

from __future__ import annotations

import io
import itertools
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cma_clip_core.content import pictures, s3_objects
from cma_clip_core.content.pictures import PictureError, check_all, fetch_all
from jobs.errors import JobError, TransientError
from jobs.importing.pictures.picture_store import PicturesToS3
from jobs.lake import s3_files
from jobs.lake.layout import Lake
from jobs.lake.storage import AnyPath
from tests import s3


def jpeg(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (6, 8), colour).save(file, "JPEG")
    return file.getvalue()


def statuses(found: Iterable[bytes | PictureError | None]) -> list[str | bytes | None]:
    return [each.status if isinstance(each, PictureError) else each for each in found]


def test_each_uri_gets_its_picture_or_why_there_is_none(
    on_s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "MAX_BYTES", 5_000)
    other = on_s3.parent / "other"
    for folder, name, data in (
        (on_s3, "a/red.jpg", jpeg("red")), (on_s3, "empty.jpg", b""), (on_s3, "large.jpg", bytes(5_001)),
        (on_s3, "größe 1+%41.jpg", jpeg("green")), (other, "blue.jpg", jpeg("blue")),
    ):  # fmt: skip
        s3_objects.write(folder.fs, f"{folder.path}/{name}", data)
    (tmp_path / "local.jpg").write_bytes(jpeg("white"))
    uris = [
        "a/red.jpg", None, "a/blue.jpg", "empty.jpg", "large.jpg", f"s3://{on_s3.path}/a/red.jpg", "größe 1+%41.jpg",
        f"s3://{other.path}/blue.jpg", "../other/blue.jpg", "a", "", str(tmp_path / "local.jpg"), "/etc/passwd",
    ]  # fmt: skip
    wanted = [
        jpeg("red"), None, "missing", "empty", "too_large", jpeg("red"), jpeg("green"), "forbidden", "forbidden", "missing",
        "missing", jpeg("white"), "forbidden",
    ]  # fmt: skip
    many = 40  # several rounds
    assert statuses(fetch_all(uris * many, [on_s3, tmp_path])) == wanted * many
    assert statuses(fetch_all(uris[7:8], [on_s3, other])) == [jpeg("blue")]
    # Checking the pictures without reading them gives the same statuses.
    looked = statuses(check_all(uris * many, [on_s3, tmp_path]))  # type: ignore[arg-type]
    assert looked == [each if isinstance(each, str) else None for each in wanted * many]
    assert list(fetch_all([], [on_s3])) == []


@pytest.fixture
def stored(on_s3: Any) -> list[str]:
    names = [f"{number}.jpg" for number in range(70)]
    for name in names:
        s3_objects.write(on_s3.fs, f"{on_s3.path}/{name}", name.encode())
    return names


def once_each(fault: s3.Fault) -> Callable[[str, str], s3.Fault | None]:
    """Fail every object's first request of each kind."""
    seen = Counter[tuple[str, str]]()

    def at(*request: str) -> s3.Fault | None:
        seen[request] += 1  # type: ignore[index]
        return fault if seen[request] == 1 else None  # type: ignore[index]

    return at


@pytest.mark.parametrize("fault", ["503", "lost"])
def test_a_read_that_fails_is_sent_again(stored: list[str], faulty: tuple[Any, s3.Proxy], fault: s3.Fault) -> None:
    root, proxy = faulty
    proxy.fault = once_each(fault)
    assert list(fetch_all(stored, [root])) == [name.encode() for name in stored]
    assert len(proxy.seen) == 2 * len(stored)  # one request for a picture, and one more


@pytest.mark.parametrize(("fault", "code"), [("403", "AccessDenied"), ("expired", "ExpiredToken")])
def test_what_the_server_refuses_is_not_the_pictures_fault(
    stored: list[str], faulty: tuple[Any, s3.Proxy], fault: s3.Fault, code: str
) -> None:
    root, proxy = faulty
    proxy.fault = lambda *_: fault
    with pytest.raises(OSError, match=rf"s3://lake/\S+/0\.jpg: {code}: so it is$") as error:
        list(fetch_all(stored, [root]))
    assert s3_files.code(error.value) == code
    assert all(value not in str(error.value) for value in (s3.TOKEN, *s3.KEYS.values()))


def test_a_read_that_nobody_waits_for_ends(
    stored: list[str], faulty: tuple[Any, s3.Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, proxy = faulty
    ended = threading.Event()

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            ended.set()  # what is under way is answered only now: how fast the machine is does not matter
            super().shutdown(wait=wait)

    def held(_: str, path: str) -> None:
        assert path.endswith("/0.jpg") or ended.wait(60)

    monkeypatch.setattr(pictures, "ThreadPoolExecutor", Pool)
    proxy.fault = held
    found = fetch_all(stored, [root])
    assert next(found) == b"0.jpg"
    found.close()  # type: ignore[attr-defined]
    assert len(proxy.seen) <= 33  # those that were under way, of 64 that were asked for


def test_one_picture_of_neighbours_is_read_once(stored: list[str], faulty: tuple[Any, s3.Proxy]) -> None:
    root, proxy = faulty
    assert list(fetch_all([stored[0]] * 20 + [stored[1]], [root])) == [b"0.jpg"] * 20 + [b"1.jpg"]
    assert len(proxy.seen) == 2


def test_a_file_of_certificates_that_is_not_there_makes_no_picture_missing(
    stored: list[str], on_s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", "/nowhere/ca.pem")
    s3_objects.forget()
    with pytest.raises(OSError, match=r"/nowhere/ca\.pem"):
        list(fetch_all(stored, [on_s3]))
    s3_objects.forget()


def test_the_region_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    s3_files.forget()
    config = s3_objects._made(s3_files.s3_path("s3://bucket/lake").fs, "bucket", False).config
    assert (config["region"], config["endpoint"]) == ("eu-central-1", "https://s3.eu-central-1.amazonaws.com")
    s3_files.forget()


def test_a_child_of_a_process_that_read_pictures_is_told(on_s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_objects, "_process", os.getppid())
    with pytest.raises(RuntimeError, match="before this process was forked"):
        s3_objects.head(on_s3.fs, f"{on_s3.path}/0.jpg")


def write(root: AnyPath, number: int) -> Counter[str]:
    counts = Counter[str]()
    with PicturesToS3(Lake(root).pictures, counts) as writer:  # type: ignore[arg-type]
        for name in itertools.islice(itertools.count(), number):
            writer.add(f"{name % 10}/{name}.jpg", str(name).encode())
        writer.finish()
    return counts


@pytest.mark.parametrize("fault", ["503", "lost"])
def test_pictures_are_written_once(faulty: tuple[Any, s3.Proxy], fault: s3.Fault) -> None:
    root, proxy = faulty
    proxy.fault = once_each(fault)
    assert write(root, 90) == {"added": 90}
    assert Counter(method for method, _ in proxy.seen) == {"HEAD": 180, "PUT": 180}
    proxy.seen.clear()
    proxy.fault = lambda *_: None
    assert write(root, 100) == {"known": 90, "added": 10}
    assert Counter(method for method, _ in proxy.seen if method == "PUT") == {"PUT": 10}
    assert [*fetch_all(["9/89.jpg", "9/99.jpg"], [Lake(root).pictures])] == [b"89", b"99"]


def test_a_picture_that_was_damaged_in_the_lake_is_written_again(faulty: tuple[Any, s3.Proxy]) -> None:
    root, proxy = faulty
    assert write(root, 20) == {"added": 20}
    folder = Lake(root).pictures
    s3_objects.write(folder.fs, f"{folder.path}/3/13.jpg", b"1?")  # of the same size
    s3_objects.write(folder.fs, f"{folder.path}/4/14.jpg", b"1")
    proxy.seen.clear()
    assert write(root, 20) == {"known": 18, "added": 2}
    assert Counter(method for method, _ in proxy.seen) == {"HEAD": 20, "GET": 1, "PUT": 2}
    assert [*fetch_all(["3/13.jpg", "4/14.jpg"], [folder])] == [b"13", b"14"]


@pytest.mark.parametrize("refused", ["HEAD", "PUT"])
def test_a_picture_that_may_not_be_written_stops_the_import(faulty: tuple[Any, s3.Proxy], refused: str) -> None:
    root, proxy = faulty
    proxy.fault = lambda method, _: "403" if method == refused else None
    with pytest.raises(JobError, match=r"s3://lake/\S+\.jpg: no permission; allow these credentials") as error:
        write(root, 90)
    assert not isinstance(error.value, TransientError)


def test_a_server_that_fails_for_long_is_told_to_be_tried_again(
    faulty: tuple[Any, s3.Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, proxy = faulty
    monkeypatch.setattr(s3_objects, "_RETRIES", s3_objects._RETRIES | {"max_retries": 1})
    proxy.fault = lambda method, _: "503" if method == "PUT" else None
    with pytest.raises(TransientError, match=r"s3://lake/\S+\.jpg: SlowDown: .*nothing was imported: import again"):
        write(root, 90)
