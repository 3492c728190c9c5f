"""The classes of Spark's JVM in one file that is mapped, instead of thousands that are read, parsed and verified.

Starting Spark and its first queries is mostly the loading of some 20,000 classes. Java keeps them, ready, in an archive
(application class-data sharing, JEP 350), recorded once on each machine: ``python -m jobs.startup.class_archive``, which `make
install` runs. It halves the CPU time of a small job. An archive of another Java or Spark is passed over without a word.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import pyspark

from jobs.lake import storage
from jobs.settings import Settings

_QUIET = "-Xlog:disable -Xlog:all=error:stderr"


def path() -> Path:
    """Return where the archive of this environment's Spark is kept."""
    return Path(sys.prefix) / "share" / "catalog-attribute-tagger" / f"spark-{pyspark.__version__}.jsa"


def options() -> str:
    """Return the JVM options that make use of the archive, if there is one."""
    found = path()
    return f"-XX:SharedArchiveFile={found} {_QUIET}" if found.is_file() and " " not in str(found) else ""


def record() -> Path:
    """Do a small night's Spark work in a JVM that archives what it loaded; return the archive's path."""
    from jobs.demo.sample_catalog import generate
    from jobs.importing.import_catalog import import_catalog
    from jobs.runs.prepare_examples import prepare
    from jobs.spark import sessions

    folder = Path(tempfile.mkdtemp(prefix="class-archive-"))
    try:
        settings = Settings(root=folder / "lake", progress=False, spark_master="local[2]")
        generate(folder / "catalog", products=100)
        import_catalog(settings, folder / "catalog", "2026-01-01", "sample")
        with storage.whole_file(path()) as temporary:
            temporary.unlink()  # the JVM does not write over a file
            with sessions.session(settings, jvm=f"-XX:ArchiveClassesAtExit={temporary} {_QUIET}") as session:
                prepare(settings, "2026-01-01")
                gateway = session.sparkContext._gateway
            gateway.shutdown()
            gateway.proc.stdin.close()  # the JVM ends when its starter does: now, and not with this process
            if code := gateway.proc.wait(timeout=300):
                raise RuntimeError(f"Spark's JVM ended with exit code {code} and left no class archive")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return path()


if __name__ == "__main__":
    print(record())
