"""Step 3, preprocess: the model inputs of new and changed products.

Spark's tasks fetch and decode pictures, one Arrow batch at a time, and write them to files. No picture passes through
the driver or the JVM. A product with a missing or broken picture is kept; its example has the picture's status.
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

from cma_clip_core.arrays import Pixels
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

_ROWS_PER_FILE = 2_500  # the maximum
_FILES = (
    16  # the minimum, given enough rows: small files shorten the wait for a core that gets one more than the others
)
_BATCH_BYTES = 16 * 2**20  # of pixels
_TRIED = 20  # further pictures of a product that are tried
_FEW_MISSING = 50  # up to this number, missing pictures are nothing unusual
_EMPTY = hashlib.sha1(usedforsecurity=False).hexdigest()  # the name that import gives to a picture without bytes
_NOT_IMPORTED = (
    "not imported"  # counted beside the statuses: pictures that import could not find; `validate` judges them
)


def preprocess(settings: Settings, run_id: str) -> int:
    """Make the missing examples of a run, and return their number. Finished examples are not made again.

    Raises:
        JobError: the plan does not exist, a picture root is empty, or a picture of the lake is damaged.
        CriticalDataError: so many pictures are missing that their location must be at fault. Nothing is tagged.
        PythonException: a disk or mount failed while a picture was read; the message names the picture. Try again.
    """
    lake = Lake(settings.root)
    plan = lake.read_plan(run_id)
    with storage.locked(lake.examples(run_id)), measure("preprocess", lake.reports(run_id)) as measured:
        existing = lake.find_examples_manifest(run_id)
        if existing is not None and (damage := verified_files.damage(lake, existing.files)) is not None:
            log.warning("preprocess: %s; the examples are made again", damage)
            existing = None
        if existing is not None or not plan.to_preprocess:
            log.info("preprocess: nothing to do")
            measured.folder = None  # keeps the metrics of the attempt that did the work
            return existing.rows if existing else 0
        check_roots(settings.picture_roots)
        with sessions.session(settings, plan.validation.raw) as session:
            statuses, not_imported, files = _preprocess(session, settings, lake, plan)
        check_roots(settings.picture_roots)  # a root that disappeared in the meantime made its pictures look missing
        rows = sum(statuses.values())
        if rows != plan.to_preprocess:
            raise RuntimeError(f"{run_id}: {rows} examples were made, but the plan has {plan.to_preprocess}")
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
    """Raise JobError if a folder of `roots` is absent or empty, as an unmounted one is.

    Otherwise its pictures would count as missing, and their products would be tagged by text only.
    """
    for root in roots:
        if not storage.on_disk(root):
            if not storage.children(root):
                raise JobError(f"{root}: nothing exists there; TAGGING_PICTURE_ROOTS names it: correct the setting")
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
    """Raise CriticalDataError if so many pictures are missing that their products must not be tagged without them.

    The limit is that of the rule on pictures that import could not find. This also detects a mount or bucket that holds
    the wrong files, which `check_roots` does not.
    """
    missing = statuses.get("missing", 0) - not_imported
    named = sum(statuses.values()) - statuses.get("absent", 0) - not_imported
    rules = load_rules(settings.rules).batch_rules
    most = max((rule.maximum_missing for rule in rules if isinstance(rule, PicturesFound)), default=1.0)
    if missing > max(_FEW_MISSING, most * named):
        roots = ", ".join(str(root) for root in settings.all_picture_roots)
        raise CriticalDataError(
            f"run {run_id}: {missing:,} of {named:,} pictures are missing ({missing / named:.0%}; {most:.0%} is allowed). "
            f"They were looked for in {roots}. Nothing is tagged: make sure that the pictures exist, and run the step again. "
            f"If they do not exist, raise `maximum_missing` of the rule on pictures ({settings.rules})"
        )


def _preprocess(
    session: SparkSession, settings: Settings, lake: Lake, plan: Plan
) -> tuple[dict[str, int], int, tuple[StoredFile, ...]]:
    """Make the examples.

    Returns:
        The number of pictures by status, the number of those that import could not find, and the files.
    """
    records, targets = _assign_files(session, lake, plan)
    make = ExampleMaker(
        spec=pictures.PictureSpec(plan.picture_height, plan.picture_width),
        roots=settings.all_picture_roots,
        taxonomy=lake.read_taxonomy(plan.taxonomy_path, plan.taxonomy_fingerprint),
    )
    # Leftovers of a killed attempt may include files that this attempt does not write.
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


def _assign_files(session: SparkSession, lake: Lake, plan: Plan) -> tuple[DataFrame, list[AnyPath]]:
    """Return the records to preprocess, each with the index of its target file, and the target files."""
    from pyspark.sql import functions as F

    # A shard's examples are either all made here, or all exist already (`plan._assign_shards`).
    folders = {shard.id: lake.examples(plan.run_id) / f"shard={shard.id}" for shard in plan.shards}
    sizes = {shard.id: shard.rows for shard in plan.shards if lake.relative(folders[shard.id]) in shard.example_paths}
    verified_files.check_records(lake, plan.validation)
    verified_files.check_plan(lake, plan)
    todo = parquet.read(session, [lake.plan_file(plan.run_id, shard) for shard in sizes], tables.PLAN)
    valid = parquet.read(session, [lake.root / plan.validation.valid_path], tables.VALID)
    # The files and the order of their rows depend on the plan only. The same run therefore makes the same files on
    # every machine and after every restart, and from equal batches the model makes bit-identical confidences.
    rows_per_file = min(_ROWS_PER_FILE, max(64, math.ceil(sum(sizes.values()) / _FILES)))
    targets: list[AnyPath] = []
    first, parts = {}, {}
    for shard, size in sorted(sizes.items()):
        first[shard], parts[shard] = len(targets), math.ceil(size / rows_per_file)
        targets += [folders[shard] / f"part-{part:05d}.parquet" for part in range(parts[shard])]
    lookup = {
        name: F.create_map(*[F.lit(x) for pair in d.items() for x in pair])
        for name, d in (("first", first), ("parts", parts))
    }
    # The hash has its own seed, because the shard comes from a hash of the id too, and the two must be independent.
    part = F.pmod(F.xxhash64("product_id", F.lit("part")), lookup["parts"][F.col("shard")])
    assigned = todo.withColumn("target", (lookup["first"][F.col("shard")] + part).cast("int"))
    columns = ["product_id", "source_hash", "title", "brand", "description", "image_uri", "image_version", "labels"]
    columns.append("image_uris")
    return valid.select(*columns).join(assigned.select("product_id", "target"), "product_id"), targets


class ExampleMaker:
    """A function that turns records into examples, batch by batch. Spark sends it to its workers."""

    def __init__(self, spec: pictures.PictureSpec, roots: tuple[AnyPath, ...], taxonomy: Taxonomy) -> None:
        self._spec = spec
        self._picture_bytes = spec.height * spec.width * 3
        self._names = tuple(str(root) for root in roots)  # names, because connections cannot be sent to the workers
        self._taxonomy = taxonomy

    @functools.cached_property
    def _roots(self) -> tuple[AnyPath, ...]:
        return tuple(storage.as_path(name) for name in self._names)

    def __call__(self, batches: Iterator[pa.RecordBatch], statuses: dict[str, int]) -> Iterator[pa.RecordBatch]:
        """Yield a batch of EXAMPLES for each batch of records.

        The numbers of pictures by status, and of those that were not imported, are added to `statuses`.
        """
        for batch in self._split_batches(batches):
            uris = batch.column("image_uri").to_pylist()
            several = batch.column("image_uris").to_pylist()
            images, outcomes, used = self._pictures(uris, batch.column("image_version").to_pylist(), several)
            labels = [self._taxonomy.normalise(dict(given or ())) for given in batch.column("labels").to_pylist()]
            for status, _ in outcomes:
                statuses[status] = statuses.get(status, 0) + 1
            if not_imported := sum(uri is not None and uri.startswith(f"{MISSING}/") for uri in uris):
                statuses[_NOT_IMPORTED] = statuses.get(_NOT_IMPORTED, 0) + not_imported
            columns: dict[str, object] = {
                "product_id": batch.column("product_id"),
                "source_hash": batch.column("source_hash"),
                "image": images,
                "image_status": [status for status, _ in outcomes],
                "image_detail": [detail for _, detail in outcomes],
                "image_used": used,
                "labels": pa.array([list(known.items()) for known, _ in labels], tables.LABELS),
                "unknown_labels": pa.array([list(unknown.items()) for _, unknown in labels], tables.LABELS),
            }
            for name in ("title", "brand", "description"):
                columns[name] = [product_text.clean(value) for value in batch.column(name).to_pylist()]
            yield pa.RecordBatch.from_pydict(
                {name: columns[name] for name in tables.EXAMPLES.names}, schema=tables.EXAMPLES
            )

    def _split_batches(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Split batches, so that the allocator reuses the memory of their pixels instead of mapping new pages."""
        rows = max(1, _BATCH_BYTES // self._picture_bytes)
        for batch in batches:
            for start in range(0, batch.num_rows, rows):
                yield batch.slice(start, rows)

    def _pictures(
        self, uris: Sequence[str | None], versions: Sequence[str | None], several: Sequence[list[str] | None]
    ) -> tuple[pa.BinaryArray, list[tuple[ImageStatus, str | None]], list[str | None]]:
        """Return the products' pixels, null for those without, the status and detail of each, and the URIs used.

        Args:
            uris: the first picture of each product.
            versions: identity of its content.
            several: all pictures of each product, in the shop's order. If the first cannot be used, the next one is.

        Raises:
            JobError: a picture of the lake differs from the one that was imported.
        """
        # Pictures are decoded into the array's own buffer. Collecting the bytes from objects costs half as much as
        # decoding.
        pixels = np.empty((len(uris), self._spec.height, self._spec.width, 3), dtype=np.uint8)
        offsets = np.zeros(len(uris) + 1, dtype=np.int32)
        outcomes: list[tuple[ImageStatus, str | None]] = []
        used: list[str | None] = []
        decoded = 0
        for row, data in enumerate(pictures.fetch_all(uris, self._roots)):
            self._check_imported(uris[row], versions[row], data)
            if data is None:
                outcomes.append(("absent", None))
                used.append(None)
            else:
                try:
                    used.append(self._decode_first(uris[row], data, several[row] or (), pixels[decoded]))
                    decoded += 1
                    outcomes.append(("ok", None))
                except pictures.PictureError as error:
                    used.append(None)
                    outcomes.append((error.status, error.detail or None))
            offsets[row + 1] = decoded * self._picture_bytes
        present = pa.array([status == "ok" for status, _ in outcomes])
        buffers = [present.buffers()[1], pa.py_buffer(offsets), pa.py_buffer(pixels[:decoded])]
        return pa.Array.from_buffers(pa.binary(), len(uris), buffers), outcomes, used

    def _decode_first(
        self, uri: str | None, data: bytes | pictures.PictureError, several: Sequence[str], out: Pixels
    ) -> str | None:
        """Decode the first usable picture of a product into `out`, and return its URI.

        Raises:
            PictureError: no picture can be used; the error is that of the first one.
            JobError: a picture of the lake differs from the one that was imported.
        """
        try:
            if isinstance(data, pictures.PictureError):
                raise data
            pictures.decode(data, self._spec, out=out)
            return uri
        except pictures.PictureError as error:
            first_error = error
        others = [other for other in dict.fromkeys(several) if other != uri and not other.startswith(f"{MISSING}/")]
        for other in others[:_TRIED]:
            for fetched in pictures.fetch_all([other], self._roots):
                match = IMPORTED.fullmatch(other)
                self._check_imported(other, match[1] if match else None, fetched)
                try:
                    if isinstance(fetched, bytes):
                        pictures.decode(fetched, self._spec, out=out)
                        return other
                except pictures.PictureError:
                    continue
        raise first_error

    def _check_imported(self, uri: str | None, version: str | None, data: bytes | pictures.PictureError | None) -> None:
        """Raise JobError if an imported picture, whose file is named by its content, is gone or has other content.

        Without this check, a truncated picture could be decoded in part, and an empty file would look as if the shop
        had delivered it so. The product would then be tagged by the remains of its picture.
        """
        match = None if uri is None else IMPORTED.fullmatch(uri)
        if match is None or match[1] != version:
            return
        if isinstance(data, pictures.PictureError):
            digest = _EMPTY if data.status == "empty" else ""
        else:
            digest = hashlib.sha1(data or b"", usedforsecurity=False).hexdigest()
        if digest != version:
            gone = isinstance(data, pictures.PictureError) and data.status == "missing"
            problem = "the picture that was imported is gone" if gone else "it is not the picture that was imported"
            raise JobError(
                f"{self._names[0]}/{uri}: {problem}: it was removed or changed, or its disk fails; import the export of the day "
                "again, which writes the picture again, then run the step again"
            )
