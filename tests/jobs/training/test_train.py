"""`pytest tests/jobs/training/test_train.py`"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pyarrow as pa
import pytest
import yaml

from cma_clip_core import registry
from cma_clip_core.model_documents import Metrics
from cma_clip_core.tagger import load
from jobs.errors import JobError, TransientError
from jobs.lake import storage
from jobs.lake.layout import Lake
from jobs.models import promotion
from jobs.models.champion_pointer import champion, promote
from jobs.models.list_models import list_models
from jobs.runtime.data_parallel import run_together
from jobs.settings import Settings
from jobs.training import workdir
from jobs.training.train import train
from schemas.documents import ExamplesManifest, StepMetrics
from schemas.loading import ContractError
from tests.cma_clip_core import drawn
from tests.jobs import members

ROOT = Path(__file__).parents[3]
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
RUN = "2026-11-20-prepare-0123abcd"


def settings_of(root: Path) -> Settings:
    taxonomy = root / "taxonomy.yaml"
    taxonomy.write_text(yaml.safe_dump(drawn.taxonomy().model_dump(mode="json")))
    return Settings(
        root=root / "lake", taxonomy=str(taxonomy), model_config_name="tiny", device="cpu", progress=False,
        candidates=("cma-clip",),
    )  # fmt: skip


def options_of(settings: Settings) -> list[str]:
    """Return the command line's options for these settings."""
    options = {
        "--root": str(settings.root), "--taxonomy": settings.taxonomy, "--model-config": "tiny", "--candidates": "cma-clip",
    }  # fmt: skip
    return [word for option in options.items() for word in option]


def add_examples(
    lake: Lake, run_id: str, table: pa.Table, *, complete: bool = True, height: int = 32, fingerprint: str = ""
) -> Path:
    folder = lake.examples(run_id)
    half = table.num_rows // 2
    drawn.write(folder / "shard=0", table.slice(0, half))
    drawn.write(folder / "shard=1", table.slice(half))
    manifest = ExamplesManifest(
        run_id=run_id,
        ds=run_id[:10],
        picture_height=height,
        picture_width=24,
        taxonomy_fingerprint=fingerprint or drawn.taxonomy().fingerprint,
        rows=table.num_rows,
        image_statuses={},
        created_at=datetime.now(UTC),
    )
    if complete:
        storage.write_document(folder / "_manifest.json", manifest)
    return folder


def test_train_promote_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = settings_of(tmp_path)
    lake = Lake(settings.root)
    assert champion(settings) is None
    add_examples(lake, RUN, drawn.examples(200))
    first = train(settings, "2026-11-20", promote=False)
    assert champion(settings) is None
    promote(settings, first)
    assert champion(settings) == first
    assert (lake.models / "champion").read_text() == f"{first}\n"
    add_examples(lake, "2026-11-21-89abcdef", drawn.examples(100, seed=1))
    second = train(settings, "2026-11-21", promote=False)
    promote(settings, second)
    assert champion(settings) == second != first
    capsys.readouterr()
    list_models(settings)
    lines = capsys.readouterr().out.splitlines()
    assert [line[:2] + line[2:19] for line in lines[1:]] == [
        f"{'*' if version == second else ' '} {version}" for version in sorted([first, second])
    ]
    step = storage.read_document(
        lake.root / "reports" / "ds=2026-11-21" / f"model={second}" / "steps" / "train.json", StepMetrics
    )
    assert step is not None
    # 200 products in all, the newer example of 100 of them; those with neither text nor picture teach nothing.
    assert 190 <= step.rows <= 200
    metrics = registry.read_json(lake.models / second / registry.METRICS, Metrics)
    assert metrics.catalog_day == "2026-11-21"
    assert sum(count.labels for count in metrics.labels["article_type"].values()) == step.rows
    assert (
        f"of the catalog up to 2026-11-21: the labelled set `{metrics.labelled_set}`"
        in (lake.models / second / registry.CARD).read_text()
    )
    with pytest.raises(JobError, match="no model version"):
        promote(settings, "20260101-00000000")
    assert champion(settings) == second


def test_a_bag_of_words_is_trained_promoted_and_tags(tmp_path: Path) -> None:
    settings = settings_of(tmp_path).model_copy(update={"candidates": ("bag-of-words",)})
    lake = Lake(settings.root)
    add_examples(lake, RUN, drawn.examples(300))
    first = train(settings, "2026-11-20")
    assert champion(settings) == first
    assert not list(lake.models.glob(".unfinished*"))
    (row,) = load(lake.models / first, "cpu").tag([{"title": "soft Checked Shirt"}])
    pattern = next(p for p in row["predictions"] if p["attribute"] == "pattern")
    assert (pattern["value"], pattern["accepted"], pattern["method"]) == ("Checked", True, "bag-of-words")
    # Another method of the same products is judged against it as any model is.
    with_cma = settings.model_copy(update={"candidates": ("bag-of-words", "cma-clip")})
    second = train(with_cma, "2026-11-20", promote=False)
    verdict = promotion.judge(settings, second)
    assert verdict is not None
    assert verdict.champion == first
    assert "pattern" not in verdict.worse


def test_broken_versions_are_listed_with_the_reason(tmp_path: Path, trained: Lake) -> None:
    settings = settings_of(tmp_path)
    models = Lake(settings.root).models
    shutil.copytree(trained.models, models)
    (good,) = registry.list_versions(models)
    edited, empty, gone = "20991121-" + good[9:], "20991122-01234567", "20991123-89abcdef"
    shutil.copytree(models / good, models / edited)
    (models / edited / registry.THRESHOLDS).write_text("{}")
    (models / empty).mkdir()
    (models / "champion").write_text(f"{gone}\n{good}\n")
    command = [sys.executable, "-m", "jobs", "--root", str(settings.root), "models"]
    done = subprocess.run([*command, "list"], cwd=ROOT, capture_output=True, text=True, env=os.environ | ONE_THREAD)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    _, *lines, last = done.stdout.splitlines()
    assert [line[2:19] for line in lines] == [good, edited, empty]
    assert "broken" not in lines[0]
    assert re.search(r"broken: .*thresholds\.json: its hash is not that in SHA256SUMS", lines[1])
    assert re.search(r"broken: .*model\.safetensors: there is no such file; is .* a model version\?", lines[2])
    assert last.startswith(f"the champion {gone} is gone")
    shown = subprocess.run(
        [*command, "show", empty], cwd=ROOT, capture_output=True, text=True, env=os.environ | ONE_THREAD
    )
    assert shown.returncode == 2
    assert re.fullmatch(r"error: .*MODEL_CARD\.md: cannot be read: .*\n", shown.stderr)


# What `models list` and `models show VERSION` do, in a process that has loaded nothing else yet.
LOOK = """
import sys
from pathlib import Path
from jobs.settings import Settings
from jobs.models.list_models import list_models, show_model
settings = Settings(root=Path(sys.argv[1]))
list_models(settings)
show_model(settings, sys.argv[2])
print("torch loaded:", "torch" in sys.modules)
"""


def test_to_list_and_show_neither_loads_torch_nor_reads_weights(tmp_path: Path, trained: Lake) -> None:
    models = Lake(tmp_path / "lake").models
    shutil.copytree(trained.models, models)
    (good,) = registry.list_versions(models)
    changed, gone = "20991121-" + good[9:], "20991122-" + good[9:]
    for version in (changed, gone):
        shutil.copytree(models / good, models / version)
    (models / changed / registry.WEIGHTS).write_bytes(b"not what was saved")
    (models / gone / registry.WEIGHTS).unlink()
    done = subprocess.run(
        [sys.executable, "-c", LOOK, str(tmp_path / "lake"), good],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | ONE_THREAD | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    _, *lines = done.stdout.splitlines()
    assert [line[2:19] for line in lines[:3]] == [good, changed, gone]
    assert "broken" not in lines[0]
    assert lines[1][19:] == lines[0][19:]  # read, they would be seen to be others
    assert "model.safetensors: there is no such file" in lines[2]
    assert good in "".join(lines[3:])
    assert lines[-1] == "torch loaded: False"
    # Where it counts they are read.
    with pytest.raises(JobError, match=r"model\.safetensors: its hash is not"):
        promote(settings_of(tmp_path), changed)


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda _: None, "jobs prepare --ds 2026-11-20"),
        (lambda lake: add_examples(lake, RUN, drawn.examples(4), height=64), "only others exist: 64x24 pixels"),
        (lambda lake: add_examples(lake, RUN, drawn.examples(2)), "needs more products"),
    ],
)
def test_nothing_to_train_on(tmp_path: Path, prepare: Callable[[Lake], object], words: str) -> None:
    settings = settings_of(tmp_path)
    prepare(Lake(settings.root))
    with pytest.raises(JobError, match=words):
        train(settings, "2026-11-20")
    assert registry.list_versions(Lake(settings.root).models) == []


@pytest.mark.long
def test_two_processes_train_one_version(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    lake = Lake(settings.root)
    add_examples(lake, RUN, drawn.examples(150))
    version = run_together(2, "cpu", train, settings, "2026-11-20")
    assert registry.list_versions(lake.models) == [champion(settings)] == [version]
    assert not list(lake.models.glob(".unfinished*"))
    (step,) = lake.root.glob("reports/ds=2026-11-20/*/steps/train.json")
    assert storage.from_bytes(step, step.read_bytes(), StepMetrics).rows > 100
    assert list((step.parents[1] / "tensorboard").glob("events.*"))


@pytest.mark.long
def test_a_training_whose_disk_is_full_is_tried_again(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    add_examples(Lake(settings.root), RUN, drawn.examples(150))
    command = [sys.executable, "-m", "jobs", *options_of(settings), "train", "--ds", "2026-11-20"]
    limited = ["bash", "-c", 'ulimit -f 200; exec "$@"', "", *command]  # larger files are refused, as by a full disk
    done = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True, env=os.environ | ONE_THREAD, check=False)
    assert "the checkpoint cannot be written: " in done.stderr.splitlines()[-1]
    assert done.returncode == 1  # Airflow tries again; 2 would be final
    subprocess.run(command, cwd=ROOT, capture_output=True, env=os.environ | ONE_THREAD, check=True)
    assert champion(settings)


def test_logs_that_cannot_be_kept_end_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    work, kept = tmp_path / "work", tmp_path / "kept"
    storage.write_bytes(work / "tensorboard" / "events.1", b"points")
    storage.write_bytes(work / "checkpoint", b"weights")
    kept.write_bytes(b"a file where the folder should be")
    workdir.finish(work, kept)
    assert "TensorBoard's logs are not kept: " in caplog.text
    assert not work.exists()


@pytest.mark.long
def test_what_one_process_finds_wrong_is_told_as_by_one_alone() -> None:
    with pytest.raises(ContractError, match="no such taxonomy"):
        run_together(2, "cpu", members.refuse_first, "no such taxonomy")


@pytest.mark.long
def test_a_process_that_is_killed_ends_the_others_and_is_told(tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(
        TransientError, match=r"process 1 of the 2 .* was killed by signal 9, most likely because memory ran out"
    ):
        run_together(2, "cpu", members.kill_the_second, tmp_path)
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))
    assert signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.long
def test_a_bug_is_no_reason_to_start_again() -> None:
    with pytest.raises(RuntimeError, match=r"process \d of the 2 .* its traceback is above"):
        run_together(2, "cpu", members.fail)


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(JobError, match="--processes 4: this machine has 1 GPUs"):
        run_together(4, "auto", os.getpid)
    assert run_together(None, "auto", os.getpid) == os.getpid()


@pytest.mark.long
def test_a_training_that_is_told_to_end_ends_all_its_processes(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from jobs.runtime.data_parallel import run_together; from tests.jobs import members\n"
        f"if __name__ == '__main__': run_together(2, 'cpu', members.wait, Path({str(tmp_path)!r}))"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    with subprocess.Popen([sys.executable, script], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}) as parent:
        while not ((tmp_path / "0").exists() and (tmp_path / "1").exists()):
            assert parent.poll() is None
            time.sleep(0.1)
        members_of = psutil.Process(parent.pid).children(recursive=True)
        parent.terminate()
        assert parent.wait(60) == 128 + signal.SIGTERM
    _, alive = psutil.wait_procs(members_of, timeout=30)
    assert not alive


def test_one_process_is_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_together(1, "cpu", os.getpid) == run_together(None, "cpu", os.getpid) == os.getpid()
    monkeypatch.setenv("RANK", "0")  # what torchrun sets
    assert run_together(2, "cpu", os.getpid) == os.getpid()
