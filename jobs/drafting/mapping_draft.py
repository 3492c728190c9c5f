"""Draft of a mapping: the shipped one of a known shop system, or one that the columns suggest."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from jobs.drafting.analysis.column_profiles import ColumnProfile
from jobs.drafting.analysis.column_roles import Profiles, Roles, choose_roles, hint
from jobs.drafting.analysis.label_columns import LabelColumns, choose_labels, is_tags_name
from jobs.drafting.draft_pictures import find_pictures
from jobs.drafting.export_sample import ExportSample
from jobs.errors import JobError
from schemas.mapping import BUILT_IN, Mapping
from schemas.yaml_words import read_yaml

Document = dict[str, Any]
_NULLS: Final = ("", "-", "NA", "N/A", "null", "NULL", "nan", "NaN", "None")
_FIELDS: Final = ("product_id", "group_by", "title", "brand", "description", "price", "updated_at")


@dataclass(slots=True)
class MappingDraft:
    """A drafted mapping as a YAML document, with comments by key, and what a person should know."""

    document: Document
    comments: dict[str, list[str]]
    roles: Roles
    labels: LabelColumns
    notes: list[str] = field(default_factory=list)


def draft_mapping(sample: ExportSample, profiles: Profiles) -> MappingDraft:
    """Return the drafted mapping of an export. Raises JobError if no column identifies a product."""
    draft = _of_system(sample, profiles) if sample.system else _of_columns(profiles)
    document, start = draft.document, sample.start
    written: Document = {"records": [_records_pattern(sample, draft.notes)]}
    if start.format == "csv" and start.delimiter not in ("", ","):
        written["delimiter"] = "tab" if start.delimiter == "\t" else start.delimiter
    if (
        start.encoding
        and start.encoding not in ("utf-8", "utf-8-sig", "ascii")
        and not start.encoding.startswith("utf-16")
    ):
        written["encoding"] = start.encoding
    for key, value in (("records_at", start.records_at), ("sheet", start.sheet)):
        if value and key in Mapping.model_fields:
            written[key] = value
    packed = f", packed ({start.packed})" if start.packed else ""
    encoding = f", {start.encoding}" if start.encoding else ""
    draft.comments["records"] = [
        f"found by content: {start.format}{encoding}{packed}",
        'a name that changes from day to day can be a pattern, such as "products-*.csv"',
    ]
    draft.document = written | {key: value for key, value in document.items() if key not in written}
    _add_pictures(draft, sample, profiles)
    return draft


def _records_pattern(sample: ExportSample, notes: list[str]) -> str:
    """Return a pattern that matches all files of the records and no other; the first file if no pattern does."""
    names = [str(file) for file in sample.files]
    if len(names) > 1:
        prefix = os.path.commonprefix(names)  # noqa: RUF071
        suffix = os.path.commonprefix([name[::-1] for name in names])[::-1]  # noqa: RUF071
        suffix = suffix[-(min(map(len, names)) - len(prefix)) :] if len(prefix) < min(map(len, names)) else ""
        for pattern in (f"{glob.escape(prefix)}*{glob.escape(suffix)}", f"*{Path(names[0]).suffix}"):
            if {path.relative_to(sample.folder) for path in sample.folder.glob(pattern)} == set(sample.files):
                return pattern
        notes.append(
            f"no pattern matches exactly the files {', '.join(names[:5])}: `records` names the first one alone"
        )
    return glob.escape(names[0])


def _of_system(sample: ExportSample, profiles: Profiles) -> MappingDraft:
    """Return the shipped mapping of the shop system in full, with the columns that the file lacks or adds."""
    assert sample.system is not None
    text = (Path(BUILT_IN) / f"{sample.system.mapping}.yaml").read_text(encoding="utf-8")
    document: Document = read_yaml(text, Mapping)
    mapping = Mapping.model_validate(document)
    roles = Roles()
    for name in _FIELDS:
        value = document.get(name, ())
        for column in [value] if isinstance(value, str) else value:
            roles.add(name, column, f"the mapping of {sample.system.title}")
    columns = set(sample.start.columns)
    lacking = [
        c for c in mapping.columns if c not in columns and not _reaches(c, columns) and not mapping.is_optional(c)
    ]
    comments: dict[str, list[str]] = {}
    if lacking:
        document["optional"] = [*document.get("optional", ()), *lacking]
        comments["optional"] = [f"this export lacks {len(lacking)} of the columns"]
    used = {*mapping.columns, *document.get("derive", ())}
    rest = {name: p for name, p in profiles.items() if not _is_used(name, used) and "." not in name}
    labels = choose_labels(rest, frozenset())
    added = [
        name for name in labels.labels
        if name not in labels.separators and name not in labels.paths and name not in sample.system.not_labels
        and _is_worth_adding(rest[name])
    ]  # fmt: skip
    if added:
        document["labels"] = [*document.get("labels", ()), *added]
        comments["labels"] = [f"this export adds {', '.join(map(repr, added))}"[:200]]
    return MappingDraft(document, comments, roles, labels)


def _is_worth_adding(column: ColumnProfile) -> bool:
    return column.fill >= 0.02 and column.distinct >= 2 and column.uniqueness < 0.5


def _reaches(column: str, columns: set[str]) -> bool:
    """Return whether a path or a glob begins at a column of the file."""
    if "*" in column:
        return True
    return any(column.startswith((f"{name}.", f"{name}[")) for name in columns)


def _is_used(name: str, used: set[str]) -> bool:
    if name in used or any(column.startswith((f"{name}.", f"{name}[")) for column in used):
        return True
    globs = [column for column in used if "*" in column]
    return any(_matches(name, pattern) for pattern in globs)


def _matches(name: str, pattern: str) -> bool:
    first, *rest = pattern.split("*")
    return name.startswith(first) and name.endswith(rest[-1]) and len(name) >= len(pattern) - len(rest)


def _of_columns(profiles: Profiles) -> MappingDraft:
    roles = choose_roles(profiles)
    if not roles.first("product_id"):
        shown = ", ".join(repr(name[:40]) for name in list(profiles)[:12])
        raise JobError(
            f"no column identifies a product: none has a different value in each row; the columns are {shown}; export one "
            "with the products' ids"
        )
    labels = choose_labels(profiles, roles.used)
    document: Document = {"product_id": roles.first("product_id")}
    comments = {"product_id": [role.why for role in roles.chosen if role.field == "product_id"]}
    for name in _FIELDS[1:]:
        columns = roles.of(name)
        if columns:
            document[name] = columns if name in ("title", "description") else columns[0]
            comments[name] = [f"{role.column!r}: {role.why}" for role in roles.chosen if role.field == name]
    _add_labels(document, comments, labels)
    document["null_values"] = list(_NULLS)
    present = [name for name, p in profiles.items() if name in (*labels.labels, *labels.objects) and p.fill < 0.5]
    document["optional"] = [
        c for c in [*roles.of("description"), *roles.of("brand"), *roles.of("price"), *present] if c
    ]
    comments["optional"] = ["columns that a day's export may lack"]
    if not document["optional"]:
        del document["optional"], comments["optional"]
    return MappingDraft(document, comments, roles, labels, list(roles.notes))


def _add_labels(document: Document, comments: dict[str, list[str]], labels: LabelColumns) -> None:
    """Add the columns of labels, with derived ones for lists and paths of categories."""
    derive: Document = {}
    columns = []
    for name in labels.labels:
        if name in labels.paths:
            new = _new_name(f"{name}_leaf", labels, derive)
            derive[new] = {"from": name, "steps": [{"leaf": labels.paths[name]}]}
            columns.append(new)
            if hint("article_type", name) is not None:
                labels.why[new] = f"the last level of {name!r}"
        elif name in labels.separators:
            new = _new_name(f"{name}_list", labels, derive)
            derive[new] = {"from": name, "steps": [{"split": labels.separators[name]}]}
            columns.append(new)
        else:
            columns.append(name)
    if derive:
        document["derive"] = derive
        comments["derive"] = [
            f"{name!r}: {labels.why[name]}" for name in (*labels.paths, *labels.separators) if name in labels.why
        ]
    if columns:
        document["labels"] = columns
    if labels.objects:
        document["label_objects"] = labels.objects
        comments["label_objects"] = [f"{name!r}: {labels.why.get(name, '')}" for name in labels.objects]


def _new_name(name: str, labels: LabelColumns, taken: Document) -> str:
    names = {*labels.labels, *labels.objects, *taken, *(left.name for left in labels.left_out)}
    number = 2
    base = re.sub(r"\W+", "_", re.sub(r"\[[^\]]{0,100}\](\.value)?", "", name)).strip("_") or "column"
    new = base
    while new in names:
        new, number = f"{base}_{number}", number + 1
    return new


def _add_pictures(draft: MappingDraft, sample: ExportSample, profiles: Profiles) -> None:
    """Add where pictures are, unless the shop system's mapping says it and is right."""
    shipped = draft.document.get("pictures")
    patterns = [shipped] if isinstance(shipped, str) else shipped or ()
    if any(list(sample.folder.glob(name)) for name in patterns):
        return
    found, notes = find_pictures(sample.folder, sample.rows, profiles)
    draft.notes += notes
    if found is None:
        if shipped:
            draft.document.pop("pictures")
            draft.document.pop("picture_name", None)
            draft.notes.append("no picture was found in the export")
        return
    if sample.system and not found.pictures and draft.document.get("picture_name") and not shipped:
        return
    draft.document.pop("image_uri", None)
    draft.document.pop("pictures", None)
    if found.pictures:
        draft.document["pictures"] = list(found.pictures)
    if not (sample.system and found.pictures and shipped):
        draft.document["picture_name"] = found.picture_name
    draft.comments["picture_name"] = [found.why]
    draft.roles.add("picture", found.picture_name, found.why)


def tag_fields(labels: Sequence[dict[str, list[str]]]) -> list[str]:
    """Return the names of labels that are tags of many kinds: by their name, or because a product has many of them."""
    counts: dict[str, tuple[int, int, set[str]]] = {}
    for given in labels:
        for name, words in given.items():
            products, number, distinct = counts.get(name, (0, 0, set()))
            if len(distinct) < 1000:
                distinct.update(words)
            counts[name] = products + 1, number + len(words), distinct
    return [
        name for name, (products, number, distinct) in counts.items()
        if is_tags_name(name) or (number / products >= 5 and len(distinct) >= 100)
    ]  # fmt: skip
