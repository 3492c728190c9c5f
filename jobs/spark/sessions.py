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
# Light compilation alone: of a job of seconds or a minute the full compiler costs more than it brings.
_LIGHT: Final = "-XX:TieredStopAtLevel=1"
MANY_ROWS: Final = 250_000
# Of a module that was sent to an executor the path is relative.
_LOGGING: Final = Path(__file__).absolute().with_name("log4j2.properties").as_uri()
_BREWS_JAVA: Final = class_archive.path().with_name("java")  # a link, where `.ci/install` made one
FEW_ROWS: Final = 10_000
# To make, compile and load Java code for each query costs a small night more than it brings; of 37,507 products it is even.
_INTERPRETED: Final = {"spark.sql.codegen.wholeStage": "false", "spark.sql.codegen.factoryMode": "NO_CODEGEN"}
# Executors come and go: a task that was lost is done again elsewhere, and its files are written under the same names.
_CLUSTER: Final = {
    "spark.executor.memory": "2g",
    "spark.task.maxFailures": "8",
    "spark.stage.maxConsecutiveAttempts": "8",
}
_ENDING: Final = 10  # seconds that a JVM which no longer answers may take to end


@contextlib.contextmanager
def session(settings: Settings, rows: int | None = None, *, jvm: str | None = None) -> Iterator[SparkSession]:
    """Yield the process's Spark session, started if there is none; who starts it, stops it.

    Args:
        settings: its master, memory and further options, which win over what is set here.
        rows: of the catalog it is for; of at most `FEW_ROWS` expressions are interpreted, of more than `MANY_ROWS` the JVM
            compiles fully. None: not known.
        jvm: options of the JVM beside the usual ones; by default those that map the class archive.
    """
    from py4j.protocol import Py4JError
    from pyspark.sql import SparkSession

    active = SparkSession.getActiveSession()
    if active is not None:
        with _told():
            yield active
        return
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    if _BREWS_JAVA.is_dir():
        os.environ.setdefault("JAVA_HOME", str(_BREWS_JAVA))
    local_master = settings.spark_master.startswith("local")
    if local_master:
        # Without a hostname look-up, so that it starts where the machine's own name does not resolve.
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
        "spark.sql.shuffle.partitions": "16",  # adaptive execution joins small ones
        "spark.sql.adaptive.coalescePartitions.minPartitionSize": "4m",
        # Spark's own writer makes only what the next steps read once; what lasts is written by `jobs.lake.parquet`.
        "spark.sql.parquet.compression.codec": "snappy",
        "spark.hadoop.parquet.enable.dictionary": "false",
        "spark.sql.sources.partitionColumnTypeInference.enabled": "false",
        "spark.sql.execution.arrow.maxRecordsPerBatch": "512",
        "spark.sql.execution.arrow.maxBytesPerBatch": str(
            64 * 2**20
        ),  # of texts that are each as long as a line may be
        "spark.sql.execution.arrow.pyspark.enabled": "true",
        # On, it is in the environment of some workers and not of others, and so none is used again by the next step.
        "spark.sql.execution.pyspark.udf.simplifiedTraceback.enabled": "false",
        # On, each operator asks the JVM five things to name its line in an error.
        "spark.python.sql.dataFrameDebugging.enabled": "false",
        "spark.hadoop.parquet.page.write-checksum.enabled": "true",
        "spark.hadoop.parquet.page.verify-checksum.enabled": "true",
        # By a footer, which has no checksum, no row is left out.
        "spark.sql.parquet.filterPushdown": "false",
        "spark.hadoop.parquet.block.size": str(32 * 2**20),  # held in memory by each writing task
        "spark.hadoop.mapreduce.fileoutputcommitter.marksuccessfuljobs": "false",
    }
    if not storage.on_disk(settings.root):
        options |= s3a.options()
    # The daemon is started before what is sent along is there.
    options |= {"spark.python.daemon.module": "jobs.nightly.spark_worker_daemon"} if local_master else _CLUSTER
    if rows is not None and rows <= FEW_ROWS:
        options |= _INTERPRETED
    options |= settings.spark_options
    builder = SparkSession.builder.master(settings.spark_master).appName("catalog-attribute-tagger")
    builder = reduce(lambda b, option: b.config(*option), options.items(), builder)
    spark = builder.getOrCreate()
    modules = tempfile.TemporaryDirectory(prefix="modules-")  # executors fetch it when they need it
    try:
        if not local_master:
            spark.sparkContext.addPyFile(str(_packed(Path(modules.name))))
        with _told():
            yield spark
    except JobError:
        raise
    except Exception as error:
        if _has_ended(spark.sparkContext._gateway.proc):
            raise TransientError(
                f"Spark's JVM ended in the middle of its work, most likely out of memory: give it more than "
                f"{settings.spark_memory} (TAGGING_SPARK_MEMORY), or leave it more of the machine's; then start again"
            ) from error
        raise
    finally:
        with contextlib.suppress(Py4JError, OSError):  # the JVM may be gone
            spark.stop()
        modules.cleanup()


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Tell of a full disk or a damaged file, which Spark says in hundreds of lines, in one."""
    try:
        yield
    except JobError:
        raise
    except Exception as error:
        if (told := explain(error)) is not None:
            raise told from error
        raise


def _packed(folder: Path) -> Path:
    """Return a zip of this project's modules, for executors: what else they need is in their Python environment."""
    repository = Path(__file__).resolve().parents[2]
    with zipfile.ZipFile(folder / "catalog_attribute_tagger.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for package in ("jobs", "cma_clip_core", "schemas"):
            for path in sorted((repository / package).rglob("*")):
                if path.is_file() and path.suffix in (".py", ".yaml", ".txt"):
                    archive.write(path, path.relative_to(repository))
    return folder / "catalog_attribute_tagger.zip"


def scratch(settings: Settings, lake: Lake) -> AnyPath:
    """Return where steps put tables between two queries: on a disk, if all executors see that."""
    return lake.work / "scratch" if settings.spark_master.startswith("local") else lake.scratch


def _has_ended(jvm: subprocess.Popen[bytes]) -> bool:
    try:
        jvm.wait(_ENDING)
    except subprocess.TimeoutExpired:
        return False
    return True
