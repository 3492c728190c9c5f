"""A real S3 server for the tests of this folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.lake import s3_files
from jobs.lake.storage import AnyPath
from tests import s3


@pytest.fixture(scope="session")
def s3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the server keeps its buckets in."""
    return tmp_path_factory.mktemp("s3")


@pytest.fixture(scope="session")
def s3_address(s3_folder: Path) -> Iterator[str]:
    with s3.server(s3_folder) as address:
        yield address


@pytest.fixture
def on_s3(
    s3_address: str, s3_folder: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[AnyPath]:
    """A prefix on the S3 server for a single test, removed afterwards."""
    for name, value in s3.KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_address)
    s3_files.forget()
    prefix = str(abs(hash(request.node.nodeid)))
    yield s3_files.s3_path(f"s3://{s3.BUCKET}/{prefix}")
    shutil.rmtree(s3_folder / s3.BUCKET / prefix, ignore_errors=True)


@pytest.fixture
def faulty(on_s3: AnyPath, s3_address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[AnyPath, s3.Proxy]]:
    with s3.proxy(s3_address) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
        s3_files.forget()
        yield s3_files.s3_path(str(on_s3)), proxy
    s3_files.forget()
