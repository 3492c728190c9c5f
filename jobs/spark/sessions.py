"""The Spark session of a job."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Final

from jobs.errors import JobError, TransientError
from jobs.lake import storage
from jobs.lake.layout import Lake
from jobs.lake.storage import AnyPath
from jobs.runtime.failure_messages import explain
from jobs.settings import Settings
from jobs.spark import s3a
from jobs.startup import class_archive

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_JVM: Final = "-XX:+UseSerialGC -XX:+ExitOnOutOfMemoryError -Djava.net.preferIPv4Stack=true"
# Light compilation only: in a job of seconds or a minute, the full compiler costs more than it saves.
_LIGHT: Final = "-XX:TieredStopAtLevel=1"
MANY_ROWS: Final = 250_000
# Absolute, because the path of a module that was sent to an executor is relative.
_LOGGING: Final = Path(__file__).absolute().with_name("log4j2.properties").as_uri()
_LINKED_JAVA: Final = class_archive.path().with_name("java")  # a link, where `.ci/install` made one
FEW_ROWS: Final = 10_000
# Generating, compiling and loading Java code for each query costs a small night more than it saves; 37,507 products
# break even.
_INTERPRETED: Final = {"spark.sql.codegen.wholeStage": "false", "spark.sql.codegen.factoryMode": "NO_CODEGEN"}
# Executors come and go. A lost task is repeated on another one, and writes its files under the same names.
_CLUSTER: Final = {
    "spark.executor.memory": "2g",
    "spark.task.maxFailures": "8",
    "spark.stage.maxConsecutiveAttempts": "8",
}
_END_SECONDS: Final = 10  # the time that a JVM which no longer answers may take to end


@contextlib.contextmanager
def session(settings: Settings, rows: int | None = None, *, jvm: str | None = None) -> Iterator[SparkSession]:
    """Yield the Spark session of this process. The call that starts it also stops it.

    Args:
        settings: the master, the memory, and further options, which override those set here.
        rows: the rows of the catalog, None if unknown. With at most `FEW_ROWS`, expressions are interpreted; with more
            than `MANY_ROWS`, the JVM compiles fully.
        jvm: additional options of the JVM; by default those that map the class archive.
    """
    from py4j.protocol import Py4JError
    from pyspark.sql import SparkSession

    active = SparkSession.getActiveSession()
    if active is not None:
        with _explained_errors():
            yield active
        return
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    if _LINKED_JAVA.is_dir():
        os.environ.setdefault("JAVA_HOME", str(_LINKED_JAVA))
    local_master = settings.spark_master.startswith("local")
    if local_master:
        # Avoids a hostname look-up, so that Spark starts even if the machine's own name does not resolve.
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    local = Lake(settings.root).work / "scratch"
    compiler = "" if rows is not None and rows > MANY_ROWS else _LIGHT
    archive = class_archive.options() if jvm is None else jvm
    options = {
        "spark.driver.memory": settings.spark_memory,
        "spark.driver.extraJavaOptions": f"{_JVM} {compiler} -Dlog4j2.configurationFile={_LOGGING} {archive}",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.local.dir": str(local),
        "spark.sql.warehouse.dir": str(local / "warehouse"),
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.shuffle.partitions": "16",  # adaptive execution merges small ones
        "spark.sql.adaptive.coalescePartitions.minPartitionSize": "4m",
        # Spark's own writer only writes tables that the next steps read once. `jobs.lake.parquet` writes lasting ones.
        "spark.sql.parquet.compression.codec": "snappy",
        "spark.hadoop.parquet.enable.dictionary": "false",
        "spark.sql.sources.partitionColumnTypeInference.enabled": "false",
        "spark.sql.execution.arrow.maxRecordsPerBatch": "512",
        # Reached by batches of texts that each have the maximum length of a line.
        "spark.sql.execution.arrow.maxBytesPerBatch": str(64 * 2**20),
        "spark.sql.execution.arrow.pyspark.enabled": "true",
        # If it is on, it is in the environment of only some workers, and the next step cannot reuse them.
        "spark.sql.execution.pyspark.udf.simplifiedTraceback.enabled": "false",
        # If it is on, each operator makes five calls to the JVM, to name its line in an error.
        "spark.python.sql.dataFrameDebugging.enabled": "false",
        "spark.hadoop.parquet.page.write-checksum.enabled": "true",
        "spark.hadoop.parquet.page.verify-checksum.enabled": "true",
        # A footer has no checksum. So its statistics must not decide which rows are skipped.
        "spark.sql.parquet.filterPushdown": "false",
        "spark.hadoop.parquet.block.size": str(32 * 2**20),  # each writing task holds one block in memory
        "spark.hadoop.mapreduce.fileoutputcommitter.marksuccessfuljobs": "false",
    }
    if not storage.on_disk(settings.root):
        options |= s3a.options()
    # Only locally: on a cluster the daemon starts before the modules that are sent to the executors have arrived.
    options |= {"spark.python.daemon.module": "jobs.nightly.spark_worker_daemon"} if local_master else _CLUSTER
    if rows is not None and rows <= FEW_ROWS:
        options |= _INTERPRETED
    options |= settings.spark_options
    builder = SparkSession.builder.master(settings.spark_master).appName("catalog-attribute-tagger")
    builder = reduce(lambda b, option: b.config(*option), options.items(), builder)
    spark = builder.getOrCreate()
    modules = tempfile.TemporaryDirectory(prefix="modules-")  # executors fetch the modules when they need them
    try:
        if not local_master:
            spark.sparkContext.addPyFile(str(_pack_modules(Path(modules.name))))
        with _explained_errors():
            yield spark
    except JobError:
        raise
    except Exception as error:
        if _has_ended(spark.sparkContext._gateway.proc):
            raise TransientError(
                f"Spark's JVM ended in the middle of its work, most likely out of memory: give it more than "
                f"{settings.spark_memory} (TAGGING_SPARK_MEMORY), or free memory on the machine; then start again"
            ) from error
        raise
    finally:
        with contextlib.suppress(Py4JError, OSError):  # the JVM may be gone
            spark.stop()
        modules.cleanup()


@contextlib.contextmanager
def _explained_errors() -> Iterator[None]:
    """Turn Spark's errors about a full disk or a damaged file, hundreds of lines long, into a JobError of one line."""
    try:
        yield
    except JobError:
        raise
    except Exception as error:
        if (explained := explain(error)) is not None:
            raise explained from error
        raise


def _pack_modules(folder: Path) -> Path:
    """Write a zip of this project's modules for executors, whose Python environment has the rest; return its path."""
    repository = Path(__file__).resolve().parents[2]
    with zipfile.ZipFile(folder / "catalog_attribute_tagger.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for package in ("jobs", "cma_clip_core", "schemas"):
            for path in sorted((repository / package).rglob("*")):
                if path.is_file() and path.suffix in (".py", ".yaml", ".txt"):
                    archive.write(path, path.relative_to(repository))
    return folder / "catalog_attribute_tagger.zip"


def scratch(settings: Settings, lake: Lake) -> AnyPath:
    """Return the folder for tables between two queries: local if Spark runs locally, otherwise in the lake."""
    return lake.work / "scratch" if settings.spark_master.startswith("local") else lake.scratch


def _has_ended(jvm: subprocess.Popen[bytes]) -> bool:
    try:
        jvm.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return True
