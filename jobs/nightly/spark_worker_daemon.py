"""Spark's Python daemon, which imports the modules of its workers once, before it forks them."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

# Spark adds a jar and zips of libraries, which are installed anyway, to the path. Before each task, Python reads the
# directory of every archive on the path again, which takes a sixth of a step's time in Python.
for _path in [path for path in sys.path if Path(path).name.startswith(("pyspark.zip", "py4j-", "spark-core_"))]:
    sys.path.remove(_path)
    sys.path_importer_cache.pop(_path, None)

import pandas  # noqa: E402, F401 (pyarrow imports it at its first array)
from pyspark.daemon import manager  # noqa: E402

import jobs.nightly.preprocess  # noqa: E402
import jobs.validation.parse_records  # noqa: E402, F401

if __name__ == "__main__":
    # Workers collect garbage after each task. Freezing exempts the objects that were imported here.
    gc.freeze()
    manager()
