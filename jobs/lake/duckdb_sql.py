"""SQL for DuckDB: paths as literals, scans of Parquet files, and the statement that finds the live tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from jobs.lake.layout import Lake
from jobs.lake.storage import AnyPath, on_disk
from schemas.tables import TABLES

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa


def register_storage(connection: duckdb.DuckDBPyConnection, root: AnyPath) -> None:
    """Let DuckDB read the files of the lake at `root`, on a disk or on S3."""
    if not on_disk(root):
        connection.register_filesystem(root.fs)


def quoted(text: str | AnyPath) -> str:
    """Return `text` as an SQL literal."""
    return "'" + str(text).replace("'", "''") + "'"


def listed(files: Iterable[AnyPath]) -> str:
    """Return `files` as an SQL list of literals."""
    return f"[{', '.join(map(quoted, files))}]"


def scan(connection: duckdb.DuckDBPyConnection, files: Iterable[AnyPath], table: pa.Schema, *options: str) -> str:
    """Return the SQL that reads Parquet files with the columns of `table`; a column that an older file lacks is null.

    Args:
        connection: an empty table with these columns is registered on it.
        files: the Parquet files; there may be none.
        table: a schema of `schemas.tables`.
        options: further options of ``read_parquet``.
    """
    paths = list(files)
    empty = next(f"empty_{name}" for name, schema in TABLES.items() if schema is table)
    connection.register(empty, table.empty_table())
    if not paths:
        return empty
    read = ", ".join((listed(paths), "hive_partitioning = false", "union_by_name = true", *options))
    return f"(from {empty} union all by name from read_parquet({read}))"


def live_files(lake: Lake) -> str:
    """Return the statement that sets DuckDB's variable ``files`` to the paths of the live tables."""
    return (
        "SET VARIABLE files = (SELECT string_split(trim(content, chr(10)), chr(10)) "
        f"FROM read_text({quoted(lake.current)}));"
    )
