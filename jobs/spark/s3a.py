"""What Spark needs to read and write a lake on S3: Hadoop's s3a, and the committer that publishes a task's files in one step.

pyspark brings Hadoop without its S3 part. The 36 jars of it, 12 MB, are fetched once into the environment, by ``python -m
jobs.spark.s3a`` or where a step first needs them: those of AWS's client that s3a uses, not the bundle of 600 MB, each of the version
and the content that `s3a_jars.txt` says. Spark sends them to its executors.
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
    """Return where the jars of this environment are kept."""
    return Path(sys.prefix) / "share" / "catalog-attribute-tagger" / "s3a"


def _repository() -> str:
    """Return the address of the Maven repository: the one that is set, or where Spark's own resolver of packages, Ivy, looks."""
    if given := os.environ.get(_MIRROR):
        return given.rstrip("/")
    import pyspark

    (ivy,) = (Path(pyspark.__file__).parent / "jars").glob("ivy-*.jar")
    with zipfile.ZipFile(ivy) as archive:
        resolver = archive.read("org/apache/ivy/plugins/resolver/IBiblioResolver.class")
    found = re.search(rb"https://[\w.-]+/maven2", resolver)
    if found is None:
        raise JobError(f"{ivy} names no Maven repository; let {_MIRROR} name one")
    return found[0].decode()


def fetch() -> list[Path]:
    """Return the jars, after those that are not there were fetched.

    Raises:
        JobError: one cannot be fetched, or is not what it should be.
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
            found = hashlib.sha256(temporary.read_bytes()).hexdigest()
            if found != digest:
                raise JobError(f"{address}: its SHA-256 is {found}, {digest} was expected: it is not used")
    except (OSError, urllib.error.URLError) as error:
        raise JobError(
            f"{address} cannot be fetched ({error}); Spark needs it for a lake on S3. Where Maven Central cannot be reached, "
            f"let {_MIRROR} name a mirror, or copy the jars into {folder()} from a machine where `python -m jobs.spark.s3a` ran"
        ) from error


def options() -> dict[str, str]:
    """Return Spark's options for ``s3a://``. Credentials are none of them: the JVM finds them as every AWS client does.

    Raises:
        JobError: the jars are not there and cannot be fetched.
    """
    found = {
        "spark.jars": ",".join(str(path) for path in fetch()),
        "spark.hadoop.fs.s3a.committer.name": "magic",
        "spark.hadoop.fs.s3a.committer.magic.enabled": "true",
        "spark.hadoop.mapreduce.outputcommitter.factory.scheme.s3a": "org.apache.hadoop.fs.s3a.commit.S3ACommitterFactory",
        "spark.sql.sources.commitProtocolClass": "org.apache.spark.internal.io.cloud.PathOutputCommitProtocol",
        "spark.sql.parquet.output.committer.class": "org.apache.spark.internal.io.cloud.BindingParquetOutputCommitter",
        # An address that is wrong is told soon, not after twenty minutes.
        "spark.hadoop.fs.s3a.attempts.maximum": "4",
        "spark.hadoop.fs.s3a.retry.limit": "4",
        "spark.hadoop.fs.s3a.connection.establish.timeout": "5s",
    }
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        found |= {
            "spark.executorEnv.AWS_ENDPOINT_URL": endpoint,  # the Python workers write by themselves
            "spark.hadoop.fs.s3a.endpoint": endpoint,
            "spark.hadoop.fs.s3a.path.style.access": "true",
            "spark.hadoop.fs.s3a.connection.ssl.enabled": str(urlsplit(endpoint).scheme == "https").lower(),
        }
    if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
        found |= {"spark.hadoop.fs.s3a.endpoint.region": region, "spark.executorEnv.AWS_REGION": region}
    return found


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    print(f"{len(fetch())} jars in {folder()}")
