"""Draft the mapping and the taxonomy of an export, and a page that shows what was found and why."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Final

from jobs.drafting.analysis.attribute_drafts import (
    DraftAttribute,
    Drafts,
    choose_article_type,
    draft_attributes,
    limit_to_types,
    name_uniquely,
    snake_case,
)
from jobs.drafting.analysis.column_profiles import ColumnProfile, profile
from jobs.drafting.analysis.column_roles import hint
from jobs.drafting.analysis.label_columns import LeftOut, separator_of_labels
from jobs.drafting.analysis.label_promise import labels_to_learn
from jobs.drafting.analysis.mapped_products import Product, map_products
from jobs.drafting.analysis.mixed_tags import take_apart
from jobs.drafting.draft_files import mapping_text, taxonomy_text
from jobs.drafting.export_sample import ExportSample, sample_export
from jobs.drafting.mapping_draft import MappingDraft, draft_mapping, tag_fields
from jobs.errors import JobError
from jobs.lake import storage
from jobs.pages.display_text import plain
from schemas.characters import fold
from schemas.loading import parse_yaml
from schemas.mapping import Mapping
from schemas.taxonomy import Taxonomy

_HOSTS: Final = 20  # hosts of pictures in the next steps
_FEW: Final = 3_000  # products below which CMA-CLIP accepts little
ROWS: Final = 50_000  # rows of the sample, unless more are asked for
MAPPING, TAXONOMY, PAGE = "mapping.yaml", "taxonomy.yaml", "draft.html"


@dataclass(slots=True)
class Draft:
    """Everything that was drafted from an export."""

    sample: ExportSample
    profiles: dict[str, ColumnProfile]
    columns_beyond: int
    mapping_draft: MappingDraft
    mapping: Mapping
    mapping_yaml: str
    products: list[Product]
    drafts: Drafts
    suggestions: list[DraftAttribute]
    tags_left_out: list[LeftOut]
    taxonomy: Taxonomy | None
    taxonomy_yaml: str
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)


def draft(folder: Path, rows: int = ROWS) -> Draft:
    """Return the draft of the export in `folder`.

    Args:
        folder: the shop's export.
        rows: most rows to look at.

    Raises:
        JobError: the export has no records, or no column identifies a product.
    """
    begun = time.monotonic()
    sample = sample_export(folder, rows)
    profiles, beyond = profile(sample.rows)
    mapping_draft = draft_mapping(sample, profiles)
    mapping_yaml = mapping_text(mapping_draft.document, mapping_draft.comments, _mapping_head(sample))
    mapping = parse_yaml(mapping_yaml, Mapping, MAPPING)
    products = map_products(sample.rows, mapping)
    separator = "" if mapping.list_separator else separator_of_labels(product.labels for product in products)
    if separator:
        mapping_draft.document["list_separator"] = separator
        mapping_draft.comments["list_separator"] = ["the parts of such lists are values that occur alone, too"]
        mapping_yaml = mapping_text(mapping_draft.document, mapping_draft.comments, _mapping_head(sample))
        mapping = parse_yaml(mapping_yaml, Mapping, MAPPING)
        products = map_products(sample.rows, mapping)
    tags = tag_fields([product.labels for product in products])
    drafts = draft_attributes(products, tags)
    choose_article_type(drafts, products)
    suggestions, tags_left_out = _add_tags(drafts, tags, products, profiles, mapping)
    if not drafts.article_type:
        choose_article_type(drafts, products)
    limit_to_types(drafts, products)
    name_uniquely(drafts)
    taxonomy, taxonomy_yaml, notes = None, "", list(mapping_draft.notes)
    if drafts.attributes:
        head = _taxonomy_head(sample, drafts, len(products))
        taxonomy_yaml = taxonomy_text(snake_case(folder.resolve().name), drafts, suggestions, head)
        taxonomy = parse_yaml(taxonomy_yaml, Taxonomy, TAXONOMY)
    else:
        notes.append(
            "no column has labels of two values or more, so no taxonomy was drafted; docs/taxonomy.md shows one"
        )
    if _repeated(products):
        notes.append(f"{_repeated(products):,} products repeat an id: the newest counts, or they are quarantined")
    return Draft(
        sample, profiles, beyond, mapping_draft, mapping, mapping_yaml, products, drafts, suggestions, tags_left_out, taxonomy,
        taxonomy_yaml, time.monotonic() - begun, notes,
    )  # fmt: skip


def _repeated(products: list[Product]) -> int:
    ids = Counter(product.product_id for product in products)
    return sum(n - 1 for n in ids.values())


def _add_tags(
    drafts: Drafts, tags: list[str], products: list[Product], profiles: dict[str, ColumnProfile], mapping: Mapping
) -> tuple[list[DraftAttribute], list[LeftOut]]:
    """Add the attributes within columns of mixed tags; return the suggested ones, and the tags that are left out."""
    kind = drafts.attributes[0] if drafts.article_type else None
    kinds = [a for a in drafts.attributes if hint("article_type", a.field) is not None or a is kind]
    types = [word for a in kinds for v in (*a.values, *a.rare) for word in (v.name, *v.aliases)]
    spelled = {fold(w): v.name for v in kind.values for w in (v.name, *v.aliases)} if kind else {}
    type_of = [
        next((spelled[f] for w in p.labels.get(kind.field, ()) if (f := fold(w)) in spelled), "") if kind else ""
        for p in products
    ]
    brands = profiles[mapping.brand].values if mapping.brand in profiles else ()
    suggestions: list[DraftAttribute] = []
    left_out: list[LeftOut] = []
    for name in tags:
        apart = take_apart(name, products, types, brands, type_of)
        for attribute in apart.attributes:
            same = next((a for a in drafts.attributes if a.name == attribute.name), None)
            drafts.attributes.append(
                attribute if same is None else replace(attribute, label=f"{attribute.label} (tags)")
            )
        suggestions += apart.suggestions
        left_out += apart.left_out
    return suggestions, left_out


def _sampled(sample: ExportSample) -> str:
    return f"{'all' if sample.complete else 'the first'} {len(sample.rows):,} rows"


def _mapping_head(sample: ExportSample) -> list[str]:
    if sample.system:
        made = f"Drafted from the export of {sample.system.title} (recognised by {sample.why_system})."
    else:
        made = "Drafted from the export's columns. Check each line."
    return [made, f"{_sampled(sample)} were looked at. docs/mapping.md explains the keys."]


def _taxonomy_head(sample: ExportSample, drafts: Drafts, products: int) -> list[str]:
    return [
        f"Drafted from {products:,} products ({_sampled(sample)}). Numbers after a value: products that have it.",
        "Delete attributes that you do not want, add values and aliases, then run `python -m jobs draft --check`.",
        f"Left out: {len(drafts.left_out):,} labels; draft.html lists them with the reasons. docs/taxonomy.md explains the keys.",
    ]


def write_draft(made: Draft, page: str, out: Path, force: bool) -> list[Path]:
    """Write the files of a draft to the folder `out`, and return their paths.

    Raises:
        JobError: one of them exists and `force` is not set, or the folder cannot be written to.
    """
    texts = {MAPPING: made.mapping_yaml, PAGE: page} | ({TAXONOMY: made.taxonomy_yaml} if made.taxonomy else {})
    existing = [name for name in (MAPPING, TAXONOMY, PAGE) if (out / name).exists()]
    if existing and not force:
        raise JobError(
            f"{out}: has {', '.join(existing)} already, and may hold your edits; nothing was written: give another --out, or "
            "--force to overwrite"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            storage.write_bytes(out / name, text.encode())
    except OSError as error:
        raise JobError(f"{out}: cannot be written ({error.strerror or error}); give another --out") from error
    return [out / name for name in texts]


def next_steps(made: Draft, folder: Path, paths: list[Path]) -> list[str]:
    """Return lines for the terminal: what was drafted, and the commands that follow."""
    system = made.sample.system.title if made.sample.system else "unknown shop system"
    learn = labels_to_learn()
    learnable = sum(a.products >= learn for a in made.drafts.attributes)
    mapping = next(path for path in paths if path.name == MAPPING)
    out = f" --out {shlex.quote(str(mapping.parent))}" if mapping.parent != Path() else ""
    lines = [
        f"{system}: {_sampled(made.sample)}, {len(made.products):,} products, {len(made.drafts.attributes)} attributes "
        f"({learnable} with {learn} labels or more, enough to learn), {made.seconds:.1f} s",
        f"wrote {', '.join(str(path) for path in paths)}",
        *(f"look: {plain(note, 300)}" for note in made.notes),
    ]
    if made.taxonomy is None:
        return lines
    export, taxonomy = shlex.quote(str(folder)), shlex.quote(str((mapping.parent / TAXONOMY).resolve()))
    few = "--candidates bag-of-words,picture-features " if len(made.products) < _FEW else ""
    return [
        *lines,
        f"1. open {mapping.parent / PAGE}, then edit {mapping} and {mapping.parent / TAXONOMY}",
        f"2. python -m jobs draft {export}{out} --check",
        f"3. export TAGGING_TAXONOMY={taxonomy} TAGGING_MODEL_CONFIG_NAME=fashion{_picture_hosts(made.products)}",
        f"4. python -m jobs import-catalog {export} --ds {date.today().isoformat()} --mapping {shlex.quote(str(mapping))}",
        f"5. python -m jobs prepare --ds {date.today().isoformat()}",
        f"6. python -m jobs {few}train --ds {date.today().isoformat()}{'' if few else ' --pretrain'}",
        f"7. python -m jobs night --ds {date.today().isoformat()}",
    ]


def _picture_hosts(products: Iterable[Product]) -> str:
    """Return the setting that lets the import download the products' pictures; empty if none is on the web."""
    hosts: Counter[str] = Counter()
    for product in products:
        if (parts := product.picture.split("/", 3))[0] == "https:" and len(parts) == 4:
            hosts[parts[2].lower()] += 1
    return (
        f" TAGGING_PICTURE_HOSTS={shlex.quote(','.join(host for host, _ in hosts.most_common(_HOSTS)))}"
        if hosts
        else ""
    )
