"""The classes of Spark's JVM in one file that is mapped, instead of thousands that are read, parsed and verified.

Starting Spark and its first queries is mostly the loading of some 20,000 classes. Java keeps them, ready, in an archive
(application class-data sharing, JEP 350), recorded once on each machine: ``python -m jobs.demo.record_class_archive``, which `make
install` runs. It halves the CPU time of a small job. An archive of another Java or Spark is passed over without a word.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import pyspark

QUIET: Final = "-Xlog:disable -Xlog:all=error:stderr"


def path() -> Path:
    """Return where the archive of this environment's Spark is kept."""
    return Path(sys.prefix) / "share" / "catalog-attribute-tagger" / f"spark-{pyspark.__version__}.jsa"


def options() -> str:
    """Return the JVM options that make use of the archive, if there is one."""
    found = path()
    return f"-XX:SharedArchiveFile={found} {QUIET}" if found.is_file() and " " not in str(found) else ""
