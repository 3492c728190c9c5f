"""Imports point one way: dags -> jobs -> cma_clip_core -> schemas, and from package to package within.

`make test TESTS=tests/test_architecture.py`.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

# package: what of this project it may import, and what of other libraries it may not
MAY_IMPORT = {
    "dags": {"dags", "jobs", "schemas"},
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

# Packages, and modules outside of any, from the bottom up: each imports from those before it alone. On a line: none imports another.
ORDER = """
cma_clip_core.arrays cma_clip_core.config cma_clip_core.errors cma_clip_core.model_documents
cma_clip_core.content
cma_clip_core.versions cma_clip_core.catalog
cma_clip_core.model
cma_clip_core.inputs
cma_clip_core.evaluation
cma_clip_core.training cma_clip_core.model_card
cma_clip_core.registry
cma_clip_core.engine
cma_clip_core.tagger
cma_clip_core
jobs.errors
jobs.lake
jobs.settings
jobs.records jobs.runtime jobs.startup jobs.pages
jobs.spark jobs.orchestration jobs.models jobs.importing.files
jobs.validation jobs.training
jobs.report jobs.nightly jobs.training.experiment
jobs.upkeep jobs.runs jobs.importing.formats jobs.importing.web
jobs.importing.pictures
jobs.importing
jobs.exporting
jobs.demo jobs.drafting.analysis
jobs.drafting
jobs.cli
jobs.__main__ jobs.step_server_main jobs.compose
"""
PACKAGES = set(ORDER.split())
MOST_MODULES = 13  # of a package
SAME_NAME = {"__init__", "errors"}  # the rest of the modules have names of their own


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


def modules() -> dict[str, Path]:
    """Return the modules of jobs and cma_clip_core by name."""
    files = [file for top in ("jobs", "cma_clip_core") for file in (REPOSITORY / top).rglob("*.py")]
    return {
        ".".join(file.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): file for file in files
    }


def package_of(module: str) -> str:
    """Return the entry of ORDER that a module belongs to."""
    return module if module.count(".") < 2 or module in PACKAGES else module.rsplit(".", 1)[0]


def imported_modules(file: Path, known: dict[str, Path]) -> Iterator[tuple[int, str]]:
    """Yield the line and the name of each module of `known` that a file imports."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [
                f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in known else node.module for a in node.names
            ]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name in known)


def test_packages_import_those_below_them_alone() -> None:
    known = modules()
    floors = {package: floor for floor, line in enumerate(ORDER.strip().splitlines()) for package in line.split()}
    wrong = []
    for module, file in known.items():
        package = package_of(module)
        if file.name == "__init__.py" and package not in floors:
            assert not list(imported_modules(file, known)), f"{file} imports, and has no place in ORDER"
            continue
        assert package in floors, f"{package} has no place in ORDER"
        for line, name in imported_modules(file, known):
            other = package_of(name)
            if other != package and floors.get(other, 0) >= floors[package]:
                wrong.append(f"{file.relative_to(REPOSITORY)}:{line} imports {name}, which is not below {package}")
    assert not wrong, "\n".join(wrong)


def test_packages_are_small_and_no_two_modules_have_one_name() -> None:
    known = modules()
    sizes = Counter(package_of(module) for module, file in known.items() if file.name != "__init__.py")
    assert not {package: n for package, n in sizes.items() if n > MOST_MODULES}
    files = [file for top in ("dags", "schemas") for file in (REPOSITORY / top).rglob("*.py")]
    names = Counter(file.stem for file in (*known.values(), *files))
    assert not [name for name, n in names.items() if n > 1 and name not in SAME_NAME]
