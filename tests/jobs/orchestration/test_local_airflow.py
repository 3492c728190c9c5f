"""The local Airflow: number of shards tagged at once, and their share of the cores."""

import json
from pathlib import Path

import pytest

from jobs.orchestration import local_airflow
from jobs.runtime.machine import cores
from jobs.settings import Settings


def test_shards_tagged_at_once_share_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    settings = Settings(root=tmp_path, device="cpu")
    at_once = local_airflow.slots(settings)
    assert 1 <= at_once <= local_airflow.CPU_SLOTS
    threads = int(local_airflow.environment(settings, tmp_path / "airflow", 8080, at_once)["OMP_NUM_THREADS"])
    assert threads == max(1, cores() // at_once)


def test_the_callers_number_of_threads_takes_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert local_airflow.environment(Settings(root=tmp_path, device="cpu"), tmp_path, 8080, 2)["OMP_NUM_THREADS"] == "7"


def test_each_gpu_tags_one_shard_at_a_time(tmp_path: Path) -> None:
    settings = Settings(root=tmp_path, device="cuda")
    assert local_airflow.slots(settings) == max(1, local_airflow.gpus())


def test_only_this_user_can_read_the_passwords(tmp_path: Path) -> None:
    file = tmp_path / local_airflow.PASSWORDS
    file.write_text(json.dumps({"admin": "x"}))
    file.chmod(0o644)  # as earlier releases left it
    for _ in range(2):
        local_airflow._keep_passwords(file)
        assert file.stat().st_mode & 0o777 == 0o600
        file.unlink(missing_ok=True)
