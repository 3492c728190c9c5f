"""Imports point one way: dags -> jobs -> cma_clip_core -> schemas. `make test TESTS=tests/test_architecture.py`."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

# package: what of this project it may import, and what of other libraries it may not
MAY_IMPORT = {
    "dags": {"dags", "jobs"},
    "jobs": {"jobs", "cma_clip_core", "schemas"},
    "cma_clip_core": {"cma_clip_core", "schemas"},
    "schemas": {"schemas"},
}
MAY_NOT_IMPORT = {
    "dags": {"torch", "torchvision", "open_clip", "pyspark", "great_expectations", "pandas", "pyarrow"},
    "jobs": set(),
    "cma_clip_core": {"airflow", "pyspark", "great_expectations"},
    "schemas": {"airflow", "great_expectations", "torch", "open_clip"},
}


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the top-level package of each import in `file`, those inside functions too."""
    package = file.relative_to(REPOSITORY).parts[0]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, package if node.level else (node.module or "").split(".")[0]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_one_way(package: str) -> None:
    files = list((REPOSITORY / package).rglob("*.py"))
    assert files
    others = MAY_IMPORT.keys() - MAY_IMPORT[package]
    wrong = [
        f"{file.relative_to(REPOSITORY)}:{line} imports {name}"
        for file in files
        for line, name in imports(file)
        if name in others | MAY_NOT_IMPORT[package] | {"tests"}
    ]
    assert not wrong, "\n".join(wrong)


def test_help_loads_neither_torch_nor_spark() -> None:
    code = (
        "import sys, jobs.cli\n"
        "try: jobs.cli.app(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'pyspark', 'great_expectations', 'airflow', 'pandas', 'matplotlib'} & sys.modules.keys()\n"
        "sys.exit(f'loaded: {sorted(heavy)}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
