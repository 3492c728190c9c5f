"""Spark's Python daemon, with what its workers need imported before it forks them: once, and not in each worker."""

from __future__ import annotations

import pandas  # noqa: F401 (pyarrow imports it at its first array)
from pyspark.daemon import manager

import jobs.preprocess
import jobs.records  # noqa: F401

if __name__ == "__main__":
    manager()
