"""Record the class archive of this machine's Spark with a small night: ``python -m jobs.demo.record_class_archive``."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from jobs.demo.sample_catalog import generate
from jobs.importing.import_catalog import import_catalog
from jobs.lake import storage
from jobs.runs.prepare_examples import prepare
from jobs.settings import Settings
from jobs.spark import sessions
from jobs.startup import class_archive


def record() -> Path:
    """Do the Spark work of a small night in a JVM that archives the classes it loads; return the archive's path."""
    folder = Path(tempfile.mkdtemp(prefix="class-archive-"))
    try:
        settings = Settings(root=folder / "lake", progress=False, spark_master="local[2]")
        generate(folder / "catalog", products=100)
        import_catalog(settings, folder / "catalog", "2026-01-01", "sample")
        with storage.whole_file(class_archive.path()) as temporary:
            temporary.unlink()  # the JVM does not overwrite a file
            with sessions.session(
                settings, jvm=f"-XX:ArchiveClassesAtExit={temporary} {class_archive.QUIET}"
            ) as session:
                prepare(settings, "2026-01-01")
                gateway = session.sparkContext._gateway
            gateway.shutdown()
            gateway.proc.stdin.close()  # the JVM ends when this pipe closes: end it now, not with this process
            if code := gateway.proc.wait(timeout=300):
                raise RuntimeError(f"Spark's JVM ended with exit code {code} and left no class archive")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return class_archive.path()


if __name__ == "__main__":
    print(record())
