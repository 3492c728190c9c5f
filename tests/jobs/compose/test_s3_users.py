"""Rights of each user of the stack's S3 server, tested on a real one. `make test TESTS=tests/jobs/compose/test_s3_users.py`."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import botocore.session
import pytest
from botocore.exceptions import ClientError

from jobs.compose import s3_users
from jobs.errors import JobError
from tests import s3

SECRETS = {
    "S3_ACCESS_KEY": s3.KEYS["AWS_ACCESS_KEY_ID"],
    "S3_SECRET_KEY": s3.KEYS["AWS_SECRET_ACCESS_KEY"],
    **{variable: f"{user}-secret-1" for user, variable in s3_users.USERS.items()},
}
BODY = b"1"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("s3")
    with s3.server(folder / "data", users=folder / "users") as found:
        s3_users.set_up(found, s3.BUCKET, "catalog", SECRETS)
        client(found, "tagger").put_object(Bucket=s3.BUCKET, Key="catalog/models/champion", Body=BODY)
        client(found, "tagger").put_object(Bucket=s3.BUCKET, Key="catalog/catalog/raw/x", Body=BODY)
        yield found


@functools.cache  # to make one takes longer than what it is asked
def client(address: str, user: str, secret: str | None = None) -> Any:
    return botocore.session.get_session().create_client(
        "s3", endpoint_url=address, region_name="us-east-1", aws_access_key_id=user,
        aws_secret_access_key=secret or SECRETS[s3_users.USERS[user]],
    )  # fmt: skip


def may(address: str, user: str, operation: str, **arguments: Any) -> bool:
    try:
        getattr(client(address, user), operation)(Bucket=s3.BUCKET, **arguments)
    except ClientError as error:
        if error.response["Error"]["Code"] != "AccessDenied":
            raise
        return False
    return True


@pytest.mark.parametrize("user", s3_users.USERS)
def test_a_user_writes_what_its_services_write(address: str, user: str) -> None:
    for key, writers in {
        "catalog/examples/ds=2026-11-20/run=r/shard=0/part-00000.parquet": {"tagger", "spark"},
        "catalog/scratch/x/__magic_job-1/part": {"tagger", "spark"},
        "catalog/attribute_tables/runs/r/colour/part-00000.parquet": {"tagger", "spark"},
        "catalog/attribute_history/ds=2026-11-20/run=r/part-00000.parquet": {"tagger", "spark"},
        "catalog/attribute_history/index.json": {"tagger"},
        "catalog/attribute_history/left/r.json": {"tagger"},
        "catalog/attribute_tables/current": {"tagger"},
        "catalog/models/champion": {"tagger"},
        "catalog/catalog/raw/ds=2026-11-20/_manifest.json": {"tagger"},
        "catalog/catalog/pictures/ab/x.jpg": {"tagger"},
        "catalog/reports/index.html": {"tagger"},
        "catalog/_lake.json": {"tagger"},
        "other/x": {"tagger"},
    }.items():
        assert may(address, user, "put_object", Key=key, Body=BODY) == (user in writers), key
        assert may(address, user, "create_multipart_upload", Key=key) == (user in writers), key
        assert may(address, user, "delete_object", Key=f"{key}-gone") == (user in writers), key


@pytest.mark.parametrize("user", s3_users.USERS)
def test_a_user_reads_what_its_services_read(address: str, user: str) -> None:
    assert may(address, user, "list_objects_v2")
    assert may(address, user, "get_object", Key="catalog/catalog/raw/x")
    assert may(address, user, "get_object", Key="catalog/models/champion") == (user != "spark")


@pytest.mark.parametrize("user", s3_users.USERS)
def test_no_user_changes_rights_or_buckets(address: str, user: str) -> None:
    assert not may(address, user, "put_bucket_policy", Policy="{}")
    assert not may(address, user, "delete_bucket_policy")
    assert not may(address, user, "delete_bucket")
    with pytest.raises(ClientError, match="AccessDenied"):
        client(address, user).create_bucket(Bucket="another")
    refused = s3_users._send(f"{address}/create-user", (user, SECRETS[s3_users.USERS[user]]), b"<Account/>")
    assert "AccessDenied" in refused


def test_a_secret_that_was_made_anew_holds(address: str) -> None:
    old, new = SECRETS["S3_READER_SECRET"], "reader-secret-2"
    s3_users.set_up(address, s3.BUCKET, "catalog", SECRETS | {"S3_READER_SECRET": new})
    client(address, "reader", new).list_objects_v2(Bucket=s3.BUCKET)
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        client(address, "reader", old).list_objects_v2(Bucket=s3.BUCKET)
    s3_users.set_up(address, s3.BUCKET, "catalog", SECRETS)


def test_a_server_that_refuses_is_told(address: str) -> None:
    with pytest.raises(JobError, match="bucket lake cannot be made"):
        s3_users.set_up(address, s3.BUCKET, "catalog", SECRETS | {"S3_SECRET_KEY": "wrong-secret"})
