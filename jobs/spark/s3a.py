"""Spark's access to a lake on S3: Hadoop's s3a, and its committer that publishes the files of a task in one step.

pyspark includes Hadoop without its S3 part. The missing 36 jars (12 MB) are fetched once into the environment, by
``python -m jobs.spark.s3a`` or when a step first needs them. They include only the parts of the AWS client that s3a
uses, not the bundle of 600 MB. `s3a_jars.txt` pins the version and the SHA-256 of each jar. Spark sends them to its
executors.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import sys
import urllib.error
import urllib.request
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from jobs.errors import JobError
from jobs.lake import storage

log = logging.getLogger(__name__)

_LIST: Final = Path(__file__).with_name("s3a_jars.txt")
_MIRROR: Final = "TAGGING_MAVEN_URL"


def folder() -> Path:
    """Return the folder of this environment's jars."""
    return Path(sys.prefix) / "share" / "catalog-attribute-tagger" / "s3a"


def _repository() -> str:
    """Return the address of the Maven repository: the configured one, or the default of Spark's resolver, Ivy."""
    if given := os.environ.get(_MIRROR):
        return given.rstrip("/")
    import pyspark

    (ivy,) = (Path(pyspark.__file__).parent / "jars").glob("ivy-*.jar")
    with zipfile.ZipFile(ivy) as archive:
        resolver = archive.read("org/apache/ivy/plugins/resolver/IBiblioResolver.class")
    match = re.search(rb"https://[\w.-]+/maven2", resolver)
    if match is None:
        raise JobError(f"{ivy} names no Maven repository; set {_MIRROR} to one")
    return match[0].decode()


def fetch() -> list[Path]:
    """Fetch the missing jars, and return the paths of all.

    Raises:
        JobError: a jar cannot be fetched, or its SHA-256 is wrong.
    """
    wanted = [line.split() for line in _LIST.read_text().splitlines()]
    missing = [(digest, path) for digest, path in wanted if not (folder() / Path(path).name).is_file()]
    if missing:
        log.info("spark: fetching %d jars that it needs for S3", len(missing))
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(_fetch, missing))
    return [folder() / Path(path).name for _, path in wanted]


def _fetch(wanted: tuple[str, str]) -> None:
    digest, path = wanted
    address = f"{_repository()}/{path}"
    try:
        with storage.whole_file(folder() / Path(path).name) as temporary:
            with urllib.request.urlopen(address, timeout=60) as answer, temporary.open("wb") as file:
                shutil.copyfileobj(answer, file)
            actual = hashlib.sha256(temporary.read_bytes()).hexdigest()
            if actual != digest:
                raise JobError(f"{address}: its SHA-256 is {actual}, {digest} was expected: it is not used")
    except (OSError, urllib.error.URLError) as error:
        raise JobError(
            f"{address} cannot be fetched ({error}); Spark needs it for a lake on S3. If Maven Central cannot be reached, set "
            f"{_MIRROR} to a mirror, or copy the jars into {folder()} from a machine where `python -m jobs.spark.s3a` ran"
        ) from error


def options() -> dict[str, str]:
    """Return Spark's options for ``s3a://``, without credentials, which the JVM finds like every AWS client.

    Raises:
        JobError: jars are missing and cannot be fetched.
    """
    values = {
        "spark.jars": ",".join(str(path) for path in fetch()),
        "spark.hadoop.fs.s3a.committer.name": "magic",
        "spark.hadoop.fs.s3a.committer.magic.enabled": "true",
        "spark.hadoop.mapreduce.outputcommitter.factory.scheme.s3a": "org.apache.hadoop.fs.s3a.commit.S3ACommitterFactory",
        "spark.sql.sources.commitProtocolClass": "org.apache.spark.internal.io.cloud.PathOutputCommitProtocol",
        "spark.sql.parquet.output.committer.class": "org.apache.spark.internal.io.cloud.BindingParquetOutputCommitter",
        # With these, a wrong address is reported soon, not after twenty minutes.
        "spark.hadoop.fs.s3a.attempts.maximum": "4",
        "spark.hadoop.fs.s3a.retry.limit": "4",
        "spark.hadoop.fs.s3a.connection.establish.timeout": "5s",
    }
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        values |= {
            "spark.executorEnv.AWS_ENDPOINT_URL": endpoint,  # Python workers write to S3 themselves
            "spark.hadoop.fs.s3a.endpoint": endpoint,
            "spark.hadoop.fs.s3a.path.style.access": "true",
            "spark.hadoop.fs.s3a.connection.ssl.enabled": str(urlsplit(endpoint).scheme == "https").lower(),
        }
    if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
        values |= {"spark.hadoop.fs.s3a.endpoint.region": region, "spark.executorEnv.AWS_REGION": region}
    return values


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    print(f"{len(fetch())} jars in {folder()}")
