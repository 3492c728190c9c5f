"""A real S3 server for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from jobs import object_store
from jobs.storage import Place
from tests import s3


@pytest.fixture(scope="session")
def s3_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3.server(tmp_path_factory.mktemp("s3")) as address:
        yield address


@pytest.fixture
def on_s3(s3_address: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Place:
    """A prefix of one's own on the S3 server."""
    for name, value in s3.KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_address)
    object_store.forget()
    return object_store.place(f"s3://{s3.BUCKET}/{abs(hash(request.node.nodeid))}")


@pytest.fixture
def faulty(on_s3: Place, s3_address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Place, s3.Proxy]]:
    with s3.proxy(s3_address) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
        object_store.forget()
        yield object_store.place(str(on_s3)), proxy
    object_store.forget()
