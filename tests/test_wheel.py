"""The project as a wheel: what tags with a model folder needs no Airflow, no Spark and no Great Expectations.

`make test-long TESTS=tests/test_wheel.py`. It builds the wheel and installs it with its base alone, from the package index
or uv's cache.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import Lake

REPOSITORY = Path(__file__).resolve().parents[1]
PIPELINE_ALONE = (
    "airflow",
    "pyspark",
    "great_expectations",
    "duckdb",
    "polars",
    "sklearn",
    "cleanlab",
    "matplotlib",
    "s3fs",
)

pytestmark = pytest.mark.long


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(list(map(str, command)), cwd=cwd, env=kept, capture_output=True, text=True, timeout=580)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of an empty environment in which the wheel is installed with its base alone."""
    uv = shutil.which("uv") or str(REPOSITORY / "build" / "uv" / "bin" / "uv")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    names = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if name.startswith(("cma_clip_core/", "schemas/", "jobs/", "pyproject.toml", "README.md", "LICENSE")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, source / name)
    pins = re.findall(
        r"^[a-z0-9._-]+(?:\[[^]]*\])?==[^ ;\\]+", (REPOSITORY / "requirements.lock").read_text(), re.MULTILINE
    )
    (folder / "pins.txt").write_text("\n".join(re.sub(r"\[.*\]", "", pin) for pin in pins))
    for command in (
        (uv, "build", "-q", "--wheel", "--out-dir", folder, source),
        (uv, "venv", "-q", "--python", "3.11", folder / "venv"),
    ):
        done = run(*command, cwd=folder)
        assert done.returncode == 0, done.stderr
    wheel, python = next(folder.glob("*.whl")), folder / "venv" / "bin" / "python"
    done = run(uv, "pip", "install", "-q", "--python", python, "--constraint", folder / "pins.txt", wheel, cwd=folder)
    assert done.returncode == 0, done.stderr
    return python


def test_the_base_tags_with_a_model_folder(python: Path, trained: Lake, tmp_path: Path) -> None:
    listed = {
        path.name.partition("-")[0] for path in python.parents[1].glob("lib/python3.11/site-packages/*.dist-info")
    }
    assert listed.isdisjoint(PIPELINE_ALONE)
    assert {"torch", "pyarrow", "catalog_attribute_tagger"} <= listed
    model = next(path.parent for path in trained.models.glob("*/config.json"))
    shutil.copytree(model, tmp_path / "model")
    Image.new("RGB", (60, 80), "navy").save(tmp_path / "shirt.jpg")
    lines = re.search(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    assert lines is not None
    program = re.sub(r'load\("[^"]*"\)', 'load("model")', lines.group(1)).replace("tagger.tag(", "found = tagger.tag(")
    program += "\nimport json; print(json.dumps(found))\n"
    done = run(python, "-c", program, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert row["modality"] == "both"
    assert row["image_status"] == "ok"
    assert {"attribute", "value", "confidence"} <= row["predictions"][0].keys()


def test_a_step_says_what_to_install(python: Path, tmp_path: Path) -> None:
    done = run(python, "-m", "jobs", "--help", cwd=tmp_path)
    assert done.returncode == 1
    assert "catalog-attribute-tagger[pipeline]" in done.stderr
    assert "Traceback" not in done.stderr
