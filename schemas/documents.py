"""JSON documents of the lake, which steps pass to each other in addition to tables. Paths are relative to the lake."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import Field, StringConstraints

from schemas.loading import Strict

Day = Annotated[str, StringConstraints(pattern=r"^\d{4}-\d{2}-\d{2}$")]


class RawFile(Strict):
    """One file of a day's raw records."""

    name: str
    bytes: int
    rows: int = Field(description="lines of the file, without blank ones")
    sha256: str


class LostPicture(Strict):
    """A picture that a record names and the import could not get."""

    name: str = Field(description="as the record gives it; only the start of a long name")
    why: str = Field(description="its status in `RawManifest.pictures`, and details")
    nearest: tuple[str, ...] = Field(default=(), description="the most similar names in the export, at most three")

    def in_words(self) -> str:
        """Return the text that a person needs to find the picture."""
        nearest = f" (nearest: {', '.join(map(repr, self.nearest))})" if self.nearest else ""
        return f"{self.name!r}: {self.why}{nearest}"


class RawManifest(Strict):
    """``catalog/raw/ds=D/_manifest.json``, written last: a day without it is incomplete."""

    ds: Day
    source: str = Field(description="the folder it was imported from")
    files: tuple[RawFile, ...]
    rows: int
    notes: dict[str, int] = Field(
        default_factory=dict, description="counts of values that import converted or left out, by kind"
    )
    unreadable: dict[str, int] = Field(default_factory=dict, description="lines that are not records, by reason")
    pictures: dict[str, int] = Field(
        default_factory=dict,
        description="pictures that records name, by status: added | known (already in the lake) | missing | ambiguous "
        "(several names are similar) | url | forbidden (the name leads out of the export) | link (a symbolic link, which is "
        "not followed) | empty | too_large | broken | host_not_allowed | unreachable | kept (its host fails today; the picture "
        "of an earlier day is used); empty if pictures are not imported",
    )
    picture_failures: dict[str, dict[str, int]] = Field(
        default_factory=dict, description="addresses that could not be downloaded, by host and reason"
    )
    missing_pictures: tuple[LostPicture, ...] = Field(
        default=(), description="at most three of the pictures that are neither added nor known"
    )
    created_at: datetime

    @property
    def pictures_named(self) -> int:
        """The number of pictures that records name."""
        return sum(self.pictures.values())

    @property
    def lost_pictures(self) -> int:
        """The number of named pictures that import could not get."""
        return sum(n for status, n in self.pictures.items() if status not in ("added", "known", "kept"))


class StoredFile(Strict):
    """A file as it was written, so that later steps can verify it."""

    path: str
    rows: int
    bytes: int
    sha256: str = Field(description="'': not computed")


class Validation(Strict):
    """``catalog/valid/ds=D/current.json``: the day's valid and quarantined records. Replaced atomically."""

    ds: Day
    version: str = Field(description="fingerprint of the raw files, the rules and the picture roots")
    passed: bool = Field(description="False: a critical rule failed; nothing may be published from this day")
    failures: tuple[str, ...] = Field(description="each failed critical rule, with the observed value")
    raw: int
    unparsable: int
    quarantined: int
    superseded: int
    valid: int
    reasons: dict[str, int] = Field(description="rows by failed rule; a row may fail several")
    line_errors: dict[str, int] = Field(default_factory=dict, description="unparsable lines by reason")
    notes: dict[str, int] = Field(
        default_factory=dict,
        description="valid rows with a cleared field, by the rule that cleared it; a row may lose several",
    )
    unread_labels: dict[str, int] = Field(
        default_factory=dict, description="valid rows with a label of unknown form, by the label's name"
    )
    pictures_named: int | None = Field(
        default=None, description="records that name a picture; None: no rule needed the count"
    )
    pictures_missing: int | None = Field(
        default=None,
        description="records that name a picture which import could not find; None: no rule needed the count",
    )
    valid_path: str
    quarantine_path: str
    data_docs_path: str
    files: tuple[StoredFile, ...] = Field(
        default=(), description="files of both folders; empty if an earlier version wrote the document"
    )
    created_at: datetime


class Shard(Strict):
    """A part of a run's work, which one task tags into one file."""

    id: int
    rows: int
    example_paths: tuple[str, ...] = Field(description="folders with the shard's examples")


class Plan(Strict):
    """``plans/ds=D/run=R/plan.json``: the frozen plan of a run; written last, never changed."""

    run_id: str
    ds: Day
    base_run: str | None = Field(
        description="the run whose tables the catalog was compared with: the live one, or in a backfill the one that wrote "
        "the tables as of that day; None: there were no tables"
    )
    history_base: dict[Day, str | None] = Field(
        default_factory=dict, description="the days of history that the run writes, each with its run at planning time"
    )
    backfill: bool = Field(description="True: a later day is published, so this run changes history only")
    prepare_only: bool = Field(description="True: the run makes examples for training; nothing is tagged or published")
    model_version: str | None
    retag: bool = Field(default=False, description="True: a person requested that every product be tagged again")
    model_given: bool = Field(default=False, description="True: a person requested this model version")
    replaces: str | None = Field(default=None, description="the run of the same day whose stale plan this one replaces")
    attributes: tuple[str, ...] = Field(
        default=(),
        description="if given: unchanged products get new rows for these attributes only; their other rows and their state "
        "stay",
    )
    taxonomy_path: str = Field(
        description="the taxonomy that labels are read with: the model's, or for training that of the settings"
    )
    taxonomy_fingerprint: str
    picture_height: int = Field(description="pixels")
    picture_width: int = Field(description="pixels")
    validation: Validation
    shards: tuple[Shard, ...]
    new: int
    changed: int
    model_changed: int
    unchanged: int
    waiting: int = Field(
        default=0, description="unchanged products left to later nights, although an older model tagged them"
    )
    removed: int
    held: int = Field(description="published products kept unchanged because today's record is, or may be, quarantined")
    held_pictures: int = Field(
        default=0,
        description="valid products whose published rows, made with their picture, are kept because it is missing today",
    )
    removals_allowed: bool = Field(
        default=False, description="True: a person allowed more removals than a night may make by itself"
    )
    to_preprocess: int
    files: tuple[StoredFile, ...] = Field(
        default=(), description="files of products to tag and to remove; empty if an earlier version wrote the plan"
    )
    created_at: datetime

    @property
    def example_spec(self) -> str:
        """The picture size and taxonomy that an example depends on; plans with equal specs can share examples."""
        return f"{self.picture_height}x{self.picture_width}-{self.taxonomy_fingerprint}"

    @property
    def to_tag(self) -> int:
        """Products in the shards."""
        return self.new + self.changed + self.model_changed


def picture_size(example_spec: str) -> tuple[int, int]:
    """Return the height and width, in pixels, of an `example_spec`."""
    height, width = example_spec.partition("-")[0].split("x")
    return int(height), int(width)


class ExamplesManifest(Strict):
    """``examples/ds=D/run=R/_manifest.json``: a complete folder of examples; written last."""

    run_id: str
    ds: Day
    picture_height: int = Field(description="pixels")
    picture_width: int = Field(description="pixels")
    taxonomy_fingerprint: str
    rows: int
    image_statuses: dict[str, int] = Field(description="examples by image_status")
    files: tuple[StoredFile, ...] = Field(default=(), description="empty if an earlier version wrote the manifest")
    created_at: datetime


class LabelledInputs(Strict):
    """Everything that determines a labelled set, whose id is a hash of this document."""

    examples: tuple[str, ...] = Field(
        description="folders of examples, newest first; the first example of a product counts"
    )
    taxonomy_fingerprint: str
    picture_height: int = Field(description="pixels")
    picture_width: int = Field(description="pixels")
    validation_share: float = Field(description="share of product families")
    test_share: float = Field(description="share of product families")
    rules: int = Field(description="version of the rules that link products to families and mark labels as spoken")


class GivenValues(Strict):
    """Counts of the products that an attribute applies to, by the kind of value that the catalog gives."""

    listed: int = Field(description="products with a value that the taxonomy lists")
    unlisted: int = Field(description="products with only unlisted values, which are neither labels nor gaps")
    gaps: int = Field(description="products without any value")


class LabelledManifest(Strict):
    """``labelled/ds=D/set=S/manifest.json``: a complete labelled set; written last."""

    set_id: str
    ds: Day
    inputs: LabelledInputs
    examples: int = Field(description="rows of the example folders: products + superseded + unlabelled + empty")
    products: int = Field(description="rows of products.parquet")
    superseded: int = Field(description="examples of products that have a newer one")
    unlabelled: int = Field(
        description="examples without any value that counts; on the training side, examples without a label"
    )
    empty: int = Field(description="labelled examples with neither text nor picture, which teach nothing")
    sides: dict[str, int] = Field(description="products by side")
    families: int
    largest_family: int = Field(description="products")
    labels: int
    silent: int = Field(description="labels that no text field names")
    not_applicable: dict[str, int] = Field(
        description="products by attribute whose label does not count, because it does not apply to their article type"
    )
    given: dict[str, GivenValues] = Field(
        default_factory=dict, description="by attribute, over all products; empty: an older version did not count them"
    )
    created_at: datetime


class PublishedFile(StoredFile):
    """One Parquet file of a published run."""

    table: str = Field(description="attribute name, or '_products' for the state of the products")


class RowCounts(Strict):
    """Rows of one attribute in the tables, before and after a run: before - replaced - removed + fresh = after."""

    before: int
    replaced: int = Field(description="rows of products that the run tagged")
    removed: int = Field(description="rows of products that are no longer in the catalog")
    fresh: int = Field(description="rows that the run made, counted when the day's changes were written")
    after: int = Field(description="rows according to the files' footers")

    def difference(self) -> str | None:
        """Return the failed equation in words, or None if it holds."""
        expected = self.before - self.replaced - self.removed + self.fresh
        if self.after == expected:
            return None
        return (
            f"{self.after} rows != before {self.before} - replaced {self.replaced} - removed {self.removed} + "
            f"fresh {self.fresh} = {expected}"
        )


class HistoryDay(Strict):
    """One day's changes, as written by one run."""

    run_id: str
    path: str = Field(description="folder of the changes; '' if the day changed nothing")
    rows: int
    files: dict[str, int] = Field(
        default_factory=dict, description="number of files by table; a table that is not listed has one"
    )


class HistoryIndex(Strict):
    """``attribute_history/index.json``: the live run, and the changes of each finished day. Replaced atomically."""

    live: str | None = Field(default=None, description="the live run; None: nothing is published")
    days: dict[Day, HistoryDay] = Field(default_factory=dict)


class RunManifest(Strict):
    """``attribute_tables/runs/R/manifest.json``: the output of a run, written last. A backfill has no `files`."""

    run_id: str
    ds: Day
    parent: str | None = Field(description="the run whose tables this run started from")
    model_version: str
    taxonomy_fingerprint: str
    raw_version: str = Field(description="the validation of the day's raw catalog that this run used")
    files: tuple[PublishedFile, ...]
    rows: int = Field(description="rows of all attributes")
    products: int
    history: dict[Day, HistoryDay] = Field(description="the days of history that this run writes")
    history_files: tuple[PublishedFile, ...]
    history_base: dict[Day, str | None] = Field(description="the previous run of each of those days")
    attribute_rows: dict[str, RowCounts] = Field(
        default_factory=dict,
        description="by attribute; empty for a backfill, or if an earlier version wrote the manifest",
    )
    created_at: datetime


class Expired(Strict):
    """``expired/R.json``: a run that `maintenance` removed from the lake; written before any of its files is deleted.

    The run's id is never reused, since the history may still hold its changes, and products may still use its examples.
    """

    run_id: str
    ds: Day
    manifest: RunManifest | None = Field(
        description="the run's output: its tables are deleted, its changes stay as long as the history references them; None: "
        "it wrote nothing"
    )
    expired_at: datetime


class StepMetrics(Strict):
    """``reports/ds=D/run=R/steps/<step>.json``: the cost of a step."""

    step: str
    seconds: float
    rows: int = Field(description="rows that the step processed")
    peak_rss_bytes: int = Field(
        description="peak resident memory of all the step's processes, including Spark's JVM and workers"
    )
    started_at: datetime
    details: dict[str, float | int | str] = Field(default_factory=dict)


class Ledger(Strict):
    """``reports/ds=D/run=R/ledger.json``: an account of every row; written last, so it marks the run as finished."""

    run_id: str
    ds: Day
    model_version: str
    backfill: bool
    raw: int
    unparsable: int
    quarantined: int
    superseded: int
    valid: int
    unchanged: int
    waiting: int = Field(
        default=0, description="unchanged products left to later nights, although an older model tagged them"
    )
    tagged_both: int
    tagged_text: int
    tagged_image: int
    untaggable: int
    new: int
    changed: int
    model_changed: int
    removed: int
    held: int
    held_pictures: int = Field(default=0, description="valid products kept unchanged because their picture is missing")
    published_products: int
    published_rows: int
    attribute_rows: dict[str, RowCounts] = Field(
        default_factory=dict, description="by attribute; empty if no table was written, or an earlier version wrote it"
    )
    created_at: datetime

    def lines(self) -> list[str]:
        """Return the ledger in words, one equation on each line."""
        return [
            f"{self.raw:,} raw lines = {self.unparsable:,} unparsable + {self.quarantined:,} quarantined + "
            f"{self.superseded:,} superseded + {self.valid:,} valid",
            f"{self.valid:,} valid = {self.unchanged:,} unchanged + {self.tagged_both:,} tagged by both + "
            f"{self.tagged_text:,} by text + {self.tagged_image:,} by picture + {self.untaggable:,} untaggable"
            + (f" + {self.held_pictures:,} held for their pictures" if self.held_pictures else ""),
            f"{self.new:,} new, {self.changed:,} changed, {self.model_changed:,} for a new model, {self.removed:,} removed, "
            f"{self.held:,} held",
            f"{self.published_products:,} products, {self.published_rows:,} rows are published",
        ]

    def differences(self) -> list[str]:
        """Return each failed equation in words. An empty list means that the ledger adds up."""
        lines = self.unparsable + self.quarantined + self.superseded + self.valid
        tagged = self.tagged_both + self.tagged_text + self.tagged_image + self.untaggable
        failed = []
        if self.raw != lines:
            failed.append(f"raw lines {self.raw} != unparsable + quarantined + superseded + valid = {lines}")
        if self.valid != self.unchanged + tagged + self.held_pictures:
            failed.append(
                f"valid {self.valid} != unchanged {self.unchanged} + tagged and untaggable {tagged} + held for their pictures "
                f"{self.held_pictures}"
            )
        if self.new + self.changed + self.model_changed != tagged:
            failed.append(f"planned {self.new + self.changed + self.model_changed} != tagged and untaggable {tagged}")
        if not self.backfill and self.published_products != self.valid + self.held:
            failed.append(f"published products {self.published_products} != valid {self.valid} + held {self.held}")
        for name, counts in self.attribute_rows.items():
            if (difference := counts.difference()) is not None:
                failed.append(f"{name}: {difference}")
        rows = sum(counts.after for counts in self.attribute_rows.values())
        if self.attribute_rows and self.published_rows != rows:
            failed.append(f"published rows {self.published_rows} != {rows}, the sum of the attributes")
        return failed
