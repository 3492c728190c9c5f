"""Preprocess against a bare Pillow loop that decodes and resizes the same pictures on as many processes.

    PYTHONPATH=. python benchmarks/preprocess_rate.py PICTURES.zip --copies 12 --height 224 --width 224

Both read the files from a folder; preprocess also cleans texts, maps labels, and writes Parquet. Side by side, in turn.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from jobs import spark
from jobs.import_catalog import write_parts
from jobs.lake import Lake
from jobs.plan import plan
from jobs.preprocess import preprocess
from jobs.settings import Settings
from jobs.storage import remove_folder, write_document
from jobs.validate import validate
from schemas.documents import RawManifest

DS = "2026-11-20"


def bare(job: tuple[str, int, int]) -> int:
    """Decode and resize one picture."""
    path, height, width = job
    with Image.open(path) as picture:
        return int(np.asarray(picture.convert("RGB").resize((width, height))).nbytes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, help="zip of pictures")
    parser.add_argument("--copies", type=int, default=12, help="products made of each picture")
    parser.add_argument("--height", type=int, default=224)
    parser.add_argument("--width", type=int, default=224)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        lake = Lake(root / "lake")
        with zipfile.ZipFile(options.pictures) as archive:
            archive.extractall(lake.pictures)
        paths = sorted(p for p in lake.pictures.rglob("*") if p.is_file())
        config = root / "model.yaml"
        shipped = yaml.safe_load((Path(__file__).parents[1] / "cma_clip_core/configs/tiny.yaml").read_text())
        config.write_text(yaml.safe_dump(shipped | {"picture": {"height": options.height, "width": options.width}}))
        settings = Settings(
            root=lake.root, model_config_name=str(config), spark_master=f"local[{options.processes}]", progress=False
        )
        names = [str(p.relative_to(lake.pictures)) for _ in range(options.copies) for p in paths]
        lines = (
            f'{{"product_id": "{i}", "title": "Blue shirt", "description": "A shirt.", "image_uri": "{name}"}}\n'.encode()
            for i, name in enumerate(names)
        )
        files = write_parts(lake.raw(DS), lines)
        manifest = RawManifest(
            ds=DS, source="benchmark", files=files, rows=len(names), created_at="2026-11-20T00:00:00Z"
        )
        write_document(lake.raw(DS) / "_manifest.json", manifest)
        jobs = [(str(lake.pictures / name), options.height, options.width) for name in names]
        ratios = []
        with spark.session(settings), multiprocessing.get_context("spawn").Pool(options.processes) as pool:
            validate(settings, DS)
            run_id = plan(settings, DS, prepare=True).run_id
            preprocess(settings, run_id)  # warm: workers are forked, files are in the page cache
            sum(pool.imap_unordered(bare, jobs, chunksize=256))
            for _ in range(options.rounds):
                remove_folder(lake.examples(run_id))
                start = time.perf_counter()
                preprocess(settings, run_id)
                ours = len(names) / (time.perf_counter() - start)
                start = time.perf_counter()
                sum(pool.imap_unordered(bare, jobs, chunksize=256))
                loop = len(names) / (time.perf_counter() - start)
                ratios.append(ours / loop)
                print(f"preprocess {ours:,.0f}/s, bare loop {loop:,.0f}/s, ratio {ours / loop:.2f}", flush=True)
        print(
            f"median ratio {statistics.median(ratios):.2f} on {len(names):,} pictures to {options.height}x{options.width}"
        )


if __name__ == "__main__":
    main()
