"""docker-compose.yml starts nothing without its secrets, and `make up` makes each of them anew. Needs no Docker engine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
REQUIRED = set(re.findall(r"\$\{(\w+):\?run `make up`", (ROOT / "docker-compose.yml").read_text()))


def env_file(folder: Path) -> dict[str, str]:
    """Return what `make up` writes into .env."""
    folder.mkdir()
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(["make", "-C", folder, ".env"], check=True, capture_output=True)
    assert (folder / ".env").stat().st_mode & 0o077 == 0
    return dict(line.split("=", 1) for line in (folder / ".env").read_text().splitlines())


def test_every_secret_is_made_and_none_is_made_twice(tmp_path: Path) -> None:
    made, again = env_file(tmp_path / "a"), env_file(tmp_path / "b")
    assert made.keys() == REQUIRED
    assert all(len(value) >= 40 for value in made.values())
    assert len({*made.values(), *again.values()}) == 2 * len(REQUIRED)


def test_no_secret_has_a_value_that_works_by_default() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    for name in REQUIRED:
        assert not re.search(rf"\$\{{{name}:?-", text), name
    given = [
        f"{key}: {value}"
        for service in yaml.safe_load(text)["services"].values()
        for key, value in service.get("environment", {}).items()
        if re.search("PASSWORD|SECRET|ACCESS_KEY|FERNET", key) and not key.endswith("_FILE")
    ]
    assert given
    assert [each for each in given if "${" not in each] == []


@pytest.mark.parametrize("missing", sorted(REQUIRED))
@pytest.mark.parametrize("how", ["left out", "empty"])
def test_compose_refuses_an_env_file_without_a_secret(missing: str, how: str, tmp_path: Path) -> None:
    plugin = (
        shutil.which("docker") and not subprocess.run(["docker", "compose", "version"], capture_output=True).returncode
    )
    if not plugin and not shutil.which("docker-compose"):
        pytest.skip("needs docker compose")
    (tmp_path / ".env").write_text(
        "".join(f"{name}=x\n" for name in REQUIRED - {missing}) + f"{missing}=\n" * (how == "empty")
    )
    done = subprocess.run(
        [*(["docker", "compose"] if plugin else ["docker-compose"]), "--env-file", tmp_path / ".env", "config"],
        cwd=ROOT, env={name: value for name, value in os.environ.items() if name not in REQUIRED}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode != 0
    assert missing in done.stderr
    assert "make up" in done.stderr
