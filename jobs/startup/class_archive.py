"""Archive of the classes of Spark's JVM: one memory-mapped file instead of thousands to read, parse and verify.

Starting Spark and running its first queries mostly means loading some 20,000 classes. Java can keep them preloaded in
an archive (application class-data sharing, JEP 350). `make install` records it once on each machine by
``python -m jobs.demo.record_class_archive``. The archive halves the CPU time of a small job. Java silently ignores an
archive of another Java or Spark version.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import pyspark

QUIET: Final = "-Xlog:disable -Xlog:all=error:stderr"


def path() -> Path:
    """Return the path of the archive for this environment's Spark."""
    return Path(sys.prefix) / "share" / "catalog-attribute-tagger" / f"spark-{pyspark.__version__}.jsa"


def options() -> str:
    """Return the JVM options to use the archive, or '' if it does not exist."""
    archive = path()
    return f"-XX:SharedArchiveFile={archive} {QUIET}" if archive.is_file() and " " not in str(archive) else ""
