"""Bucket and users of the S3 server in docker-compose.yml (versitygw). Each user gets only the rights its services need."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any, Final
from xml.etree import ElementTree

import botocore.session
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

from jobs.errors import JobError
from jobs.lake import storage
from jobs.settings import Settings

_OBJECTS: Final = [
    "s3:GetObject",
    "s3:PutObject",
    "s3:DeleteObject",
    "s3:AbortMultipartUpload",
    "s3:ListMultipartUploadParts",
]
_BUCKET: Final = ["s3:ListBucket", "s3:GetBucketLocation"]
# Folders that Spark's executors read and write. They decode untrusted pictures, so they must not write the raw catalog,
# models, reports, or the files that make tables live.
_READ_BY_SPARK: Final = (
    "catalog/", "plans/", "examples/", "predictions/", "attribute_tables/", "attribute_history/", "scratch/"
)  # fmt: skip
_WRITTEN_BY_SPARK: Final = (
    "catalog/valid/", "catalog/quarantine/", "plans/", "examples/", "attribute_tables/runs/", "attribute_history/ds=",
    "scratch/",
)  # fmt: skip
USERS: Final = {"tagger": "S3_TAGGER_SECRET", "spark": "S3_SPARK_SECRET", "reader": "S3_READER_SECRET"}


def policy(bucket: str, prefix: str) -> dict[str, Any]:
    """Return the bucket's policy: the rights of each of `USERS` in the bucket and in the lake below `prefix`."""
    everything = f"arn:aws:s3:::{bucket}/*"

    def lake(folders: tuple[str, ...]) -> list[str]:
        return [f"arn:aws:s3:::{bucket}/{prefix}/{folder}*" for folder in folders]

    def allow(user: str, actions: list[str], resources: str | list[str]) -> dict[str, Any]:
        return {"Effect": "Allow", "Principal": {"AWS": user}, "Action": actions, "Resource": resources}

    return {
        "Version": "2012-10-17",
        "Statement": [
            *(allow(user, _BUCKET, f"arn:aws:s3:::{bucket}") for user in USERS),
            allow("tagger", ["s3:ListBucketMultipartUploads"], f"arn:aws:s3:::{bucket}"),
            allow("tagger", _OBJECTS, everything),
            allow("reader", ["s3:GetObject"], everything),
            allow("spark", ["s3:GetObject"], lake(_READ_BY_SPARK)),
            allow("spark", _OBJECTS, lake(_WRITTEN_BY_SPARK)),
        ],
    }


def set_up(endpoint: str, bucket: str, prefix: str, variables: Mapping[str, str]) -> None:
    """Create or update the bucket, the users and their rights.

    Args:
        endpoint: address of the server.
        bucket: bucket of the lake.
        prefix: prefix of the lake in the bucket.
        variables: S3_ACCESS_KEY and S3_SECRET_KEY of the server's root, and each user's secret under the name in `USERS`.

    Raises:
        JobError: the server refuses.
    """
    root = variables["S3_ACCESS_KEY"], variables["S3_SECRET_KEY"]
    client = botocore.session.get_session().create_client(
        "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id=root[0], aws_secret_access_key=root[1]
    )
    try:
        client.create_bucket(Bucket=bucket)
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
            raise JobError(f"{endpoint}: bucket {bucket} cannot be made: {error}") from None
    for user, name in USERS.items():
        _set_user(endpoint, root, user, variables[name])
    try:
        client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy(bucket, prefix)))
    except ClientError as error:
        raise JobError(f"{endpoint}: the policy of bucket {bucket} cannot be set: {error}") from None


def _set_user(endpoint: str, root: tuple[str, str], user: str, secret: str) -> None:
    """Create a user, or give an existing one this secret and role."""
    new = {"Access": user, "Secret": secret, "Role": "user", "UserID": "0", "GroupID": "0", "ProjectID": "0"}
    refusal = _send(f"{endpoint}/create-user", root, _xml("Account", new))
    if "XAdminUserExists" in refusal:
        refusal = _send(
            f"{endpoint}/update-user?access={user}", root, _xml("MutableProps", {"Secret": secret, "Role": "user"})
        )
    if refusal:
        raise JobError(f"{endpoint}: user {user} cannot be made: {refusal[:500]}")


def _xml(name: str, fields: Mapping[str, str]) -> bytes:
    element = ElementTree.Element(name)
    for field, value in fields.items():
        ElementTree.SubElement(element, field).text = value
    return ElementTree.tostring(element)


def _send(address: str, root: tuple[str, str], body: bytes) -> str:
    """Send a signed request to versitygw's admin API; return the reason of a refusal, or "" if it succeeded."""
    signed = AWSRequest(method="PATCH", url=address, data=body)
    S3SigV4Auth(Credentials(*root), "s3", "us-east-1").add_auth(signed)
    request = urllib.request.Request(address, data=body, headers=dict(signed.headers.items()), method="PATCH")
    try:
        with urllib.request.urlopen(request, timeout=30):
            return ""
    except urllib.error.HTTPError as error:
        return error.read().decode(errors="replace") or str(error)
    except OSError as error:
        raise JobError(f"{address}: no answer: {error}") from None


def main() -> None:
    """Set up the S3 server at AWS_ENDPOINT_URL for the lake in the settings.

    Raises:
        JobError: the lake is not on S3, or the server refuses.
    """
    root = Settings().root
    if storage.on_disk(root):
        raise JobError(f"{root}: the lake is not on S3")
    bucket, _, prefix = root.path.partition("/")
    set_up(os.environ["AWS_ENDPOINT_URL"], bucket, prefix, os.environ)


if __name__ == "__main__":
    main()
