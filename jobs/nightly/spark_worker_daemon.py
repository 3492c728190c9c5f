"""Spark's Python daemon, with what its workers need imported before it forks them: once, and not in each worker."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

# Spark puts a jar and zips of libraries that are installed anyway on the path, and before each task Python reads the
# directory of every archive on it again: a sixth of the time of a step in Python.
for _path in [path for path in sys.path if Path(path).name.startswith(("pyspark.zip", "py4j-", "spark-core_"))]:
    sys.path.remove(_path)
    sys.path_importer_cache.pop(_path, None)

import pandas  # noqa: E402, F401 (pyarrow imports it at its first array)
from pyspark.daemon import manager  # noqa: E402

import jobs.nightly.preprocess  # noqa: E402
import jobs.validation.parse_records  # noqa: E402, F401

if __name__ == "__main__":
    # A worker searches all its objects for garbage after each task; what is imported here will never be any.
    gc.freeze()
    manager()
