"""Pretraining and the comparison of methods as jobs: `pytest tests/jobs/training/test_experiment.py`"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import psutil
import pyarrow as pa
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import cma_clip_core
from cma_clip_core import registry
from cma_clip_core.errors import ModelError
from cma_clip_core.evaluation.bootstrap import RecallDraws
from cma_clip_core.inputs.batches import Batch
from cma_clip_core.model import tower_files
from cma_clip_core.model.backbone import Backbone
from cma_clip_core.model.methods import LABELS, configure
from cma_clip_core.model_documents import Metrics, Threshold
from cma_clip_core.training.loop import Loop
from jobs.errors import JobError
from jobs.importing.prepare_export import prepare_export
from jobs.lake import storage
from jobs.lake.layout import Lake
from jobs.lake.storage import AnyPath
from jobs.models.champion_pointer import champion
from jobs.models.list_models import show_model
from jobs.models.promotion import judge
from jobs.runs.prepare_examples import prepare
from jobs.runtime import machine
from jobs.runtime.process_pool import default_processes, default_processes_on_gpu
from jobs.settings import Settings
from jobs.training.experiment import train_methods
from jobs.training.experiment.judge import against_whole, judge_noise
from jobs.training.experiment.results import NOISY, SHARES, Kept, MethodRun, Results
from jobs.training.experiment.run_experiment import experiment
from jobs.training.experiment.setting import MethodOutcome, Trial, noises, noisy_name
from jobs.training.pretrain import pretrain, with_towers
from jobs.training.suspects import suspects
from jobs.training.train import train
from tests.cma_clip_core import drawn
from tests.cma_clip_core.scored import PATTERN, marks, single
from tests.jobs.training.test_train import ONE_THREAD, ROOT, RUN, add_examples, options_of, settings_of

DAY = "2026-11-20"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    settings = settings_of(tmp_path_factory.mktemp("experiment"))
    add_examples(Lake(settings.root), RUN, drawn.examples(500))
    return settings


@pytest.fixture(scope="module")
def pretrained(settings: Settings) -> Path:
    return Lake(settings.root).towers / pretrain(settings, DAY)


def torchrun(settings: Settings, step: str) -> subprocess.CompletedProcess[str]:
    """Run a step of the day in two processes."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "jobs"]
    command = [*launch, *options_of(settings), "--device", "cpu", step, "--ds", "2026-11-20"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | ONE_THREAD)


@pytest.mark.long
def test_two_processes_pretrain_one_pair_of_towers(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    lake = Lake(settings.root)
    add_examples(lake, RUN, drawn.examples(200))
    done = torchrun(settings, "pretrain")
    assert done.returncode == 0, done.stderr[-2000:]
    (folder,) = lake.towers.iterdir()
    assert json.loads(done.stdout) == {"towers": folder.name}


def test_steps_of_one_process_refuse_several(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")  # what torchrun sets
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(JobError, match="experiment runs in one process: start it without torchrun"):
        experiment(settings, DAY)
    with pytest.raises(JobError, match="prepare runs in one process"):
        prepare(settings, DAY)
    with pytest.raises(JobError, match="prepare runs in one process"):
        prepare_export(settings, Path("catalog"), DAY, "sample")
    with pytest.raises(JobError, match="suspects runs in one process"):
        suspects(settings, DAY)


def test_pretrained_towers_find_the_picture_of_a_text(settings: Settings, pretrained: Path) -> None:
    metrics = tower_files.TowersMetrics.model_validate_json((pretrained / tower_files.METRICS).read_bytes())
    assert metrics.epochs[-1].loss < metrics.epochs[0].loss
    assert {p.name for p in Lake(settings.root).towers.iterdir()} == {pretrained.name}  # nothing unfinished is left
    assert list((pretrained / "tensorboard").glob("events.*"))
    config = drawn.config()
    one, other = (Backbone(with_towers(config, pretrained), pretrained=p) for p in (True, False))
    fresh = {name for name, weight in one.state_dict().items() if not torch.equal(weight, other.state_dict()[name])}
    assert {"text.tower.token_embedding.weight", "image.tower.conv1.weight", "logit_scale"} <= fresh


@pytest.mark.long
@pytest.mark.parametrize("step", [pretrain, train])
def test_a_killed_training_blocks_no_other_and_goes_on_when_it_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, step: Callable[..., str]
) -> None:
    lake = Lake((settings := settings_of(tmp_path)).root)
    add_examples(lake, RUN, drawn.examples(300))
    chosen = []
    for epochs in (1, 2):
        document = drawn.config(epochs=epochs).model_dump(mode="json")
        document["pretraining"] |= {"epochs": epochs, "batch_size": 32}
        (tmp_path / f"{epochs}.yaml").write_text(yaml.safe_dump(document))
        chosen.append(settings.model_copy(update={"model_config_name": str(tmp_path / f"{epochs}.yaml")}))
    one, two = chosen
    above = lake.towers if step is pretrain else lake.models
    epoch = Loop._epoch

    def mortal(self: Loop, stream: Iterator[Batch | None]) -> None:
        if self.progress.epoch == 2:
            raise KeyboardInterrupt
        epoch(self, stream)

    monkeypatch.setattr(Loop, "_epoch", mortal)
    with pytest.raises(KeyboardInterrupt):
        step(two, DAY)
    monkeypatch.undo()
    (left,) = above.glob(".unfinished-*")
    with caplog.at_level(logging.INFO):
        step(one, DAY)
        assert f"unfinished: {left} belongs to another training (configuration tiny, labelled set" in caplog.text
        assert "training resumes in epoch 2" not in caplog.text
        step(two, DAY)
    assert "training resumes in epoch 2" in caplog.text
    assert not list(above.glob(".unfinished-*"))


@pytest.mark.long
def test_a_model_that_began_with_towers_needs_them_no_more(settings: Settings, pretrained: Path) -> None:
    version = train(settings, DAY, promote=False, towers=pretrained.name)
    folder = Lake(settings.root).models / version
    assert registry.read_config(folder).backbone.pretrained == f"towers/{pretrained.name}"
    assert str(settings.root) not in (folder / "config.json").read_text()
    registry.load_model(folder)
    with pytest.raises(JobError, match=r"'20260101-00000000': no such towers .* existing: \['"):
        train(settings, DAY, towers="20260101-00000000")


def test_towers_of_an_open_clip_architecture_are_loaded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An architecture's name alone, no weights to download: pretrain, train from the towers, compare methods."""
    vision = {"image_size": 224, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    architecture = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    (tmp_path / "named-vit.json").write_text(json.dumps(architecture))
    open_clip.add_model_config(tmp_path / "named-vit.json")
    document = drawn.config(epochs=1).model_dump(mode="json")
    document["backbone"] = {"architecture": "named-vit"}
    document["pretraining"] |= {"epochs": 1, "batch_size": 32}
    (tmp_path / "named.yaml").write_text(yaml.safe_dump(document))
    settings = settings_of(tmp_path).model_copy(update={"model_config_name": str(tmp_path / "named.yaml")})
    lake = Lake(settings.root)
    add_examples(lake, RUN, drawn.examples(400))
    name = pretrain(settings, DAY)
    config = with_towers(type(drawn.config()).model_validate(document), lake.towers / name)
    one, other = (Backbone(config, pretrained=p).state_dict() for p in (True, False))
    assert not torch.equal(one["image.tower.conv1.weight"], other["image.tower.conv1.weight"])
    version = train(settings, DAY, promote=False, towers=name)
    registry.load_model(lake.models / version)
    # A folder beside the one it is started in: without its `./` it would be a tag of open_clip.
    monkeypatch.chdir(lake.towers)
    document["backbone"]["pretrained"] = f"./{name}"
    (tmp_path / "named.yaml").write_text(yaml.safe_dump(document))
    folder = experiment(settings, DAY, methods=("raw-clip",))
    assert "raw CLIP" in (folder / "results.md").read_text()
    assert not (Path(str(folder)) / "towers").exists()
    wrong = with_towers(config, tmp_path)
    with pytest.raises(ModelError, match="not a folder of pretrained towers"):
        Backbone(wrong, pretrained=True)


def test_towers_that_do_not_fit_say_how(pretrained: Path, tmp_path: Path) -> None:
    document = with_towers(drawn.config(), pretrained).model_dump()
    document["backbone"]["custom"]["text"]["layers"] = 2
    with pytest.raises(
        ModelError, match=r"another configuration: backbone.custom is .*'layers': 1.* there and .*'layers': 2"
    ):
        Backbone(type(drawn.config()).model_validate(document), pretrained=True)
    with pytest.raises(ModelError, match="not a folder of pretrained towers"):
        Backbone(with_towers(drawn.config(), tmp_path), pretrained=True)


@pytest.mark.long
def test_all_methods_are_compared_and_a_killed_experiment_goes_on(
    settings: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(drawn.config(title_only=0.5).model_dump(mode="json")))
    settings = settings.model_copy(update={"model_config_name": str(tmp_path / "both.yaml")})
    options = {
        "products": 420, "attributes": ("colour", "pattern", "material"), "text": ("title", "description"),
        "processes": 1,
    }  # fmt: skip

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    keep = train_methods.keep_predictions
    monkeypatch.setattr(
        train_methods,
        "keep_predictions",
        lambda s, t, *f: killed() if t.method == "sa-without-ma" else keep(s, t, *f),
    )
    with pytest.raises(KeyboardInterrupt):
        experiment(settings, DAY, **options)  # type: ignore[arg-type]
    monkeypatch.undo()
    folder = experiment(settings, DAY, **options)  # type: ignore[arg-type]
    results = storage.read_document(folder / "results.json", Results)
    assert results is not None
    assert [m.method for m in results.texts[0].methods] == list(LABELS.values())
    assert sum(results.products.values()) <= 425
    by_name = dict(zip(LABELS, results.texts[0].methods, strict=True))
    # The drawn colour is in the picture alone, the pattern in the text alone.
    for blind in ("tf-idf", "text-tower"):
        assert (by_name[blind].attributes["colour"].accuracy or 0) < 0.55
        assert (by_name[blind].attributes["pattern"].accuracy or 0) > 0.6
    assert (by_name["picture-tower"].attributes["pattern"].accuracy or 0) < 0.55
    for seeing in ("cma-clip", "picture-tower", "fine-tuned-clip"):
        assert (by_name[seeing].attributes["colour"].accuracy or 0) > 0.6
    assert results.runs[list(LABELS).index("raw-clip")].seconds == 0
    # Trained with both, judged on both kinds of text; a material is named in descriptions alone.
    assert [judged.text_fields for judged in results.texts] == [("title", "description"), ("title",)]
    full, title = (dict(zip(LABELS, judged.methods, strict=True)) for judged in results.texts)
    for method in ("tf-idf", "text-tower", "cma-clip"):
        assert (title[method].attributes["pattern"].accuracy or 0) > 0.6
        material = [of[method].attributes["material"] for of in (full, title)]
        assert material[0].n_silent < material[1].n_silent == material[1].n
    assert (full["tf-idf"].attributes["material"].accuracy or 0) > 0.9
    assert (title["tf-idf"].attributes["material"].accuracy or 0) < 0.6
    assert title["picture-tower"].attributes["colour"].accuracy == full["picture-tower"].attributes["colour"].accuracy
    assert set(results.texts[0].against_whole) == set(LABELS) - {"cma-clip"}
    assert all(len(series) == 4 for methods in results.noise.values() for series in methods.values())
    assert set(results.noise) == {"text", "image", "names"}
    for differences in results.against_whole_noise.values():
        assert set(differences) == {"late-concatenation", "sa-without-ma", "ma-without-sa"}
        assert all(len(series) == 3 and all(series) for series in differences.values())
    # The colour is lost with the pictures, the pattern with the texts.
    lost = {m: {a: r[0] - r[-1] for a, r in by.items()} for m, by in results.noise_by_attribute.items()}
    assert lost["image"]["colour"] > lost["text"]["colour"]
    assert lost["text"]["pattern"] > lost["image"]["pattern"]
    assert lost["names"]["pattern"] > 0.1  # texts alone say it
    table = (folder / "results.md").read_text()
    assert "Each method was trained once: an interval holds the chance of the test products" in table
    assert all(f"| {label} |" in table for label in LABELS.values())
    assert table.index("## Text: title, description") < table.index("## Text: title\n")
    assert {p.name for p in folder.glob("*.svg")} == {
        "precision_recall.svg", "calibration.svg", "modality_weights.svg", "robustness.svg",
    }  # fmt: skip
    assert not list((folder / "unfinished").iterdir())
    assert {p.name for p in (folder / "tensorboard").iterdir()} == {"towers", *LABELS} - {"tf-idf"}
    before = (folder / "results.json").read_bytes()
    trained = capsys.readouterr()
    assert experiment(settings, DAY, **options) == folder  # type: ignore[arg-type]
    assert (folder / "results.json").read_bytes() == before
    assert table in capsys.readouterr().out
    assert trained.out.count(table) == 1


def test_results_are_of_all_methods_run_so_far(settings: Settings) -> None:
    folder = experiment(settings, DAY, products=400, methods=("tf-idf",), processes=1)
    assert experiment(settings, DAY, products=400, methods=("raw-clip",), processes=1) == folder
    assert experiment(settings, DAY, products=400, methods=("tf-idf",), processes=1) == folder
    results = storage.read_document(folder / "results.json", Results)
    assert results is not None
    assert [m.method for m in results.texts[0].methods] == [LABELS["raw-clip"], LABELS["tf-idf"]]
    assert [r.method for r in results.runs] == ["raw-clip", "tf-idf"]
    assert experiment(settings, DAY, products=400, epochs=1, methods=("tf-idf",), processes=1) != folder


@pytest.mark.long
def test_methods_side_by_side_give_what_one_after_the_other_gives(settings: Settings) -> None:
    options = {"products": 250, "methods": ("tf-idf", "raw-clip", "picture-tower")}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as each process has one core of two
    try:
        one = experiment(settings, DAY, processes=1, **options)  # type: ignore[arg-type]
    finally:
        torch.set_num_threads(threads)
    kept = {p.relative_to(one): p.read_bytes() for p in (one / "predictions").glob("*/*/*.npz")}
    assert len(kept) == 3 * 2 * 4
    storage.remove_folder(one)
    side_by_side = experiment(settings, DAY, processes=max(2, os.cpu_count() or 2), **options)  # type: ignore[arg-type]
    assert side_by_side == one
    assert {p.relative_to(one): p.read_bytes() for p in (one / "predictions").glob("*/*/*.npz")} == kept
    assert not list((one / "unfinished").iterdir())


def test_an_error_of_one_method_is_an_error_of_the_experiment(settings: Settings) -> None:
    folder = experiment(settings, DAY, products=290, methods=("tf-idf",), processes=1)
    storage.remove_folder(folder / "predictions")
    (folder / "predictions").write_text("a file in the way")
    with pytest.raises(OSError, match="predictions"):
        experiment(settings, DAY, products=290, methods=("tf-idf",), processes=2)


def test_as_many_processes_as_cores_and_memory_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 4)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=100 << 30, available=100 << 30))
    assert [default_processes(most) for most in (0, 2, 9)] == [1, 2, 4]
    monkeypatch.setattr(machine, "memory", lambda: 7 << 30)
    assert default_processes(9) == 2
    monkeypatch.setattr(machine, "memory", lambda: 1 << 30)
    assert default_processes(9) == 1


def test_a_gpu_is_shared_by_small_models_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 16)
    monkeypatch.setattr(machine, "memory", lambda: 100 << 30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=100 << 30, available=100 << 30))
    fashion, vit_b_32 = 8_025_101, 160_141_675
    assert [default_processes_on_gpu(most, fashion) for most in (0, 1, 4, 9)] == [1, 1, 4, 6]
    assert [default_processes_on_gpu(most, vit_b_32) for most in (0, 9)] == [1, 1]
    monkeypatch.setattr(machine, "cores", lambda: 2)
    assert default_processes_on_gpu(9, fashion) == 2


def test_processes_end_with_the_one_that_began_them(tmp_path: Path) -> None:
    script = (
        "import time; from jobs.runtime.process_pool import executor\n"
        "if __name__ == '__main__':\n"
        "    with executor(2) as pool:\n"
        "        print(*(f.result() for f in [pool.submit(os.getpid) for _ in range(2)]), flush=True)\n"
        "        pool.submit(time.sleep, 60), pool.submit(time.sleep, 60)\n"
        "        time.sleep(60)\n"
    )
    path = tmp_path / "parent.py"
    path.write_text("import os\n" + script)
    environment = os.environ | {"PYTHONPATH": str(Path(train_methods.__file__).parents[4])}
    with subprocess.Popen([sys.executable, path], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        children = {int(pid) for pid in parent.stdout.readline().split()}
        assert children
        assert parent.pid not in children
        parent.kill()
    deadline = time.monotonic() + 30
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in children):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def changed(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> Settings:
    """A lake of drawn examples, each row of which was changed in place."""
    rows = drawn.examples(400).to_pylist()
    for row in rows:
        change(row)
    settings = settings_of(tmp_path)
    add_examples(Lake(settings.root), RUN, pa.Table.from_pylist(rows, schema=drawn.examples(1).schema))
    return settings


def test_without_any_picture_all_methods_begin_from_scratch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An attribute that cannot be learnt is in no table and no mean either."""

    def change(row: dict[str, Any]) -> None:
        row["image"], row["image_status"] = None, "absent"
        row["labels"] = [(name, ["Solid"] if name == "pattern" else values) for name, values in row["labels"]]

    settings = changed(tmp_path, change)
    with caplog.at_level(logging.WARNING):
        folder = experiment(settings, DAY, methods=("text-tower", "tf-idf", "raw-clip"), processes=1)
    assert "pretraining: no two products on the train side have both a picture and a text" in caplog.text
    results = storage.read_document(folder / "results.json", Results)
    assert results is not None
    assert len(results.texts[0].methods) == 3
    assert results.left_out["pretraining"].endswith("all methods start from scratch")
    assert results.not_learnt.keys() == {"pattern"}
    assert results.attributes == ("article_type", "colour", "material")
    for method in results.texts[0].methods:
        recalls = [m.recall_at_90 or 0 for m in method.attributes.values()]
        assert len(recalls) == 3
        assert method.mean_recall_at_90 == pytest.approx(sum(recalls) / 3)
    page = (folder / "results.md").read_text()
    assert "pattern is not learnt, and not in any mean: all of its" in page
    assert "start from scratch" in page
    with pytest.raises(JobError, match="nothing to compare: pattern: all of its"):
        experiment(settings, DAY, attributes=("pattern",))


def test_without_any_text_the_text_baseline_is_left_out(tmp_path: Path) -> None:
    def change(row: dict[str, Any]) -> None:
        row["title"] = row["description"] = ""

    settings = changed(tmp_path, change)
    with pytest.raises(JobError, match="nothing to compare: no two training products have a word in common"):
        experiment(settings, DAY, methods=("tf-idf",), processes=1)
    folder = experiment(settings, DAY, methods=("tf-idf", "raw-clip"), processes=1)
    results = storage.read_document(folder / "results.json", Results)
    assert results is not None
    assert [m.method for m in results.texts[0].methods] == [LABELS["raw-clip"]]
    assert LABELS["tf-idf"] in results.left_out
    assert "it is left out" in (folder / "results.md").read_text()


@pytest.mark.long
@pytest.mark.parametrize("missing", ["image", "text"])
def test_a_modality_that_no_product_has_is_done_without(tmp_path: Path, missing: str) -> None:
    """A method that sees only the missing modality is left out with a reason; the others learn from the other modality."""

    def change(row: dict[str, Any]) -> None:
        if missing == "image":
            row["image"], row["image_status"] = None, "absent"
        else:
            row["title"] = row["description"] = ""

    settings = changed(tmp_path, change)
    alone = {"image": ("fine-tuned-clip", "picture-tower"), "text": ("text-tower",)}[missing]
    methods = [m for m in ("fine-tuned-clip", *alone, "late-concatenation", "cma-clip") if m not in alone]
    folder = experiment(settings, DAY, methods=(*alone, *methods), epochs=3, processes=1)
    results = storage.read_document(folder / "results.json", Results)
    assert results is not None
    what = {"image": "a picture", "text": "a text"}[missing]
    why = f"no training product has {what}, and the model reads nothing else: there is nothing to learn from; it is left out"
    assert results.left_out.pop("pretraining").endswith("all methods start from scratch")
    assert results.left_out == {LABELS[method]: why for method in alone}
    assert f"{LABELS[alone[0]]}: {why}" in (folder / "results.md").read_text()
    by_name = dict(zip(methods, results.texts[0].methods, strict=True))
    assert [m.method for m in by_name.values()] == [LABELS[method] for method in methods]
    learnt = {"image": "article_type", "text": "colour"}[missing]  # which is in what there is
    for method in ("late-concatenation", "cma-clip"):
        found = by_name[method].attributes[learnt]
        assert (found.accuracy or 0) > 0.9
        # Swapped, what is missing changes nothing, and what there is all.
        series = results.noise[missing][LABELS[method]]
        assert series == [series[0]] * 4
        other = results.noise["text" if missing == "image" else "image"][LABELS[method]]
        assert other[0] == series[0] > other[-1]
    weights = by_name["cma-clip"].attributes[learnt]
    assert (weights.text_weight, weights.image_weight) == ((1, 0) if missing == "image" else (0, 1))


@pytest.mark.long
def test_methods_are_kept_as_model_versions_the_same_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_of(tmp_path)
    lake = Lake(settings.root)
    add_examples(lake, RUN, drawn.examples(400))
    train(settings, DAY)  # a champion to be judged against

    def run(*keep: str) -> Results:
        methods = ("cma-clip", "fine-tuned-clip", "tf-idf")
        folder = experiment(
            settings,
            DAY,
            products=300,
            epochs=2,
            methods=methods,
            attributes=("colour", "pattern"),
            processes=1,
            keep=keep,
        )
        results = storage.read_document(folder / "results.json", Results)
        assert results is not None
        said = (folder / "results.md").read_text()
        assert all(f"kept as model version {version}" in said for version in results.versions.values())
        return results

    assert run().versions == {}
    before = registry.list_versions(lake.models)
    write = storage.write_document

    def die_before_it_is_named(path: Path, document: Any) -> None:
        if isinstance(document, Kept):
            raise KeyboardInterrupt
        write(path, document)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(storage, "write_document", die_before_it_is_named)
        with pytest.raises(KeyboardInterrupt):
            run("cma-clip")
    assert registry.list_versions(lake.models) == before
    (made,) = lake.root.glob("experiments/*/*/unfinished/cma-clip/version/*")
    with monkeypatch.context() as patched:
        patched.setattr(train_methods, "keep_predictions", die)
        with pytest.raises(KeyboardInterrupt):
            run("cma-clip")
    # Until the new training is judged, nothing of the earlier one is left.
    assert not list(lake.root.glob("experiments/*/*/predictions/cma-clip/run.json"))
    results = run("cma-clip", "fine-tuned-clip")
    assert not list(lake.root.glob("experiments/*/*/unfinished/*"))
    assert results.versions["cma-clip"] == made.name
    assert sorted(registry.list_versions(lake.models)) == sorted([*before, *results.versions.values()])
    assert champion(settings) == before[0]
    assert run() == results  # it stays known
    for method, version in results.versions.items():
        assert (lake.root / str(registry.read_config(lake.models / version).backbone.pretrained)).is_dir()
        (said,) = cma_clip_core.load(lake.models / version, "cpu").tag([{"title": "classic Striped Shirt"}])
        assert {p["attribute"] for p in said["predictions"]} >= {"article_type", "colour"}
        metrics = registry.read_json(lake.models / version / registry.METRICS, Metrics)
        assert metrics.train_examples == results.products["train"]
        assert sum(count.labels for count in metrics.labels["colour"].values()) == sum(results.products.values())
        by_name = dict(zip(("fine-tuned-clip", "cma-clip", "tf-idf"), results.texts[0].methods, strict=True))
        judged = by_name[method].attributes["pattern"]
        assert metrics.test["pattern"].recall_at_90 == judged.recall_at_90
        capsys.readouterr()
        show_model(settings, version)
        card = " ".join(capsys.readouterr().out.split())
        products = sum(results.products.values())
        assert re.search(
            rf"on a sample of its families: {products} of its 39\d products\. It compared colour, pattern;", card
        )
        assert "started from the pretrained `experiments/ds=2026-11-20/" in card
        verdict = judge(settings, version)
        assert verdict is not None
        assert verdict.judged


def test_differences_are_seed_by_seed_in_the_same_draws() -> None:
    def draws(low: float, high: float) -> RecallDraws:
        found = np.concatenate([[(low + high) / 2], np.linspace(low, high, 1001)])[None]
        return RecallDraws(("colour",), found, found)

    methods = {
        "text-tower": [Trial("text-tower", 1)],
        "sa-without-ma": [Trial("sa-without-ma", 2)],
        "cma-clip": [Trial("cma-clip"), Trial("cma-clip", 1)],
        "tf-idf": [Trial("tf-idf")],
    }
    of_all = {
        "cma-clip": draws(0.6, 0.8), "cma-clip+1": draws(0.7, 0.9), "text-tower+1": draws(0.5, 0.7), "tf-idf": draws(0.6, 0.8),
        "sa-without-ma+2": draws(0, 1),
    }  # fmt: skip
    found = against_whole(methods, of_all, RecallDraws.mean_all)
    assert list(found) == ["text-tower", "sa-without-ma", "tf-idf"]
    assert found["sa-without-ma"] is None  # no seed of both
    assert found["text-tower"] is not None  # the one seed of both
    assert (found["text-tower"].mean, found["text-tower"].interval.low) == pytest.approx((0.2, 0.2))
    assert found["tf-idf"] is not None  # the same with each seed: 0 with the first, 0.1 with the second
    assert found["tf-idf"].mean == pytest.approx(0.05)
    assert (found["tf-idf"].interval.low, found["tf-idf"].interval.high) == pytest.approx((0, 0.1))
    assert against_whole({"tf-idf": methods["tf-idf"]}, of_all, RecallDraws.mean_all) == {}


def test_margins_under_noise_are_cma_clips_less_the_others(tmp_path: Path) -> None:
    """Late concatenation is wrong for two products in three, and CMA-CLIP for none."""
    confidence = np.linspace(0.9, 0.5, 60)
    right, wrong = single(confidence, marks("r" * 60)), single(confidence, marks("r" * 20 + "w" * 40))
    setting: Any = SimpleNamespace(folder=tmp_path, compared=[PATTERN], attributes=("pattern",))
    found = {
        trial: MethodOutcome(
            MethodRun(method=trial.method, seconds=0, examples_per_second=0, best_epoch=0), tmp_path / trial.name
        )
        for trial in map(Trial, NOISY)
    }
    for trial, kept in found.items():
        for what, share in noises(trial.method):
            bad = (trial.method, what, share) == ("late-concatenation", "names", 0.5)
            file = kept.folder / noisy_name(what, share) / "pattern.npz"
            storage.write_bytes(file, (wrong if bad else right).to_bytes())
    thresholds = {
        trial: {"pattern": Threshold(threshold=0.5, target_precision=0.9, precision=1, accepted=60, candidates=60)}
        for trial in found
    }
    tests = {trial: {"pattern": right} for trial in found}
    margins = judge_noise(setting, found, thresholds, tests, ("title",)).against_whole_noise
    for what, methods in margins.items():
        assert set(methods) == {"late-concatenation", "sa-without-ma", "ma-without-sa"}
        for method, differences in methods.items():
            for share, margin in zip(SHARES[1:], differences, strict=True):
                assert margin is not None
                bad = (method, what, share) == ("late-concatenation", "names", 0.5)
                assert margin.mean == pytest.approx(2 / 3 if bad else 0, abs=0.05)
    alone = {trial: kept for trial, kept in found.items() if trial.method != "cma-clip"}
    assert not any(judge_noise(setting, alone, thresholds, tests, ("title",)).against_whole_noise.values())


@pytest.mark.long
def test_each_method_is_trained_with_each_seed_and_goes_on(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(seeds: int) -> tuple[Path, Results]:
        methods = ("text-tower", "cma-clip", "tf-idf", "raw-clip")
        folder = experiment(
            settings,
            DAY,
            products=300,
            epochs=3,
            methods=methods,
            attributes=("colour", "pattern"),
            processes=1,
            seeds=seeds,
        )
        results = storage.read_document(folder / "results.json", Results)
        assert results is not None
        return Path(str(folder)), results

    folder, one = run(1)
    assert one.texts[0].seeds == {}
    before = {p: p.stat().st_mtime_ns for p in folder.glob("predictions/*/run.json")}
    keep = train_methods.keep_predictions

    def mortal(setting: Any, trial: Any, *found: Any) -> None:
        if trial.name == "text-tower+1":
            raise KeyboardInterrupt
        keep(setting, trial, *found)

    monkeypatch.setattr(train_methods, "keep_predictions", mortal)
    with pytest.raises(KeyboardInterrupt):
        run(2)
    monkeypatch.undo()
    before[folder / "predictions" / "cma-clip+1" / "run.json"] = (
        (folder / "predictions" / "cma-clip+1" / "run.json").stat().st_mtime_ns
    )
    again, two = run(2)
    assert again == folder
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert {p.name for p in (folder / "predictions").iterdir()} == {
        "text-tower", "text-tower+1", "cma-clip", "cma-clip+1", "tf-idf", "raw-clip",
    }  # fmt: skip
    (judged,) = two.texts
    assert judged.methods == one.texts[0].methods
    assert {method: len(seeds) for method, seeds in judged.seeds.items()} == {"text-tower": 2, "cma-clip": 2}
    assert [(r.method, r.seed) for r in two.runs] == [
        ("raw-clip", None), ("text-tower", 0), ("text-tower", 1), ("cma-clip", 0), ("cma-clip", 1), ("tf-idf", None),
    ]  # fmt: skip
    recalls = [100 * (m.mean_recall_at_90 or 0) for m in judged.seeds["cma-clip"]]
    assert recalls[0] != recalls[1]
    page = (folder / "results.md").read_text()
    mean, spread = f"{sum(recalls) / 2:.1f}", f"{min(recalls):.1f} to {max(recalls):.1f}"
    assert re.search(rf"\| CMA-CLIP \| 2 \|.*\| \**{re.escape(mean)}\** \({re.escape(spread)}\) \|", page)
    assert "| CMA-CLIP, seed 1 | " in page
    assert "of the bootstrap's draws of all seeds together" in page
    assert "trained once" not in page
    # Between those of the seeds alone, the first of which is known.
    first, both = one.texts[0].against_whole["tf-idf"], judged.against_whole["tf-idf"]
    assert first is not None
    assert both is not None
    gap = (recalls[1] - recalls[0]) / 200
    assert both.mean - first.mean == pytest.approx(gap, abs=0.05)
    assert run(1)[1] == one


def test_what_cannot_be_kept_is_said_before_anything_is_trained(settings: Settings) -> None:
    there = sorted(Lake(settings.root).experiments.glob("*/*"))
    with pytest.raises(JobError, match="raw-clip, tf-idf cannot be kept, because nothing is trained; choose from"):
        experiment(settings, DAY, products=220, keep=("raw-clip", "tf-idf"))
    with pytest.raises(JobError, match="cma-clip cannot be kept: not among the methods that are run: tf-idf"):
        experiment(settings, DAY, products=220, methods=("tf-idf",), keep=("cma-clip",))
    with pytest.raises(JobError, match="no such method: clap"):
        experiment(settings, DAY, products=220, keep=("clap",))
    assert sorted(Lake(settings.root).experiments.glob("*/*")) == there


def test_unknown_names_say_what_there_is(settings: Settings) -> None:
    with pytest.raises(JobError, match=r"no such method: clap; choose from raw-clip, fine-tuned-clip"):
        experiment(settings, DAY, methods=("clap",))
    with pytest.raises(JobError, match=r"no such attribute: color; choose from article_type, colour"):
        experiment(settings, DAY, attributes=("color",))


def test_an_experiment_begins_with_given_towers_and_is_named_after_what_is_in_them(
    settings: Settings, pretrained: Path, tmp_path: Path
) -> None:
    def run(towers: str | None) -> Path:
        return Path(str(experiment(settings, DAY, products=310, methods=("raw-clip",), processes=1, towers=towers)))

    def begun(folder: Path) -> bytes:
        (found,) = (folder / "towers").iterdir()
        return (found / tower_files.WEIGHTS).read_bytes()

    given = run(pretrained.name)
    assert begun(given) == (pretrained / tower_files.WEIGHTS).read_bytes()
    results = storage.read_document(given / "results.json", Results)
    assert results is not None
    assert results.towers == pretrained.name
    assert f"towers {pretrained.name}" in (given / "results.md").read_text()
    elsewhere = tmp_path / "mine"
    shutil.copytree(pretrained, elsewhere)
    kept = (given / "predictions" / "raw-clip" / "run.json").stat().st_mtime_ns
    assert run(f"{elsewhere}/") == given
    assert (given / "predictions" / "raw-clip" / "run.json").stat().st_mtime_ns == kept
    state = load_file(elsewhere / tower_files.WEIGHTS)
    save_file({name: value + 0.01 for name, value in state.items()}, elsewhere / tower_files.WEIGHTS)
    other = run(str(elsewhere))
    assert other != given
    assert begun(other) == (elsewhere / tower_files.WEIGHTS).read_bytes() != begun(given)
    own = run(None)  # pretrained for itself, on its own products
    assert own not in (given, other)
    assert begun(own) not in (begun(given), begun(other))
    with pytest.raises(JobError, match="'20260101-00000000': no such towers"):
        run("20260101-00000000")
    with pytest.raises(JobError, match="not a folder of pretrained towers"):
        run(f"{tmp_path}/none")


def test_methods_differ_from_the_whole_in_what_they_say() -> None:
    base = drawn.config()
    assert configure(base, "cma-clip") == base
    raw = configure(base, "raw-clip")
    assert (raw.method, raw.training.epochs, raw.name) == ("clip", 0, "tiny-raw-clip")
    late = configure(base, "late-concatenation")
    assert not late.fusion.sequence_attention
    assert late.fusion.modality_mixing == "concatenation"
    assert late.backbone == base.backbone
    assert configure(base, "picture-tower").training.text_dropout == 0
    with pytest.raises(KeyError):
        configure(base, "clap")


@pytest.mark.long
def test_a_version_of_an_experiment_gets_into_a_lake_on_s3(
    tmp_path: Path, on_s3: AnyPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    settings = settings_of(tmp_path)
    add_examples(Lake(settings.root), RUN, drawn.examples(300))
    storage.send_folder(Path(str(settings.root)), on_s3)
    settings = settings.model_copy(update={"root": on_s3})
    folder = experiment(settings, DAY, epochs=1, methods=("text-tower",), processes=1, keep=("text-tower",))
    results = storage.read_document(folder / "results.json", Results)
    assert results is not None
    lake = Lake(on_s3)
    assert registry.list_versions(lake.models) == [results.versions["text-tower"]]
    registry.check(lake.models / results.versions["text-tower"])
