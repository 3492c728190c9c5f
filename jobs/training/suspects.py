"""Find suspected wrong labels of a day's catalog, by models that never saw them; write a table and a page."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cma_clip_core.catalog.examples import read_index, read_rows
from cma_clip_core.config import load_config
from cma_clip_core.content.paths import AnyPath, open_parquet
from cma_clip_core.errors import CoreError
from cma_clip_core.evaluation.calibration import fit_temperature
from cma_clip_core.evaluation.evaluate import evaluate
from cma_clip_core.evaluation.label_errors import Suspect, find_suspects, fold_index
from cma_clip_core.evaluation.learnable import find_unlearnable
from cma_clip_core.evaluation.predictions import Predictions, join
from cma_clip_core.inputs.compute import Compute
from cma_clip_core.inputs.devices import resolve_device
from cma_clip_core.inputs.learning_problem import LearningProblem
from cma_clip_core.model.tower_files import check as check_towers
from cma_clip_core.training.fit import fit
from jobs.errors import as_job_error
from jobs.lake import storage
from jobs.lake.layout import Lake
from jobs.pages.example_pictures import ExampleLocation, thumbnails
from jobs.runtime.step_metrics import measure, refuse_several
from jobs.settings import Settings
from jobs.training.dataset import dataset
from jobs.training.pretrain import find_towers, with_towers
from jobs.training.suspects_page import render_suspects
from schemas.tables import SUSPECTS
from schemas.taxonomy import load_taxonomy

log = logging.getLogger(__name__)

SHOWN = 24  # suspects per attribute on the page


def suspects(settings: Settings, ds: str, *, folds: int = 3, towers: str | None = None) -> AnyPath:
    """Find the labels that are probably wrong, and return the folder of the table and the page.

    One model is trained for each fold. A killed step resumes with the unfinished fold.

    Args:
        settings: names the model configuration, the taxonomy and the device.
        ds: the newest day whose examples are used.
        folds: number of folds that the families are dealt into; each model learns from all folds except one.
        towers: name or folder of the pretrained towers to start from. They saw pictures and texts, but no labels.

    Raises:
        JobError: there are too few examples for this configuration and taxonomy, or `torchrun` started several processes.
        TransientError: a checkpoint cannot be written, for example because the disk is full.
    """
    refuse_several("suspects")
    lake = Lake(settings.root)
    config, taxonomy = load_config(settings.model_config_name), load_taxonomy(settings.taxonomy)
    start = find_towers(lake, towers)
    labelled = dataset(settings, ds)
    # A name in the lake identifies its towers. Any other folder may hold other towers later, so its weights are hashed.
    start_id = check_towers(start, config) if start is not None and towers != start.name else towers
    parts = [labelled.manifest.set_id, config.model_dump(mode="json"), start_id, folds]
    name = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]
    folder = lake.root / "suspects" / f"ds={ds}" / f"set={name}"
    if storage.exists(folder / "index.html"):
        log.info("suspects: %s exists", folder)
        return folder
    work = lake.work / lake.relative(folder) / "unfinished"
    with measure("suspects", folder) as measured:
        try:
            index, device = read_index(labelled.table, lake.root), resolve_device(settings.device)
            problem = LearningProblem.build(with_towers(config, start), taxonomy, index)
            predictions, products = _out_of_fold(problem, Compute(device, progress=settings.progress), work, folds)
        except CoreError as error:
            raise as_job_error(error) from error
        listed = [s for p, temperature in predictions.values() for s in find_suspects(p, temperature)]
        with storage.whole_file(folder / "suspects.parquet") as temporary:
            pq.write_table(
                pa.Table.from_pylist([_row(s) for s in listed], schema=SUSPECTS), temporary, write_page_checksum=True
            )
        locations = _locate_examples(labelled.table, lake, {s.product for s in _shown(listed)})
        pictures = thumbnails(locations, config.picture.height, config.picture.width)
        labels = {
            name: int(predictions[name][0].has_target.sum()) if name in predictions else 0 for name in taxonomy.names
        }
        page = render_suspects(ds, taxonomy, listed, labels, SHOWN, folds, pictures, _titles(locations))
        measured.rows = products
        measured.details |= {"suspects": len(listed), "folds": folds}
        if left_out := [name for name in taxonomy.names if name not in predictions]:
            measured.details["not_learnt"] = ", ".join(left_out)
        storage.write_bytes(folder / "index.html", page.encode())
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _out_of_fold(
    problem: LearningProblem, compute: Compute, work: Path, folds: int
) -> tuple[dict[str, tuple[Predictions, float]], int]:
    """Return each attribute's out-of-fold predictions with their temperature, and the number of their products.

    An attribute that cannot be learnt in one of the folds is left out, because its predictions there mean nothing.
    """
    taxonomy = problem.taxonomy
    parts: list[dict[str, Predictions]] = []
    not_learnt: set[str] = set()
    for fold in range(folds):
        kept = work / f"fold={fold}"
        part = replace(problem, index=fold_index(problem.index, fold, folds))
        not_learnt |= find_unlearnable(part.index, part.layout, part.config.selection.least_labels).keys()
        if not (kept / "done").exists():
            log.info("suspects: fold %d of %d", fold + 1, folds)
            model, _ = fit(part, compute, folder=work / f"training={fold}")
            for name, p in evaluate(model, part, "test", compute.device).items():
                storage.write_bytes(kept / f"{name}.npz", p.to_bytes())
            storage.write_bytes(kept / "done", b"")
            shutil.rmtree(work / f"training={fold}", ignore_errors=True)
        parts.append(
            {a.name: Predictions.from_bytes(a, (kept / f"{a.name}.npz").read_bytes()) for a in taxonomy.attributes}
        )
    joined = {
        name: join([by_attribute[name] for by_attribute in parts]) for name in taxonomy.names if name not in not_learnt
    }
    products = {product for p in joined.values() for product in p.products}
    # No model was trained on the products it predicts, so all predictions can fit the temperature.
    return {name: (p, fit_temperature(p)) for name, p in joined.items()}, len(products)


def _row(suspect: Suspect) -> dict[str, object]:
    row = asdict(suspect)
    return {"product_id": row.pop("product"), **row}


def _shown(listed: list[Suspect]) -> list[Suspect]:
    shown: list[Suspect] = []
    for name in dict.fromkeys(s.attribute for s in listed):
        shown += [s for s in listed if s.attribute == name][:SHOWN]
    return shown


def _locate_examples(table: AnyPath, lake: Lake, products: set[str]) -> dict[str, ExampleLocation]:
    if not products:
        return {}
    columns = ["product_id", "example_file", "example_row"]
    with open_parquet(table) as file:
        rows = file.read(columns=columns)
    rows = rows.filter(pc.is_in(rows["product_id"], value_set=pa.array(sorted(products), pa.string())))
    return {r["product_id"]: ExampleLocation(lake.root / r["example_file"], r["example_row"]) for r in rows.to_pylist()}


def _titles(locations: Mapping[str, ExampleLocation]) -> dict[str, str]:
    titles: dict[str, str] = {}
    for file in {location.file for location in locations.values()}:
        rows = np.array(sorted(location.row for location in locations.values() if location.file == file))
        for batch in read_rows(file, rows, ("product_id", "title")):
            titles |= dict(zip(batch.column("product_id").to_pylist(), batch.column("title").to_pylist(), strict=True))
    return titles
