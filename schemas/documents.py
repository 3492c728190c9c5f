"""The JSON documents of the lake: what one step tells the next beside its tables. Paths are relative to the lake."""

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
    rows: int = Field(description="lines in the file, blank ones left out")
    sha256: str


class LostPicture(Strict):
    """A picture that a record names and the import could not have."""

    name: str = Field(description="as the record gives it, its start alone where it is long")
    why: str = Field(description="its status in `RawManifest.pictures`, and what was found")
    nearest: tuple[str, ...] = Field(
        default=(), description="the names most like it that the export has, three at most"
    )

    def in_words(self) -> str:
        """Return what a person needs to find it."""
        nearest = f" (nearest: {', '.join(map(repr, self.nearest))})" if self.nearest else ""
        return f"{self.name!r}: {self.why}{nearest}"


class RawManifest(Strict):
    """``catalog/raw/ds=D/_manifest.json``, written last: a day without it is not complete."""

    ds: Day
    source: str = Field(description="the folder it was imported from")
    files: tuple[RawFile, ...]
    rows: int
    notes: dict[str, int] = Field(
        default_factory=dict, description="what import read in another way than written, or left out, counted"
    )
    unreadable: dict[str, int] = Field(default_factory=dict, description="lines that are no records, by the reason")
    pictures: dict[str, int] = Field(
        default_factory=dict,
        description="pictures that records name by what became of them: added | known (in the lake already) | missing | "
        "ambiguous (several names are like it) | url | forbidden (its name leads out of the export) | link (a symbolic link "
        "that is not followed) | empty | too_large | broken; none where pictures are not imported",
    )
    missing_pictures: tuple[LostPicture, ...] = Field(
        default=(), description="three at most of those that are neither added nor known"
    )
    created_at: datetime

    @property
    def pictures_named(self) -> int:
        """How many pictures records name."""
        return sum(self.pictures.values())

    @property
    def lost_pictures(self) -> int:
        """How many pictures that records name could not be had."""
        return sum(n for status, n in self.pictures.items() if status not in ("added", "known"))


class StoredFile(Strict):
    """A file as it was written: whoever builds on it sees whether it still is that."""

    path: str
    rows: int
    bytes: int
    sha256: str = Field(description="'': it was not taken")


class Validation(Strict):
    """``catalog/valid/ds=D/current.json``: names the day's valid and quarantined records. Swapped whole."""

    ds: Day
    version: str = Field(description="fingerprint of the raw files, the rules and the picture roots")
    passed: bool = Field(description="False: a critical rule failed; nothing may be published from this day")
    failures: tuple[str, ...] = Field(description="each failed critical rule, with what was seen")
    raw: int
    unparsable: int
    quarantined: int
    superseded: int
    valid: int
    reasons: dict[str, int] = Field(description="rows by the rule that failed; a row may fail several")
    line_errors: dict[str, int] = Field(default_factory=dict, description="unparsable lines by why they are no record")
    notes: dict[str, int] = Field(
        default_factory=dict,
        description="valid rows that lost a field, by the rule that took it; a row may lose several",
    )
    unread_labels: dict[str, int] = Field(
        default_factory=dict, description="valid rows with a label of a form that is not known, by the label's name"
    )
    pictures_named: int | None = Field(
        default=None, description="records that name a picture; None: the rules did not ask"
    )
    pictures_missing: int | None = Field(
        default=None, description="of these, records whose picture import could not find; None: the rules did not ask"
    )
    valid_path: str
    quarantine_path: str
    data_docs_path: str
    files: tuple[StoredFile, ...] = Field(
        default=(), description="those of both folders; none where an earlier version wrote them"
    )
    created_at: datetime


class Shard(Strict):
    """A part of a run's work, tagged by one task into one file."""

    id: int
    rows: int
    example_paths: tuple[str, ...] = Field(description="folders that hold the shard's examples")


class Plan(Strict):
    """``plans/ds=D/run=R/plan.json``: the frozen plan of a run; written last, never changed."""

    run_id: str
    ds: Day
    base_run: str | None = Field(
        description="the run whose tables the catalog was compared with: the live one; of a backfill, the one that made "
        "the tables what they were on that day; None: there were none"
    )
    history_base: dict[Day, str | None] = Field(
        default_factory=dict, description="the days of history that the run writes, each with its run at planning"
    )
    backfill: bool = Field(description="True: a later day is published, so this run changes history only")
    prepare_only: bool = Field(description="True: makes examples to train on; nothing is tagged or published")
    model_version: str | None
    retag: bool = Field(default=False, description="True: a person asked for every product to be tagged again")
    model_given: bool = Field(default=False, description="True: a person asked for this model version")
    replaces: str | None = Field(
        default=None, description="the run of the same day whose plan went stale, and which this one takes the place of"
    )
    attributes: tuple[str, ...] = Field(
        default=(),
        description="where given: of products that did not change only the rows of these attributes are replaced, and "
        "their other rows and their state stay",
    )
    taxonomy_path: str = Field(
        description="the taxonomy labels are read by: the model's, or for training the settings'"
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
        default=0, description="of the unchanged: left to later nights, though an older model tagged them"
    )
    removed: int
    held: int = Field(
        description="published products kept as they are because today's record is, or may be, quarantined"
    )
    held_pictures: int = Field(
        default=0,
        description="valid products kept as they are published, with their picture, because it is not there today",
    )
    removals_allowed: bool = Field(
        default=False, description="True: a person let it remove more products than a night may by itself"
    )
    to_preprocess: int
    files: tuple[StoredFile, ...] = Field(
        default=(), description="products to tag and products removed; none where an earlier version wrote them"
    )
    created_at: datetime

    @property
    def example_spec(self) -> str:
        """What an example depends on beside its record: two equal specs, one example serves both."""
        return f"{self.picture_height}x{self.picture_width}-{self.taxonomy_fingerprint}"

    @property
    def to_tag(self) -> int:
        """Products in the shards."""
        return self.new + self.changed + self.model_changed


def picture_size(example_spec: str) -> tuple[int, int]:
    """Return the height and the width, in pixels, that an `example_spec` names."""
    height, width = example_spec.partition("-")[0].split("x")
    return int(height), int(width)


class ExamplesManifest(Strict):
    """``examples/ds=D/run=R/_manifest.json``: a folder of examples, complete; written last."""

    run_id: str
    ds: Day
    picture_height: int = Field(description="pixels")
    picture_width: int = Field(description="pixels")
    taxonomy_fingerprint: str
    rows: int
    image_statuses: dict[str, int] = Field(description="examples by image_status")
    files: tuple[StoredFile, ...] = Field(default=(), description="none where an earlier version wrote them")
    created_at: datetime


class LabelledInputs(Strict):
    """All that a labelled set follows from: its id is a hash of this."""

    examples: tuple[str, ...] = Field(description="folders of examples, newest first; the first of a product counts")
    taxonomy_fingerprint: str
    picture_height: int = Field(description="pixels")
    picture_width: int = Field(description="pixels")
    validation_share: float = Field(description="of product families")
    test_share: float = Field(description="of product families")
    rules: int = Field(description="version of the rules that link products to families and mark labels as spoken")


class GivenValues(Strict):
    """What the catalog gives of an attribute, by products that it applies to."""

    listed: int = Field(description="products with a value that the taxonomy lists")
    unlisted: int = Field(description="products with values alone that it does not list: no labels, and no gaps")
    gaps: int = Field(description="products without any value")


class LabelledManifest(Strict):
    """``labelled/ds=D/set=S/manifest.json``: a labelled set, complete; written last."""

    set_id: str
    ds: Day
    inputs: LabelledInputs
    examples: int = Field(description="rows of the example folders: products + superseded + unlabelled + empty")
    products: int = Field(description="rows of products.parquet")
    superseded: int = Field(description="examples of products that have a newer one")
    unlabelled: int = Field(
        description="examples without any value that counts; on the training side, those without a label"
    )
    empty: int = Field(description="labelled examples with neither text nor picture: nothing to learn from")
    sides: dict[str, int] = Field(description="products by side")
    families: int
    largest_family: int = Field(description="products")
    labels: int
    silent: int = Field(description="labels that no text field names")
    not_applicable: dict[str, int] = Field(
        description="products by attribute whose label does not count, since it does not apply to their article type"
    )
    given: dict[str, GivenValues] = Field(
        default_factory=dict, description="by attribute, of all products; empty: not counted, by older versions"
    )
    created_at: datetime


class PublishedFile(StoredFile):
    """One Parquet file of a published run."""

    table: str = Field(description="attribute name, or '_products' for the state of the products")


class RowCounts(Strict):
    """The rows of one attribute in the tables, before a run and after it: before - replaced - removed + fresh = after."""

    before: int
    replaced: int = Field(description="of products that the run tagged")
    removed: int = Field(description="of products that are not in the catalog any more")
    fresh: int = Field(description="that the run made, as they were counted where the day's changes were written")
    after: int = Field(description="by the files' footers")

    def difference(self) -> str | None:
        """Return what does not hold, in words, or None."""
        found = self.before - self.replaced - self.removed + self.fresh
        if self.after == found:
            return None
        return (
            f"{self.after} rows != before {self.before} - replaced {self.replaced} - removed {self.removed} + "
            f"fresh {self.fresh} = {found}"
        )


class HistoryDay(Strict):
    """One day's changes, as one run left them."""

    run_id: str
    path: str = Field(description="folder of the changes; '' where the day changed nothing")
    rows: int
    files: dict[str, int] = Field(
        default_factory=dict, description="how many there are of each table; one, where it is not told"
    )


class HistoryIndex(Strict):
    """``attribute_history/index.json``: the live run and, for each day done, where its changes are. Swapped whole."""

    live: str | None = Field(default=None, description="the live run; None: nothing is published")
    days: dict[Day, HistoryDay] = Field(default_factory=dict)


class RunManifest(Strict):
    """``attribute_tables/runs/R/manifest.json``: what a run wrote, written last. A backfill has no `files`."""

    run_id: str
    ds: Day
    parent: str | None = Field(description="the run whose tables this one was made from")
    model_version: str
    taxonomy_fingerprint: str
    raw_version: str = Field(description="the validation of the day's raw catalog that this run is made from")
    files: tuple[PublishedFile, ...]
    rows: int = Field(description="rows of all attributes")
    products: int
    history: dict[Day, HistoryDay] = Field(description="the days of history this run writes")
    history_files: tuple[PublishedFile, ...]
    history_base: dict[Day, str | None] = Field(description="the run of each of those days before this one")
    attribute_rows: dict[str, RowCounts] = Field(
        default_factory=dict, description="by attribute; none of a backfill, or where an earlier version wrote it"
    )
    created_at: datetime


class Expired(Strict):
    """``expired/R.json``: a run that `maintenance` took out of the lake; written before anything of it is removed.

    Its id is never given again, since the history may still hold its changes, and products may still have its examples.
    """

    run_id: str
    ds: Day
    manifest: RunManifest | None = Field(
        description="what it wrote: the tables are gone, the changes stay as long as the history names them; None: nothing"
    )
    expired_at: datetime


class StepMetrics(Strict):
    """``reports/ds=D/run=R/steps/<step>.json``: what a step cost."""

    step: str
    seconds: float
    rows: int = Field(description="rows the step worked on")
    peak_rss_bytes: int = Field(
        description="largest resident memory of the step's processes together, Spark's JVM and workers too"
    )
    started_at: datetime
    details: dict[str, float | int | str] = Field(default_factory=dict)


class Ledger(Strict):
    """``reports/ds=D/run=R/ledger.json``: every row accounted for; written last, so it marks the run as finished."""

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
        default=0, description="of the unchanged: left to later nights, though an older model tagged them"
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
    held_pictures: int = Field(
        default=0, description="of the valid: kept as they were since their picture is not there"
    )
    published_products: int
    published_rows: int
    attribute_rows: dict[str, RowCounts] = Field(
        default_factory=dict, description="by attribute; none where no table was written, or by an earlier version"
    )
    created_at: datetime

    def lines(self) -> list[str]:
        """Return the ledger in words, an equation a line."""
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
        """Return each equation that does not hold, in words; an empty list means the ledger adds up."""
        seen = self.unparsable + self.quarantined + self.superseded + self.valid
        tagged = self.tagged_both + self.tagged_text + self.tagged_image + self.untaggable
        found = []
        if self.raw != seen:
            found.append(f"raw lines {self.raw} != unparsable + quarantined + superseded + valid = {seen}")
        if self.valid != self.unchanged + tagged + self.held_pictures:
            found.append(
                f"valid {self.valid} != unchanged {self.unchanged} + tagged and untaggable {tagged} + held for their pictures "
                f"{self.held_pictures}"
            )
        if self.new + self.changed + self.model_changed != tagged:
            found.append(f"planned {self.new + self.changed + self.model_changed} != tagged and untaggable {tagged}")
        if not self.backfill and self.published_products != self.valid + self.held:
            found.append(f"published products {self.published_products} != valid {self.valid} + held {self.held}")
        for name, counts in self.attribute_rows.items():
            if (difference := counts.difference()) is not None:
                found.append(f"{name}: {difference}")
        rows = sum(counts.after for counts in self.attribute_rows.values())
        if self.attribute_rows and self.published_rows != rows:
            found.append(f"published rows {self.published_rows} != {rows}, the sum of the attributes")
        return found
