"""Rate of preprocess, compared with a bare Pillow loop that decodes and resizes the same pictures on as many processes.

    PYTHONPATH=. python benchmarks/preprocess_rate.py CATALOG                          # at the size of the fashion model
    PYTHONPATH=. python benchmarks/preprocess_rate.py CATALOG --pictures LARGER.zip --height 224 --width 224 --products 10000

Both read the pictures from a folder. Preprocess also reads the records, cleans texts, maps labels and writes Parquet. The two
take turns.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import statistics
import tempfile
import time
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import yaml
from PIL import Image
from raw_day import Record, rewrite

from jobs.importing.import_catalog import import_catalog
from jobs.lake.layout import Lake
from jobs.lake.storage import remove_folder
from jobs.nightly.plan import plan
from jobs.nightly.preprocess import preprocess
from jobs.settings import Settings
from jobs.spark import sessions
from jobs.validation.validate import validate

DS = "2026-11-20"


def bare(job: tuple[str, int, int]) -> int:
    """Decode and resize one picture."""
    path, height, width = job
    with Image.open(path) as picture:
        return int(np.asarray(picture.convert("RGB").resize((width, height))).nbytes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("catalog", type=Path, help="a shop's export: records and pictures")
    parser.add_argument("--mapping", default="fashion-products")
    parser.add_argument("--taxonomy", default="fashion")
    parser.add_argument("--pictures", type=Path, help="zip of other pictures, assigned to the products in turn")
    parser.add_argument("--products", type=int, help="use only this many products of the catalog; default: all")
    parser.add_argument("--height", type=int, default=80)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        config = root / "model.yaml"
        shipped = yaml.safe_load((Path(__file__).parents[1] / "cma_clip_core/configs/tiny.yaml").read_text())
        config.write_text(yaml.safe_dump(shipped | {"picture": {"height": options.height, "width": options.width}}))
        settings = Settings(
            root=root / "lake",
            taxonomy=options.taxonomy,
            model_config_name=str(config),
            spark_master=f"local[{options.processes}]",
            progress=False,
        )
        lake = Lake(settings.root)
        import_catalog(settings, options.catalog, DS, options.mapping)
        others: list[str] = []
        if options.pictures:
            with zipfile.ZipFile(options.pictures) as archive:
                archive.extractall(lake.pictures / "others")
            others = sorted(str(p.relative_to(lake.pictures)) for p in lake.pictures.glob("others/**/*") if p.is_file())
        jobs: list[tuple[str, int, int]] = []

        def change(records: Iterable[Record]) -> Iterator[Record]:
            for n, record in enumerate(itertools.islice(records, options.products)):
                changed = record | ({"image_uri": others[n % len(others)]} if others else {})
                jobs.append((str(lake.pictures / changed["image_uri"]), options.height, options.width))
                yield changed

        rows = rewrite(lake, DS, change)
        ratios = []
        with sessions.session(settings), multiprocessing.get_context("spawn").Pool(options.processes) as pool:
            validate(settings, DS)
            run_id = plan(settings, DS, prepare=True).run_id
            for n in range(options.rounds + 1):
                remove_folder(lake.examples(run_id))
                start = time.perf_counter()
                preprocess(settings, run_id)
                ours = rows / (time.perf_counter() - start)
                start = time.perf_counter()
                sum(pool.imap_unordered(bare, jobs, chunksize=256))
                loop = rows / (time.perf_counter() - start)
                if n == 0:
                    continue  # warm-up: workers are forked, files get into the page cache
                ratios.append(ours / loop)
                print(f"preprocess {ours:,.0f}/s, bare loop {loop:,.0f}/s, ratio {ours / loop:.2f}", flush=True)
        print(f"median ratio {statistics.median(ratios):.2f} on {rows:,} pictures to {options.height}x{options.width}")


if __name__ == "__main__":
    main()
