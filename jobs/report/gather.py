"""Facts of a night, read from the lake. DuckDB aggregates the tables in place; none is loaded whole."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

import duckdb
import pyarrow as pa

from cma_clip_core.content.paths import parquet_files
from cma_clip_core.errors import CoreError
from cma_clip_core.model_documents import Threshold
from cma_clip_core.registry import METRICS, read_thresholds
from jobs.errors import JobError
from jobs.lake import history, storage
from jobs.lake.duckdb_sql import quoted, register_storage, scan
from jobs.lake.layout import LABELLED_TABLE, PRODUCTS, Lake
from jobs.lake.storage import AnyPath
from jobs.pages.example_pictures import ExampleLocation, thumbnails
from jobs.report.facts import (
    BINS,
    AttributeFacts,
    Conflict,
    Counted,
    Night,
    Note,
    PictureProblem,
    Reason,
    Rejected,
    Share,
    Shown,
    Value,
)
from jobs.runtime.failure_messages import explain
from jobs.validation.duplicate_ids import SUPERSEDED
from jobs.validation.parse_records import FIRST_OF_SEVERAL
from schemas import tables
from schemas.documents import Plan, RunManifest, picture_size
from schemas.rules import RuleTable
from schemas.taxonomy import Taxonomy

NOT_LISTED: Final = "(not listed)"  # one name for all values outside the taxonomy

_RAW_BYTES = 600  # read of a quarantined line; the page shows fewer characters
_TEXT = 300  # characters read of any other text
_EXAMPLES = 3  # per reason, status or label
_FAILURES = 20  # kinds of failed downloads
_UNKNOWN = 12  # unlisted labels per attribute
_CONFLICTS, _CONFLICTS_PER_ATTRIBUTE = 20, 4
_TAGGED = {"both": 15, "text": 3, "image": 2}  # products shown, by modality
_MEMORY = "1GB"  # for DuckDB, which spills to disk beyond it


def gather_night(lake: Lake, run_id: str, rules: RuleTable) -> Night:
    """Return the facts of a finished run.

    Raises:
        JobError: the run is not finished, or its model is gone.
    """
    plan = lake.read_plan(run_id)
    ledger = lake.read_ledger(run_id)
    if ledger is None:
        raise JobError(
            f"{lake.reports(run_id) / 'ledger.json'} is missing: run {run_id} is not published; "
            f"run `python -m jobs publish --run {run_id}` first"
        )
    try:
        thresholds = read_thresholds(lake.models / ledger.model_version)
    except CoreError as error:
        raise JobError(str(error)) from error
    with _database(lake.root) as db, _table_errors(run_id):
        query = Query(db, lake, plan, lake.read_taxonomy(plan.taxonomy_path, plan.taxonomy_fingerprint))
        manifest = lake.read_manifest(run_id)
        before_run = query.open_tables(manifest)
        query.open_training(ledger.model_version)
        attributes = query.attributes(thresholds, before=before_run is not None)
        unknown, unknown_total = query.unknown_labels()
        conflicts, tagged = query.products_to_show()
        return Night(
            ledger=ledger,
            plan=plan,
            manifest=manifest,
            live_run=lake.read_history_index().live,
            before_run=before_run,
            data_docs=lake.root / plan.validation.data_docs_path,
            reasons=query.reasons(rules),
            unknown_labels=unknown,
            unknown_total=unknown_total,
            mistyped_labels=query.mistyped_labels(),
            notes=query.notes(rules),
            import_remarks=read_import_remarks(lake, plan.ds),
            picture_problems=query.picture_problems(),
            attributes=attributes,
            conflicts=conflicts,
            conflicts_of_training=query.conflicts_of_training(),
            tagged=tagged,
        )


@contextmanager
def _database(root: AnyPath) -> Iterator[duckdb.DuckDBPyConnection]:
    """Yield an empty DuckDB that spills to disk beyond `_MEMORY` and installs no extensions."""
    with tempfile.TemporaryDirectory(prefix="report-") as spill:
        config: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": _MEMORY,
            "temp_directory": spill,
            "preserve_insertion_order": False,
            "autoinstall_known_extensions": False,
        }
        db = duckdb.connect(":memory:", config=config)
        register_storage(db, root)
        try:
            yield db
        finally:
            db.close()


@contextmanager
def _table_errors(run_id: str) -> Iterator[None]:
    """Turn DuckDB's error about an unreadable table into one sentence."""
    try:
        yield
    except (
        duckdb.IOException,
        duckdb.InvalidInputException,
        duckdb.SerializationException,
        pa.ArrowException,
    ) as error:
        raise explain(error) or JobError(
            f"the page of {run_id} cannot be drawn; the published tables are not affected: {_first_line(error)}; run the step that "
            f"wrote the named file again, or {storage.RESTORE}, then `python -m jobs report --run {run_id}`"
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")[:_TEXT]


def read_import_remarks(lake: Lake, ds: str) -> dict[str, int]:
    """Return the import's remarks with their counts; empty if the day's manifest is missing or damaged.

    Pictures that could not be downloaded are counted by host and reason, the most frequent first.
    """
    with suppress(JobError):
        if manifest := lake.read_raw_manifest(ds):
            failures = {
                f"pictures of {host} that were not downloaded: {reason}": pictures
                for host, reasons in manifest.picture_failures.items()
                for reason, pictures in reasons.items()
            }
            frequent = sorted(failures, key=lambda remark: -failures[remark])[:_FAILURES]
            return manifest.notes | {remark[:_TEXT]: failures[remark] for remark in frequent}
    return {}


class Query:
    """Queries on the tables of one run. Every result is small: counts by attribute, value or reason, or a few rows."""

    def __init__(self, db: duckdb.DuckDBPyConnection, lake: Lake, plan: Plan, taxonomy: Taxonomy) -> None:
        self._db, self._lake, self._plan, self._taxonomy = db, lake, plan, taxonomy

    def _rows(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        return self._db.execute(sql, list(parameters)).fetchall()

    def _label(self, attribute: str) -> str:
        return self._taxonomy[attribute].label if attribute in self._taxonomy.names else attribute

    def _sort_key(self, attribute: str) -> tuple[int, str]:
        names = self._taxonomy.names
        return (names.index(attribute) if attribute in names else len(names), attribute)

    # the tables

    def open_tables(self, manifest: RunManifest | None) -> str | None:
        """Create the views ``attributes`` and ``products`` of the run, and ``attributes_before`` of the tables before it.

        If the night changed nothing, the views show the tables it was planned on. For a backfill, they show the tables as
        they were on its day.

        Returns:
            the run or day of the tables before, or None if none exist.

        Raises:
            JobError: the night changed nothing, and the tables it was planned on have expired.
        """
        if self._plan.backfill:
            return self._open_past()
        if manifest is None:
            if self._plan.base_run:
                self._lake.check_not_expired(self._plan.base_run)
                manifest = self._lake.read_manifest(self._plan.base_run)
            parent = None
        else:
            parent = self._lake.read_manifest(manifest.parent) if manifest.parent else None
        for name, schema in (("attributes", tables.ATTRIBUTES), ("products", tables.PRODUCTS)):
            self._view(name, scan(self._db, self._files(manifest, name), schema))
        before = self._files(parent, "attributes")
        if parent is None or not all(storage.exists(file) for file in before):
            return None
        self._view("attributes_before", scan(self._db, before, tables.ATTRIBUTES))
        return parent.run_id

    def open_training(self, model_version: str) -> None:
        """Create the view ``training`` of the products that the model was trained on; empty if its labelled set is gone."""
        labelled = None
        with suppress(OSError, ValueError, AttributeError):
            data = storage.read_bytes(self._lake.models / model_version / METRICS)
            labelled = json.loads(data or b"").get("labelled_set")
        table = self._lake.root / str(labelled) / LABELLED_TABLE
        inside = labelled is not None and not {"..", ""} & set(str(labelled).split("/"))
        exists = inside and storage.exists(table)
        source = scan(self._db, [table] if exists else [], tables.LABELLED)
        self._view("training", f"{source} where side = 'train'")

    def _open_past(self) -> str | None:
        ds, index = self._plan.ds, self._lake.read_history_index()
        for name in ("attributes", "products"):
            files = history.files_until(self._lake, index, name, ds)
            source = scan(self._db, files, history.SCHEMAS[name])
            self._db.execute(f"create table {name} as {history.as_of_query(name, source)}")
        earlier = max((day for day in index.days if day < ds), default=None)
        if earlier is None:
            return None
        files = history.files_until(self._lake, index, "attributes", earlier)
        source = scan(self._db, files, history.SCHEMAS["attributes"])
        self._view("attributes_before", f"({history.as_of_query('attributes', source)})")
        return earlier

    def _view(self, name: str, source: str) -> None:
        self._db.execute(f"create view {name} as select * from {source}")

    def _files(self, manifest: RunManifest | None, name: str) -> list[AnyPath]:
        files = manifest.files if manifest else ()
        return [self._lake.root / f.path for f in files if (f.table == PRODUCTS) == (name == "products") and f.rows]

    # attributes

    def attributes(self, thresholds: Mapping[str, Threshold], *, before: bool) -> tuple[AttributeFacts, ...]:
        """Return the facts of each attribute: first those of the taxonomy in its order, then those of earlier models."""
        names = {name for (name,) in self._rows("select distinct attribute from attributes")}
        facts = {
            name: AttributeFacts(name, self._label(name), thresholds.get(name))
            for name in sorted({*names, *self._taxonomy.names}, key=self._sort_key)
        }
        self._coverage(facts)
        self._confidences(facts)
        for name, mean, low, high in self._rows(
            """select attribute, avg(image_weight), approx_quantile(image_weight, 0.25),
                   approx_quantile(image_weight, 0.75)
               from attributes where text_weight > 0 and image_weight > 0 group by attribute"""
        ):
            facts[name].image_weight, facts[name].image_quartiles = mean, (low, high)
        for name, method in self._rows(
            """select attribute, method from attributes where method is not null group by all
               order by attribute, count(*) desc, method"""
        ):
            facts[name].methods += (method,)
        for name, n, new, suspects in self._rows(
            """select attribute, count(*), count(*) filter (run_id = $1),
                   count(*) filter (run_id = $1 and product_id not in (select product_id from training))
               from attributes where conflict group by attribute""",
            self._plan.run_id,
        ):
            facts[name].conflicts, facts[name].new_conflicts, facts[name].suspects = n, new, suspects
        self._shares(facts, before=before)
        return tuple(facts.values())

    def _coverage(self, facts: Mapping[str, AttributeFacts]) -> None:
        # A single-valued attribute has one row per product. Only the rows of multi-valued ones must be grouped.
        single = [a.name for a in self._taxonomy.attributes if not a.multi_valued]
        for name, products, catalog, unlisted, model in self._rows(
            """select attribute, count(*), count(*) filter (source = 'catalog'),
                   count(*) filter (source = 'catalog_unlisted'), count(*) filter (source = 'model')
               from attributes where list_contains($1, attribute) group by attribute
               union all
               select attribute, count(*), count(*) filter (catalog), count(*) filter (unlisted and not catalog),
                   count(*) filter (model and not catalog and not unlisted)
               from (select attribute, coalesce(bool_or(source = 'catalog'), false) as catalog,
                         coalesce(bool_or(source = 'catalog_unlisted'), false) as unlisted,
                         coalesce(bool_or(source = 'model'), false) as model
                     from attributes where not list_contains($1, attribute) group by attribute, product_id)
               group by attribute""",
            single,
        ):
            facts[name].products, facts[name].from_catalog = products, catalog
            facts[name].from_unlisted, facts[name].from_model = unlisted, model

    def _confidences(self, facts: Mapping[str, AttributeFacts]) -> None:
        histograms = {name: [(0, 0)] * BINS for name in facts}
        for name, position, accepted, others in self._rows(
            f"""select attribute, least(floor(confidence * {BINS}), {BINS - 1})::int,
                    count(*) filter (accepted), count(*) filter (not accepted)
                from attributes where model_value is not null group by all"""
        ):
            histograms[name][position] = (accepted, others)
            facts[name].predicted += accepted + others
            facts[name].accepted += accepted
        for name, histogram in histograms.items():
            facts[name].histogram = tuple(histogram)

    def _shares(self, facts: Mapping[str, AttributeFacts], *, before: bool) -> None:
        # There may be any number of unlisted values, so they count as one.
        counts = f"""select attribute, if(source = 'catalog_unlisted', {quoted(NOT_LISTED)}, value) as value, count(*) as n
            from {{}} where value is not null group by all"""
        empty = "select null::varchar as attribute, null::varchar as value, 0 as n where false"
        shares: dict[str, list[Share]] = {name: [] for name in facts}
        for name, value, n, now, then, known in self._rows(
            f"""with now as ({counts.format("attributes")}),
                    then_ as ({counts.format("attributes_before") if before else empty})
                select coalesce(now.attribute, then_.attribute), coalesce(now.value, then_.value), coalesce(now.n, 0),
                    coalesce(now.n / (select sum(n) from now as x where x.attribute = now.attribute), 0),
                    coalesce(then_.n / (select sum(n) from then_ as x where x.attribute = then_.attribute), 0),
                    coalesce(now.attribute, then_.attribute) in (select attribute from then_)
                from now full join then_ on now.attribute = then_.attribute and now.value = then_.value
                order by 3 desc, 2"""
        ):
            # An attribute that the tables before lack is new: it has not shifted.
            if name in facts:
                shares[name].append(Share(name, value, n, now, then if known else None))
        for name, values in shares.items():
            facts[name].shares = tuple(values)

    # quarantine, labels, pictures

    def reasons(self, rules: RuleTable) -> tuple[Reason, ...]:
        """Return the reasons for quarantine, the most frequent first, each with a few lines as examples."""
        validation = self._plan.validation
        counts = dict(validation.reasons)
        if validation.superseded:
            counts[SUPERSEDED] = validation.superseded
        why = {rule.name: rule.why for rule in rules.row_rules}
        why[SUPERSEDED] = "The day has a newer record with this id, which is used instead."
        files = parquet_files(self._lake.root / validation.quarantine_path)
        examples: dict[str, list[Rejected]] = {}
        for reason, *columns in self._rows(
            f"""select reason, kind, product_id, start, size, source_file
                from (select unnest(reasons) as reason, kind, left(product_id, {_TEXT}) as product_id,
                          array_slice(raw, 1, {_RAW_BYTES}) as start, octet_length(raw) as size, source_file
                      from {scan(self._db, files, tables.QUARANTINE)})
                qualify row_number() over (partition by reason order by start, source_file) <= {_EXAMPLES}
                order by start"""
        ):
            examples.setdefault(reason, []).append(Rejected(*columns))
        return tuple(
            Reason(name, why.get(name, ""), lines, tuple(examples.get(name, ())))
            for name, lines in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        )

    def _examples_sql(self) -> str:
        """Return the SQL of the examples that this run tags, whether it made them or an earlier run did."""
        lake, plan = self._lake, self._plan
        folders = dict.fromkeys(path for shard in plan.shards for path in shard.example_paths)
        files = dict.fromkeys(file for path in folders for file in parquet_files(lake.root / path))
        if not files:
            return scan(self._db, (), tables.EXAMPLES)
        planned = parquet_files(lake.plan(plan.run_id) / "products")
        own = lake.relative(lake.examples(plan.run_id))
        # A folder may also hold products that this run does not tag, and older states of those that it does.
        return f"""(select e.* from {scan(self._db, files, tables.EXAMPLES, "filename = true")} as e
            join {scan(self._db, planned, tables.PLAN)} as p on e.product_id = p.product_id
                and starts_with(e.filename, {quoted(f"{lake.root}/")} || coalesce(p.example_path, {quoted(own)}) || '/'))"""

    def unknown_labels(self) -> tuple[tuple[Counted, ...], int]:
        """Return the most frequent labels outside the taxonomy among the products tagged, and the number of all such labels."""
        rows = self._rows(
            f"""with labels as (
                    select label.key as attribute, left(unnest(label.value), {_TEXT}) as text, product_id
                    from (select unnest(map_entries(unknown_labels)) as label, product_id from {self._examples_sql()})
                )
                select attribute, text, count(*) as n, min(product_id), sum(count(*)) over ()
                from labels group by attribute, text
                qualify row_number() over (partition by attribute order by count(*) desc, text) <= {_UNKNOWN}
                order by n desc, text"""
        )
        return tuple(Counted(self._label(r[0]), *r[1:4]) for r in rows), int(rows[0][4]) if rows else 0

    def mistyped_labels(self) -> tuple[Counted, ...]:
        """Return the fields of the day's valid records whose labels are no text, each with one example."""
        files = parquet_files(self._lake.root / self._plan.validation.valid_path)
        rows = self._rows(
            f"""select left(label.key, {_TEXT}) as field, left(arg_min(label.value, product_id), {_TEXT}),
                    count(*) as n, min(product_id)
                from (select unnest(map_entries(mistyped_labels)) as label, product_id
                      from {scan(self._db, files, tables.VALID)})
                group by field order by n desc, field limit {_UNKNOWN}"""
        )
        return tuple(Counted(*row) for row in rows)

    def notes(self, rules: RuleTable) -> tuple[Note, ...]:
        """Return the fields that valid records lost, or have several values for, the most frequent first."""
        validation = self._plan.validation
        why = {rule.name: rule.why for rule in rules.row_rules} | {
            FIRST_OF_SEVERAL: "The record gives several pictures. The first one is the product's."
        }
        examples: dict[str, list[tuple[str, str]]] = {}
        if validation.notes:
            files = parquet_files(self._lake.root / validation.valid_path)
            for name, product, text in self._rows(
                f"""select split_part(note.value, ':', 1) as name, left(product_id, {_TEXT}), left(note.key || ' ' ||
                        substr(note.value, strpos(note.value, ':')), {_TEXT})
                    from (select unnest(map_entries(notes)) as note, product_id from {scan(self._db, files, tables.VALID)}
                        where cardinality(notes) > 0)
                    qualify row_number() over (partition by name order by product_id) <= {_EXAMPLES}
                    order by name, product_id"""
            ):
                examples.setdefault(name, []).append((product, text))
        return tuple(
            Note(name, why.get(name, ""), products, tuple(examples.get(name, ())))
            for name, products in validation.notes.items()
        )

    def picture_problems(self) -> tuple[PictureProblem, ...]:
        """Return the reasons for which products of this run have no picture, the most frequent first."""
        rows = self._rows(
            f"""select image_status, count(*) over (partition by image_status) as n, product_id,
                    left(coalesce(image_detail, ''), {_TEXT})
                from {self._examples_sql()} where image_status <> 'ok'
                qualify row_number() over (partition by image_status order by image_detail is null, product_id)
                    <= {_EXAMPLES}
                order by n desc, image_status, product_id"""
        )
        problems: dict[str, tuple[int, list[tuple[str, str]]]] = {}
        for status, n, product, detail in rows:
            problems.setdefault(status, (n, []))[1].append((product, detail))
        return tuple(PictureProblem(status, n, tuple(examples)) for status, (n, examples) in problems.items())

    # products

    def products_to_show(self) -> tuple[tuple[Conflict, ...], tuple[Shown, ...]]:
        """Return the most confident conflicts with the catalog, and a sample of the products tagged, with pictures.

        Conflicts of products that the model was trained on are left out, because it saw those labels.
        `jobs.training.suspects` judges them with models that did not.
        """
        rows = self._rows(
            f"""select product_id, attribute, model_value, confidence, run_id = ?,
                    row_number() over (partition by attribute order by confidence desc, product_id) as row_rank
                from attributes where conflict and product_id not in (select product_id from training)
                qualify row_rank <= {2 * _CONFLICTS}
                order by row_rank > {_CONFLICTS_PER_ATTRIBUTE}, confidence desc, product_id""",
            self._plan.run_id,
        )
        # One card per product. An attribute gets more than its share of cards only if other attributes leave room.
        one_each = {row[0]: row for row in reversed(rows)}
        first = sorted(one_each.values(), key=lambda r: (r[5] > _CONFLICTS_PER_ATTRIBUTE, -r[3], r[0]))[:_CONFLICTS]
        chosen = {row[0]: row for row in sorted(first, key=lambda r: (-r[3], r[0]))}
        tagged = self._choose_tagged()
        products = self._products([*chosen, *tagged])
        conflicts = []
        for product_id, attribute, model, confidence, this_run, _ in chosen.values():
            product = products[product_id]
            value = next(
                v
                for v in product.values
                if v.attribute == attribute and v.model == model and v.confidence == confidence
            )
            conflicts.append(Conflict(product, value, this_run))
        return tuple(conflicts), tuple(products[product_id] for product_id in tagged)

    def conflicts_of_training(self) -> int:
        """Return the number of conflicts of products that the model was trained on."""
        ((n,),) = self._rows(
            "select count(*) from attributes where conflict and product_id in (select product_id from training)"
        )
        return int(n)

    def _choose_tagged(self) -> list[str]:
        """Return a fixed sample of the products tagged in this run, or of the tables if none was tagged."""
        shards = self._plan.shards
        files = [self._lake.prediction_file(self._plan.run_id, s.id) for s in shards]
        source = scan(self._db, files, tables.PREDICTIONS) if files else "products"
        chosen: list[str] = []
        for modality, n in _TAGGED.items():
            sql = f"select product_id from {source} where modality = ? order by hash(product_id), product_id limit {n}"
            chosen += [product for (product,) in self._rows(sql, modality)]
        return chosen

    def _products(self, chosen: Sequence[str]) -> dict[str, Shown]:
        """Return the chosen products with their pictures, titles and values."""
        wanted = list(dict.fromkeys(chosen))
        values: dict[str, list[Value]] = {product: [] for product in wanted}
        for product, attribute, catalog, *columns in self._rows(
            """select product_id, attribute, list(catalog_value) filter (catalog_value is not null)
                   over (partition by product_id, attribute) as catalog,
                   value, source, model_value, confidence, accepted
               from attributes where product_id in (select unnest(?))""",
            wanted,
        ):
            value, source, model, confidence, accepted = columns
            values[product].append(
                Value(
                    attribute=attribute,
                    label=self._label(attribute),
                    value=value,
                    source=source,
                    catalog=tuple(sorted(catalog or ())),
                    model=model,
                    confidence=confidence,
                    accepted=accepted,
                )
            )
        rows = self._rows(
            """select product_id, modality, image_status, example_path, example_spec from products
               where product_id in (select unnest(?))""",
            wanted,
        )
        states = {product: (modality, status) for product, modality, status, *_ in rows}
        titles, locations = self._titles_and_locations({product: folder for product, _, _, folder, _ in rows})
        # The plan's picture size may be wrong for a held product: its example may come from an earlier model.
        by_size: dict[tuple[int, int], dict[str, ExampleLocation]] = {}
        for product, *_, spec in rows:
            if product in locations:
                by_size.setdefault(picture_size(spec), {})[product] = locations[product]
        pictures = {name: uri for size, group in by_size.items() for name, uri in thumbnails(group, *size).items()}
        return {
            product: Shown(
                product_id=product,
                title=titles.get(product, ""),
                modality=states[product][0] if product in states else None,
                image_status=states[product][1] if product in states else None,
                picture=pictures.get(product),
                values=tuple(sorted(values[product], key=lambda v: (self._sort_key(v.attribute), v.value or "~"))),
            )
            for product in wanted
        }

    def _titles_and_locations(self, wanted: Mapping[str, str]) -> tuple[dict[str, str], dict[str, ExampleLocation]]:
        """Return the titles of products and the locations of their examples with a picture.

        Args:
            wanted: product id -> folder of its example.
        """
        folders = dict.fromkeys(wanted.values())
        files = [file for path in folders for file in parquet_files(self._lake.root / path)]
        if not files:
            return {}, {}
        rows = self._rows(
            f"""select product_id, left(title, {_TEXT}), image_status, filename, file_row_number
                from {scan(self._db, files, tables.EXAMPLES, "filename = true", "file_row_number = true")}
                where product_id in (select unnest(?))""",
            list(wanted),
        )
        titles: dict[str, str] = {}
        locations: dict[str, ExampleLocation] = {}
        for product, title, status, file, row in rows:
            if file.startswith(f"{self._lake.root / wanted[product]}/"):  # otherwise it is an older state
                titles[product] = title
                if status == "ok":
                    locations[product] = ExampleLocation(storage.as_path(file), row)
        return titles, locations
