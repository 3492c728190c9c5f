"""Step 3, preprocess: the model inputs of new and changed products.

Pictures are fetched and decoded inside Spark's tasks, Arrow batch by Arrow batch, and written from there; none passes
through the driver or the JVM. A missing or broken picture does not lose its product: the example says what is wrong.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from cma_clip_core.content import pictures, product_text
from jobs.errors import CriticalDataError, JobError
from jobs.lake import parquet, storage, verified_files
from jobs.lake.layout import IMPORTED, MISSING, Lake
from jobs.lake.storage import AnyPath
from jobs.runtime.step_metrics import measure
from jobs.settings import Settings
from jobs.spark import sessions
from schemas import tables
from schemas.documents import ExamplesManifest, Plan, StoredFile
from schemas.rules import PicturesFound, load_rules
from schemas.tables import ImageStatus
from schemas.taxonomy import Taxonomy

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

log = logging.getLogger(__name__)

_ROWS_A_FILE = 2_500  # at most
_FILES = 16  # at least, where there are enough rows: a core that gets one more than the others is not waited for long
_BATCH_BYTES = 16 * 2**20  # of pixels
_FEW_MISSING = 50  # so few new products without their pictures are nothing unusual
_EMPTY = hashlib.sha1(usedforsecurity=False).hexdigest()  # what import names a picture without bytes
_NOT_IMPORTED = "not imported"  # beside the statuses: pictures that import could not find, which `validate` has judged


def preprocess(settings: Settings, run_id: str) -> int:
    """Make the examples of a run that are not there yet; return how many. A finished run is not done again.

    Raises:
        JobError: there is no such plan, a picture root has nothing in it, or a picture of the lake is damaged.
        CriticalDataError: so many pictures are missing that their place must be at fault. Nothing is tagged.
        PythonException: a picture could not be read by a fault of its disk or mount; the message names it. Try again.
    """
    lake = Lake(settings.root)
    plan = lake.read_plan(run_id)
    with storage.locked(lake.examples(run_id)), measure("preprocess", lake.reports(run_id)) as measured:
        found = lake.find_examples_manifest(run_id)
        if found is not None and (damage := verified_files.damage(lake, found.files)) is not None:
            log.warning("preprocess: %s; the examples are made again", damage)
            found = None
        if found is not None or not plan.to_preprocess:
            log.info("preprocess: nothing to do")
            measured.folder = None  # what it did cost stays on record
            return found.rows if found else 0
        check_roots(settings.picture_roots)
        with sessions.session(settings, plan.validation.raw) as session:
            statuses, not_imported, files = _preprocess(session, settings, lake, plan)
        check_roots(settings.picture_roots)  # what went away in between left pictures that look missing
        rows = sum(statuses.values())
        if rows != plan.to_preprocess:
            raise RuntimeError(f"{run_id}: {rows} examples where the plan says {plan.to_preprocess}")
        _check_missing(settings, run_id, statuses, not_imported)
        manifest = ExamplesManifest(
            run_id=run_id,
            ds=plan.ds,
            picture_height=plan.picture_height,
            picture_width=plan.picture_width,
            taxonomy_fingerprint=plan.taxonomy_fingerprint,
            rows=rows,
            image_statuses=statuses,
            files=files,
            created_at=datetime.now(UTC),
        )
        storage.write_document(lake.examples(run_id) / "_manifest.json", manifest)
        measured.rows = rows
        measured.details |= {f"image_{status}": n for status, n in statuses.items()}
    return rows


def check_roots(roots: Sequence[AnyPath]) -> None:
    """Raise JobError for a folder of `roots` that is absent or empty, as one is where nothing is mounted.

    Its pictures would be taken for missing, and their products published by their texts alone.
    """
    for root in roots:
        if not storage.on_disk(root):
            if not storage.children(root):
                raise JobError(f"{root}: nothing is there; TAGGING_PICTURE_ROOTS names it: correct the setting")
            continue
        try:
            with os.scandir(root) as entries:
                problem = None if any(entries) else "the folder is empty"
        except OSError as error:
            problem = error.strerror
        if problem:
            raise JobError(
                f"{root}: {problem}; TAGGING_PICTURE_ROOTS names it: mount it, or take it out of the setting"
            )


def _check_missing(settings: Settings, run_id: str, statuses: Mapping[str, int], not_imported: int) -> None:
    """Raise CriticalDataError where so many pictures are missing that their products must not be tagged without them.

    The bound is that of the rule on pictures that import could not find. A mount or a bucket that holds other files than it
    should is no empty one (`check_roots`).
    """
    missing = statuses.get("missing", 0) - not_imported
    named = sum(statuses.values()) - statuses.get("absent", 0) - not_imported
    rules = load_rules(settings.rules).batch_rules
    most = max((rule.maximum_missing for rule in rules if isinstance(rule, PicturesFound)), default=1.0)
    if missing > max(_FEW_MISSING, most * named):
        places = ", ".join(str(root) for root in settings.all_picture_roots)
        raise CriticalDataError(
            f"run {run_id}: {missing:,} of {named:,} pictures are missing ({missing / named:.0%}; {most:.0%} is allowed). "
            f"They were looked for in {places}. Nothing is tagged: see that the pictures are there, and run the step again. "
            f"Where they do not exist, raise `maximum_missing` of the rule on pictures ({settings.rules})"
        )


def _preprocess(
    session: SparkSession, settings: Settings, lake: Lake, plan: Plan
) -> tuple[dict[str, int], int, tuple[StoredFile, ...]]:
    """Make the examples; return the statuses of their pictures, how many of these import could not find, and the files."""
    records, targets = _placed(session, lake, plan)
    make = ExampleMaker(
        spec=pictures.PictureSpec(plan.picture_height, plan.picture_width),
        roots=settings.all_picture_roots,
        taxonomy=lake.read_taxonomy(plan.taxonomy_path, plan.taxonomy_fingerprint),
    )
    # Half-written leftovers of a killed attempt are replaced file by file; a wider attempt's extra files go here.
    storage.remove_folder(lake.examples(plan.run_id))
    written = parquet.write_files(records, targets, tables.EXAMPLES, order=["product_id"], transform=make, digest=True)
    statuses: dict[str, int] = {}
    for file in written:
        for status, n in file.notes.items():
            statuses[status] = statuses.get(status, 0) + n
    not_imported = statuses.pop(_NOT_IMPORTED, 0)
    files = (
        StoredFile(path=lake.relative(targets[w.target]), rows=w.rows, bytes=w.bytes, sha256=w.sha256) for w in written
    )
    return dict(sorted(statuses.items())), not_imported, tuple(files)


def _placed(session: SparkSession, lake: Lake, plan: Plan) -> tuple[DataFrame, list[AnyPath]]:
    """Return the records to preprocess, each with the index of its file, and the files."""
    from pyspark.sql import functions as F

    # A shard's examples are all made here, or were all made before (`plan._cut`).
    folders = {shard.id: lake.examples(plan.run_id) / f"shard={shard.id}" for shard in plan.shards}
    sizes = {shard.id: shard.rows for shard in plan.shards if lake.relative(folders[shard.id]) in shard.example_paths}
    verified_files.check_records(lake, plan.validation)
    verified_files.check_plan(lake, plan)
    todo = parquet.read(session, [lake.plan_file(plan.run_id, shard) for shard in sizes], tables.PLAN)
    valid = parquet.read(session, [lake.root / plan.validation.valid_path], tables.VALID)
    # From the plan alone, as is the order of rows: the same run makes the same files, on whatever machine, however often
    # it is started again, and from the same batches the model makes the same confidences to the last bit.
    rows_a_file = min(_ROWS_A_FILE, max(64, math.ceil(sum(sizes.values()) / _FILES)))
    targets: list[AnyPath] = []
    first, parts = {}, {}
    for shard, size in sorted(sizes.items()):
        first[shard], parts[shard] = len(targets), math.ceil(size / rows_a_file)
        targets += [folders[shard] / f"part-{part:05d}.parquet" for part in range(parts[shard])]
    lookup = {
        name: F.create_map(*[F.lit(x) for pair in d.items() for x in pair])
        for name, d in (("first", first), ("parts", parts))
    }
    # xxhash64 with its own seed: the shard itself comes from a hash of the id, and the two must not go together.
    part = F.pmod(F.xxhash64("product_id", F.lit("part")), lookup["parts"][F.col("shard")])
    placed = todo.withColumn("target", (lookup["first"][F.col("shard")] + part).cast("int"))
    columns = ["product_id", "source_hash", "title", "brand", "description", "image_uri", "image_version", "labels"]
    return valid.select(*columns).join(placed.select("product_id", "target"), "product_id"), targets


class ExampleMaker:
    """Records to examples, batch by batch. Sent to Spark's workers."""

    def __init__(self, spec: pictures.PictureSpec, roots: tuple[AnyPath, ...], taxonomy: Taxonomy) -> None:
        self._spec = spec
        self._picture_bytes = spec.height * spec.width * 3
        self._names = tuple(str(root) for root in roots)  # connections are not sent to the workers
        self._taxonomy = taxonomy

    @functools.cached_property
    def _roots(self) -> tuple[AnyPath, ...]:
        return tuple(storage.as_path(name) for name in self._names)

    def __call__(self, batches: Iterator[pa.RecordBatch], statuses: dict[str, int]) -> Iterator[pa.RecordBatch]:
        """Yield a batch with the columns of EXAMPLES for each batch of records; count pictures by status, and those not imported."""
        for batch in self._small(batches):
            uris = batch.column("image_uri").to_pylist()
            images, found = self._pictures(uris, batch.column("image_version").to_pylist())
            labels = [self._taxonomy.normalise(dict(found or ())) for found in batch.column("labels").to_pylist()]
            for status, _ in found:
                statuses[status] = statuses.get(status, 0) + 1
            if not_imported := sum(uri is not None and uri.startswith(f"{MISSING}/") for uri in uris):
                statuses[_NOT_IMPORTED] = statuses.get(_NOT_IMPORTED, 0) + not_imported
            columns: dict[str, object] = {
                "product_id": batch.column("product_id"),
                "source_hash": batch.column("source_hash"),
                "image": images,
                "image_status": [status for status, _ in found],
                "image_detail": [detail for _, detail in found],
                "labels": pa.array([list(known.items()) for known, _ in labels], tables.LABELS),
                "unknown_labels": pa.array([list(unknown.items()) for _, unknown in labels], tables.LABELS),
            }
            for name in ("title", "brand", "description"):
                columns[name] = [product_text.clean(value) for value in batch.column(name).to_pylist()]
            yield pa.RecordBatch.from_pydict(
                {name: columns[name] for name in tables.EXAMPLES.names}, schema=tables.EXAMPLES
            )

    def _small(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Cut batches so that their pixels take memory that the allocator keeps, not new pages each time."""
        rows = max(1, _BATCH_BYTES // self._picture_bytes)
        for batch in batches:
            for start in range(0, batch.num_rows, rows):
                yield batch.slice(start, rows)

    def _pictures(
        self, uris: Sequence[str | None], versions: Sequence[str | None]
    ) -> tuple[pa.BinaryArray, list[tuple[ImageStatus, str | None]]]:
        """Return the pixels of the pictures at `uris`, null where there are none, and each one's status and detail.

        Raises:
            JobError: a picture of the lake is not what was imported.
        """
        # Decoded into the array's own buffer: to gather so many bytes from objects costs half of decoding them.
        pixels = np.empty((len(uris), self._spec.height, self._spec.width, 3), dtype=np.uint8)
        offsets = np.zeros(len(uris) + 1, dtype=np.int32)
        found: list[tuple[ImageStatus, str | None]] = []
        decoded = 0
        for row, data in enumerate(pictures.fetch_all(uris, self._roots)):
            self._check_imported(uris[row], versions[row], data)
            if data is None:
                found.append(("absent", None))
            else:
                try:
                    if isinstance(data, pictures.PictureError):
                        raise data
                    pictures.decode(data, self._spec, out=pixels[decoded])
                    decoded += 1
                    found.append(("ok", None))
                except pictures.PictureError as error:
                    found.append((error.status, error.detail or None))
            offsets[row + 1] = decoded * self._picture_bytes
        present = pa.array([status == "ok" for status, _ in found])
        buffers = [present.buffers()[1], pa.py_buffer(offsets), pa.py_buffer(pixels[:decoded])]
        return pa.Array.from_buffers(pa.binary(), len(uris), buffers), found

    def _check_imported(self, uri: str | None, version: str | None, data: bytes | pictures.PictureError | None) -> None:
        """Raise JobError where the file of a picture that import has named by its content is gone, or has another content.

        One that is cut off can be decoded in part, one that is empty reads as if the shop had it so: the product would be
        tagged by what the disk has left of it.
        """
        named = None if uri is None else IMPORTED.fullmatch(uri)
        if named is None or named[1] != version:
            return
        if isinstance(data, pictures.PictureError):
            found = _EMPTY if data.status == "empty" else ""
        else:
            found = hashlib.sha1(data or b"", usedforsecurity=False).hexdigest()
        if found != version:
            gone = isinstance(data, pictures.PictureError) and data.status == "missing"
            what = "the picture that was imported is gone" if gone else "it is not the picture that was imported"
            raise JobError(
                f"{self._names[0]}/{uri}: {what}: it was removed or changed, or its disk fails; import the export of the day "
                "again, which writes it again, then run the step again"
            )
