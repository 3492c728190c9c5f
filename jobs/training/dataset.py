"""The labelled set: the products that models are trained and judged on, with their labels, families and sides.

Two passes read the examples, a few megabytes at a time. The first finds the products and their families, and the second
writes the table. The manifest is written last, so an incomplete set does not count and is made again.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from tqdm import tqdm

from cma_clip_core.catalog.examples import read_index
from cma_clip_core.catalog.families import RULES
from cma_clip_core.catalog.labelled_set import Scan, scan_examples
from cma_clip_core.catalog.splits import SIDES
from cma_clip_core.catalog.unlisted_values import Given
from cma_clip_core.config import ModelConfig, load_config
from cma_clip_core.errors import CoreError
from jobs.errors import JobError
from jobs.lake import storage
from jobs.lake.layout import LABELLED_TABLE, Lake
from jobs.lake.parquet import FileWriter
from jobs.lake.storage import AnyPath
from jobs.runtime.step_metrics import measure
from jobs.settings import Settings
from jobs.training.labelled_rows import TableRows, read_batches
from jobs.training.labelled_set_page import render_set
from jobs.training.labelled_summary import Summary
from schemas.documents import ExamplesManifest, GivenValues, LabelledInputs, LabelledManifest
from schemas.tables import LABELLED
from schemas.taxonomy import Taxonomy, load_taxonomy

log = logging.getLogger(__name__)

# Share of the given values that are unlisted, above which a warning is logged. It is half of the errors that a precision of
# 90 % allows.
UNLISTED = 0.05
_WORDS, _SHOWN = 8, 60  # logged unlisted values per attribute, and characters of each; the page has more
# Share of the products in one family, above which a warning is logged: the sides then miss their configured shares.
LARGE_FAMILY = 0.05


@dataclass(frozen=True, slots=True)
class LabelledSet:
    """A complete labelled set in the lake."""

    folder: AnyPath
    manifest: LabelledManifest

    @property
    def table(self) -> AnyPath:
        """The table of the set, with the schema LABELLED."""
        return self.folder / LABELLED_TABLE

    @property
    def page(self) -> AnyPath:
        """The HTML page that shows the contents of the set."""
        return self.folder / "index.html"


def dataset(settings: Settings, ds: str) -> LabelledSet:
    """Make the labelled set from the examples of all days up to `ds`, or return an existing one with the same inputs.

    Args:
        settings: names the model configuration (picture size, shares of the sides) and the taxonomy.
        ds: the newest day whose examples are used.

    Raises:
        JobError: no example fits this configuration and taxonomy, none has a label, or one is broken.
    """
    lake = Lake(settings.root)
    # The lock keeps all examples until the set references them.
    with storage.locked(lake.all_examples, shared=True):
        return _find_or_make(settings, lake, ds)


def _find_or_make(settings: Settings, lake: Lake, ds: str) -> LabelledSet:
    config, taxonomy = load_config(settings.model_config_name), load_taxonomy(settings.taxonomy)
    folders = example_folders(lake, ds, config, taxonomy)
    inputs = LabelledInputs(
        examples=tuple(lake.relative(folder) for folder in folders),
        taxonomy_fingerprint=taxonomy.fingerprint,
        picture_height=config.picture.height,
        picture_width=config.picture.width,
        validation_share=config.selection.validation_share,
        test_share=config.selection.test_share,
        rules=RULES,
    )
    set_id = hashlib.sha256(inputs.model_dump_json().encode()).hexdigest()[:8]
    folder = lake.labelled(ds, set_id)
    existing = storage.find_document(folder / "manifest.json", LabelledManifest, "the set is made again")
    if existing is not None and _is_complete(folder, existing):
        storage.touch(folder)  # `maintenance` keeps the examples of a set that is in use
        log.info("dataset: %s exists", folder)
        _log_given(existing, folder / "index.html")
        return LabelledSet(folder, existing)
    with measure("dataset", folder) as measured:
        try:
            scan = scan_examples(folders, taxonomy, config.picture, config.selection, progress=settings.progress)
            if not scan.labelled:
                raise JobError(
                    f"{', '.join(map(str, folders))}: no example has a label that counts{_outside(scan.given)}; check the "
                    f"`field` and the values of each attribute in the taxonomy {settings.taxonomy!r}, then run `prepare` again"
                )
            manifest = _write(lake, folder, taxonomy, scan, inputs, set_id, ds, settings.progress)
        except CoreError as error:
            raise JobError(str(error)) from error
        storage.write_document(folder / "manifest.json", manifest)
        _log_words(scan.given)
        _log_given(manifest, folder / "index.html")
        if manifest.largest_family > max(LARGE_FAMILY * manifest.products, 100):
            log.warning(
                "dataset: one family holds %d of %d products, all on one side: they share a picture such as a placeholder, or "
                "nearly the same text; see %s",
                manifest.largest_family, manifest.products, folder / "index.html",
            )  # fmt: skip
        measured.rows = manifest.examples
        measured.details |= {"products": manifest.products, "families": manifest.families}
    log.info(
        "dataset: %s: %d products of %d families, %s; %.1f %% of the labels are silent",
        folder, manifest.products, manifest.families, ", ".join(f"{n} {side}" for side, n in manifest.sides.items()),
        100 * manifest.silent / manifest.labels,
    )  # fmt: skip
    return LabelledSet(folder, manifest)


def _outside(given: Mapping[str, Given]) -> str:
    """Return the most common unlisted value of each attribute, as words for an error message."""
    words = [f"{name} = {n.commonest[0].word[:_SHOWN]!r}" for name, n in given.items() if n.commonest]
    return f": the taxonomy does not list the catalog's values, such as {', '.join(words)}" if words else ""


def _log_words(given: Mapping[str, Given]) -> None:
    """Log the most common unlisted values, each with the listed values that it may mean."""
    for name, values in given.items():
        if not values.commonest:
            continue
        words = []
        for word in values.commonest[:_WORDS]:
            means = (
                f"several values: {', '.join(word.several)}" if word.several else f"nearest {word.nearest or 'none'}"
            )
            words.append(f"{word.word[:_SHOWN]!r} ({word.products:,}; {means})")
        rest = values.words - len(words)
        more = f" and {rest:,} more" if rest else ""
        log.info("dataset: %s: not in the taxonomy: %s%s", name, ", ".join(words), more)


def _log_given(manifest: LabelledManifest, page: AnyPath) -> None:
    """Log how many products have a listed value, an unlisted one, or none; warn if the taxonomy does not fit."""
    for name, n in manifest.given.items():
        given = n.listed + n.unlisted
        log.info(
            "dataset: %s: %s products with a listed value, %s with an unlisted one, %s without any",
            name, f"{n.listed:,}", f"{n.unlisted:,}", f"{n.gaps:,}",
        )  # fmt: skip
        if not given:
            log.warning("dataset: %s: no product gives a value; check the attribute's `field` in the taxonomy", name)
        elif n.unlisted > UNLISTED * given:
            log.warning(
                "dataset: %s: %.0f %% of the values are not in the taxonomy. They stay as the shop wrote them. Any answer for "
                "them counts as wrong, so that fewer values can be accepted. List them as values or aliases; a column that "
                "also holds other things can have `unlisted: ignore`. All of them: %s",
                name, 100 * n.unlisted / given, page,
            )  # fmt: skip


def _is_complete(folder: AnyPath, manifest: LabelledManifest) -> bool:
    """Return whether the table of a set is intact and has the rows of its manifest."""
    try:
        rows = len(read_index(folder / LABELLED_TABLE, folder).row)
    except CoreError as error:
        log.warning("dataset: %s", error)
        return False
    return rows == manifest.products


def example_folders(lake: Lake, ds: str, config: ModelConfig, taxonomy: Taxonomy) -> list[AnyPath]:
    """Return the complete example folders that fit the configuration and the taxonomy, newest first.

    Raises:
        JobError: no folder fits; the message names the other examples, and the command that makes the missing ones.
    """
    picture = config.picture
    fitting: list[tuple[str, datetime, AnyPath]] = []
    others: set[str] = set()
    days = [day for day in storage.children(lake.all_examples, "ds=") if day.name <= f"ds={ds}"]
    for path in (run for day in days for run in storage.children(day, "run=")):
        run_id = path.name.removeprefix("run=")
        remedy = f"`python -m jobs preprocess --run {run_id}` makes it again"
        manifest = storage.read_document(path / "_manifest.json", ExamplesManifest, remedy)
        if manifest is None:
            continue
        if (manifest.picture_height, manifest.picture_width, manifest.taxonomy_fingerprint) == (
            picture.height,
            picture.width,
            taxonomy.fingerprint,
        ):
            fitting.append((manifest.ds, manifest.created_at, path))
        else:
            size = f"{manifest.picture_height}x{manifest.picture_width}"
            others.add(f"{size} pixels, taxonomy {manifest.taxonomy_fingerprint}")
    if fitting:
        return [folder for _, _, folder in sorted(fitting, reverse=True)]
    wanted = f"{picture.height}x{picture.width} pixels, taxonomy {taxonomy.name!r} ({taxonomy.fingerprint})"
    existing = f"; there are only others: {'; '.join(sorted(others))}" if others else ""
    raise JobError(
        f"{lake.root}: no examples up to {ds} for {wanted}{existing}. Make them: `python -m jobs prepare --ds {ds}`"
    )


def _write(
    lake: Lake,
    folder: AnyPath,
    taxonomy: Taxonomy,
    scan: Scan,
    inputs: LabelledInputs,
    set_id: str,
    ds: str,
    progress: bool,
) -> LabelledManifest:
    """Write the table and the page, and return the manifest."""
    index = scan.index
    rows, summary = TableRows(lake, taxonomy, index), Summary(taxonomy, index)
    with (
        storage.whole_file(folder / LABELLED_TABLE) as temporary,
        tqdm(total=len(index.row), desc="labelled set", unit="product", disable=not progress) as bar,
    ):
        writer = FileWriter(temporary, LABELLED)
        for batch in read_batches(taxonomy, index):
            writer.write(rows.convert(batch))
            summary.add(batch)
            bar.update(len(batch.texts))
        writer.close()
    manifest = LabelledManifest(
        set_id=set_id,
        ds=ds,
        inputs=inputs,
        examples=len(index.row) + scan.superseded + scan.unlabelled + scan.empty,
        products=len(index.row),
        superseded=scan.superseded,
        unlabelled=scan.unlabelled,
        empty=scan.empty,
        sides={side: index.count(side) for side in SIDES},
        families=index.families,
        largest_family=summary.largest_family,
        labels=summary.labels,
        silent=summary.silent,
        not_applicable={name: n for name, n in zip(taxonomy.names, summary.left_out.tolist(), strict=True) if n},
        given={name: GivenValues(listed=n.listed, unlisted=n.unlisted, gaps=n.gaps) for name, n in scan.given.items()},
        created_at=datetime.now(UTC),
    )
    storage.write_bytes(folder / "index.html", render_set(manifest, summary, scan.given).encode())
    return manifest
