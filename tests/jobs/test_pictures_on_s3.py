"""Pictures on a real S3 server: read by preprocess, written by import, through a network that fails."""

from __future__ import annotations

import io
import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cma_clip_core import objects, pictures
from cma_clip_core.pictures import PictureError, fetch_all
from jobs.errors import TransientError
from jobs.import_catalog import PicturesToS3
from jobs.lake import Lake
from jobs.storage import Place
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
        objects.write(folder.fs, f"{folder.path}/{name}", data)
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
    assert list(fetch_all([], [on_s3])) == []


@pytest.fixture
def stored(on_s3: Any) -> list[str]:
    names = [f"{number}.jpg" for number in range(70)]
    for name in names:
        objects.write(on_s3.fs, f"{on_s3.path}/{name}", name.encode())
    return names


def once_each(fault: s3.Fault) -> Callable[[str, str], s3.Fault | None]:
    """Fail every object's first request."""
    seen = Counter[str]()

    def at(_: str, path: str) -> s3.Fault | None:
        seen[path] += 1
        return fault if seen[path] == 1 else None

    return at


@pytest.mark.parametrize("fault", ["503", "lost"])
def test_a_read_that_fails_is_sent_again(stored: list[str], faulty: tuple[Any, s3.Proxy], fault: s3.Fault) -> None:
    place, proxy = faulty
    proxy.fault = once_each(fault)
    assert list(fetch_all(stored, [place])) == [name.encode() for name in stored]
    assert len(proxy.seen) == 2 * len(stored)  # one request for a picture, and one more


@pytest.mark.parametrize("fault", ["403", "expired"])
def test_what_the_server_refuses_is_not_the_pictures_fault(
    stored: list[str], faulty: tuple[Any, s3.Proxy], fault: s3.Fault
) -> None:
    place, proxy = faulty
    proxy.fault = lambda *_: fault
    with pytest.raises(OSError, match=r"s3://lake/\S+/0\.jpg") as error:
        list(fetch_all(stored, [place]))
    assert all(value not in str(error.value) for value in s3.KEYS.values() if value != "us-east-1")


def test_a_read_that_nobody_waits_for_ends(stored: list[str], faulty: tuple[Any, s3.Proxy]) -> None:
    place, proxy = faulty
    found = fetch_all(stored, [place])
    assert next(found) == b"0.jpg"
    found.close()  # type: ignore[attr-defined]
    assert len(proxy.seen) <= 64


def write(place: Place, number: int) -> Counter[str]:
    counts = Counter[str]()
    with PicturesToS3(Lake(place).pictures, counts) as writer:  # type: ignore[arg-type]
        for name in itertools.islice(itertools.count(), number):
            writer.add(f"{name % 10}/{name}.jpg", str(name).encode())
        writer.finish()
    return counts


@pytest.mark.parametrize("fault", ["503", "lost"])
def test_pictures_are_written_once(faulty: tuple[Any, s3.Proxy], fault: s3.Fault) -> None:
    place, proxy = faulty
    proxy.fault = once_each(fault)
    assert write(place, 90) == {"added": 90}
    proxy.seen.clear()
    assert write(place, 100) == {"known": 90, "added": 10}
    assert Counter(method for method, _ in proxy.seen if method == "PUT") == {"PUT": 10}
    assert [*fetch_all(["9/89.jpg", "9/99.jpg"], [Lake(place).pictures])] == [b"89", b"99"]


def test_a_picture_that_cannot_be_written_stops_the_import(faulty: tuple[Any, s3.Proxy]) -> None:
    place, proxy = faulty
    proxy.fault = lambda method, _: "403" if method == "PUT" else None
    with pytest.raises(TransientError, match=r"s3://lake/\S+\.jpg: .*nothing was imported: import again"):
        write(place, 90)
