"""A catalog for trying out the pipeline: drawn garments with noisy texts and labels. `next_day` writes the day after.

The generated catalog has:

* text that lacks or contradicts what the picture shows
* attributes that only the text or only the picture reveals, so a model needs both: fabric is never visible, and a pattern
  is seldom named
* missing and wrong labels
* designs in several colours with one description
* one of every kind of dirty record
"""

from __future__ import annotations

import json
import logging
import random
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np

from jobs.demo.dirty_records import Dirty, build
from jobs.demo.garments import COLOURS, Design, draw
from jobs.demo.next_day import next_day
from schemas.taxonomy import load_taxonomy

__all__ = ["generate", "next_day"]

log = logging.getLogger(__name__)

Json: TypeAlias = Any

PATTERNS: Final = {"Solid": 45, "Striped": 18, "Checked": 13, "Dotted": 10, "Printed": 14}  # name to weight
SLEEVES: Final = {
    "T-shirt": {"Short Sleeves": 80, "Long Sleeves": 15, "Sleeveless": 5},
    "Shirt": {"Long Sleeves": 65, "Short Sleeves": 35},
    "Sweater": {"Long Sleeves": 90, "Sleeveless": 10},
    "Dress": {"Sleeveless": 50, "Short Sleeves": 35, "Long Sleeves": 15},
}
NECKS: Final = {
    "T-shirt": {"Round Neck": 65, "V-Neck": 30, "High Neck": 5},
    "Sweater": {"Round Neck": 40, "V-Neck": 30, "High Neck": 30},
    "Dress": {"Round Neck": 50, "V-Neck": 40, "High Neck": 10},
}
FABRICS: Final = {
    "T-shirt": {"Cotton": 75, "Polyester": 20, "Linen": 5},
    "Shirt": {"Cotton": 55, "Linen": 30, "Polyester": 15},
    "Sweater": {"Wool": 60, "Cotton": 30, "Polyester": 10},
    "Dress": {"Cotton": 40, "Polyester": 35, "Linen": 25},
    "Trousers": {"Cotton": 50, "Polyester": 20, "Wool": 20, "Linen": 10},
    "Skirt": {"Cotton": 40, "Polyester": 35, "Wool": 25},
}
DETAILS: Final = {
    "T-shirt": ("Pocket", "Logo"), "Shirt": ("Pocket", "Buttons", "Logo"), "Sweater": ("Buttons", "Logo", "Pocket"),
    "Dress": ("Belt", "Buttons", "Pocket"), "Trousers": ("Belt", "Pocket"), "Skirt": ("Belt", "Buttons"),
    "Bag": ("Logo", "Pocket", "Buttons"), "Shoe": ("Logo",),
}  # fmt: skip
TYPES: Final = {"T-shirt": 24, "Shirt": 18, "Dress": 14, "Trousers": 12, "Shoe": 10, "Sweater": 8, "Bag": 8, "Skirt": 6}

# Frequencies. The picture always shows the true attributes.
IN_TITLE: Final = {"colour": 0.5, "pattern": 0.25, "sleeve_length": 0.1, "neck": 0.15, "fabric": 0.2, "kind": 0.85}
IN_TEXT: Final = {"colour": 0.0, "pattern": 0.2, "sleeve_length": 0.4, "neck": 0.4, "fabric": 0.75, "details": 0.5}
WRONG_COLOUR_WORD: Final = 0.10
LABEL_MISSING: Final = {"kind": 0.10, "fabric": 0.30}
LABEL_MISSING_DEFAULT: Final = 0.40
LABEL_WRONG: Final = 0.02
FAMILY: Final = 0.25  # share of designs sold in 2 to 4 colours
NO_PICTURE, NO_TEXT = 0.02, 0.02
DIRTY_SHARE: Final = 0.02

_MAKERS: Final = ("Alder & Ash", "Northmoor", "Casa Vela", "Brightwater", "Ostrava", "Kitefield", "Lumen", "Teal Fox")
_OPENINGS: Final = (
    "A piece that goes with everything.", "Made for long days.", "Our customers' favourite.", "Back by demand.",
    "Easy to wear, easy to keep.", "Part of the new collection.", "Cut for comfort.", "A classic, made anew.",
)  # fmt: skip
_CLOSINGS: Final = (  # colours of other things, so that a colour word is no proof
    "Wear it with blue jeans.", "Goes well with white trainers and a brown belt.", "Best with a black jacket.",
    "Model's statistics: height 178 cm, wears size M.", "Colours may differ slightly on your screen.", "Fits as expected.",
)  # fmt: skip
_CARE: Final = (
    "Machine wash at 30 degrees.",
    "Wash by hand.",
    "Dry clean only.",
    "Do not tumble dry.",
    None,
    "NA",
    "-",
)


def generate(folder: Path, products: int = 3000, seed: int = 7, *, dirty: bool = True) -> None:
    """Generate a catalog in the layout of the mapping `sample`: ``catalog.jsonl`` and ``pictures.zip``.

    Args:
        folder: folder to write; created if missing. The two files in it are replaced.
        products: number of clean products. About 2 % dirty records come on top, at least one of each kind.
        seed: the same seed gives the same bytes.
        dirty: also write dirty records.
    """
    choose = random.Random(seed)
    noise = np.random.default_rng(seed)
    kinds = [kind for kind in build().values() if kind.kind != "attributes_list"] if dirty else []
    copies = max(1, round(products * DIRTY_SHARE / len(kinds))) if kinds else 0
    small = [kind for kind in kinds if kind.kind != "text_8_mb"]
    plan: list[Dirty | None] = [*[None] * products, *kinds, *small * (copies - 1)]
    choose.shuffle(plan)
    folder.mkdir(parents=True, exist_ok=True)
    designs = _designs(choose)
    planted: dict[str, int] = {}
    with (folder / "catalog.jsonl").open("wb") as lines, zipfile.ZipFile(folder / "pictures.zip", "w") as pictures:
        for number, planned in enumerate(plan):
            if planned is None:
                design, text = next(designs)
                record, has_picture = _product(number, design, text, choose)
                lines.write(json.dumps(record).encode() + b"\n")
                if has_picture:
                    _store(pictures, record["media"]["picture"], draw(design, noise, choose))
            else:
                copy = planted[planned.kind] = planted.get(planned.kind, 0) + 1
                for line in _dirty_lines(planned, copy):
                    lines.write(line + b"\n")
                first = planned.records[0]
                if planned.picture is not None and isinstance(first, dict) and copy == 1:
                    _store(pictures, first["image_uri"], planned.picture)
    log.info("sample-catalog: %s: %d products, %d dirty records", folder, products, len(plan) - products)


def _store(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(name, (2026, 11, 20, 0, 0, 0)), data)


# --- products


def _weighted(weights: dict[str, int], choose: random.Random) -> str:
    return choose.choices(list(weights), list(weights.values()))[0]


def _designs(choose: random.Random) -> Iterator[tuple[Design, str | None]]:
    """Yield designs and their descriptions without end. Designs of a family differ only in colour."""
    while True:
        kind = _weighted(TYPES, choose)
        possible = DETAILS[kind]
        design = Design(
            kind=kind,
            colour="",
            pattern=None if kind == "Shoe" else _weighted(PATTERNS, choose),
            sleeve_length=_weighted(SLEEVES[kind], choose) if kind in SLEEVES else None,
            neck=_weighted(NECKS[kind], choose) if kind in NECKS else None,
            fabric=_weighted(FABRICS[kind], choose) if kind in FABRICS else None,
            details=tuple(detail for detail in possible if choose.random() < 0.8 / len(possible)),
        )
        text = _description(design, choose)
        members = choose.randint(2, 4) if choose.random() < FAMILY else 1
        for colour in choose.sample(list(COLOURS), members):
            yield replace(design, colour=colour), text


def _description(design: Design, choose: random.Random) -> str | None:
    if choose.random() < 0.08:
        return choose.choice([None, "", "NA", "-"])
    mentioned = {name for name, share in IN_TEXT.items() if choose.random() < share}
    parts = [choose.choice(_OPENINGS)]
    if "fabric" in mentioned and design.fabric:
        parts.append(
            choose.choice(["Made of soft {}.", "Pure {}, woven in Portugal.", "100% {}."]).format(design.fabric.lower())
        )
    shape = [
        value.lower()
        for name, value in (("sleeve_length", design.sleeve_length), ("neck", design.neck), ("pattern", design.pattern))
        if value and name in mentioned
    ]
    if shape:
        parts.append(f"{', '.join(shape).capitalize()}.")
    if "details" in mentioned and design.details:
        parts.append(f"With {' and '.join(f'a {d.lower()}' if d != 'Buttons' else 'buttons' for d in design.details)}.")
    parts += choose.sample(_CLOSINGS, choose.randint(0, 2))
    return " ".join(parts)


def _title(design: Design, maker: str, choose: random.Random) -> str:
    mentioned = {name for name, share in IN_TITLE.items() if choose.random() < share}
    colour = design.colour
    if choose.random() < WRONG_COLOUR_WORD:
        colour = choose.choice([name for name in COLOURS if name != colour])
    words = {"colour": colour, **{k: v for k, v in design.values().items() if k != "colour"}, "kind": design.kind}
    named = [value for name, value in words.items() if value and name in mentioned]
    return " ".join(
        [maker, *named, *([] if "kind" in mentioned else [choose.choice(["Classic", "Model 7", "No. 12"])])]
    )


def _product(number: int, design: Design, text: str | None, choose: random.Random) -> tuple[dict[str, Json], bool]:
    sku = f"S{100_000 + number}"
    maker = choose.choice(_MAKERS)
    title: str | None = _title(design, maker, choose)
    fate = choose.random()
    has_picture = fate >= NO_PICTURE
    if NO_PICTURE <= fate < NO_PICTURE + NO_TEXT:
        title, text = None, None
    labels = {name: _label(name, value, choose) for name, value in design.values().items()}
    facts: dict[str, Json] = {_FIELDS[name]: label for name, label in labels.items() if label is not None}
    if design.details and choose.random() >= LABEL_MISSING_DEFAULT:
        # Shops write several values either as a list or as one text.
        facts["details"] = list(design.details) if choose.random() < 0.5 else "|".join(design.details)
    changed = datetime(2026, 11, 1) + timedelta(minutes=choose.randrange(18 * 24 * 60))
    return {
        "sku": sku,
        "name": title,
        "maker": {"name": maker},
        "details": {
            "text": text,
            "care": choose.choice(_CARE) if text else None,
            "price": choose.randint(9, 199) + 0.5,
        },
        "media": {"picture": f"{sku}.jpg" if has_picture else None},
        "changed": f"{changed.isoformat()}Z",
        "kind": _label("kind", design.kind, choose),
        "facts": facts,
    }, has_picture


_TAXONOMY: Final = load_taxonomy("sample")
_FIELDS: Final = {attribute.name: attribute.field for attribute in _TAXONOMY.attributes}


def _label(name: str, truth: str | None, choose: random.Random) -> str | None:
    """Return the catalog's label for `truth`: often missing, seldom wrong, sometimes an alias."""
    if truth is None or choose.random() < LABEL_MISSING.get(name, LABEL_MISSING_DEFAULT):
        return None
    attribute = _TAXONOMY["article_type" if name == "kind" else name]
    if choose.random() < LABEL_WRONG:
        return choose.choice([value for value in attribute.value_names if value != truth])
    aliases = attribute.values[attribute.index[truth]].aliases
    return choose.choice(aliases) if aliases and choose.random() < 0.1 else truth


def _dirty_lines(dirty: Dirty, copy: int) -> Iterator[bytes]:
    """Yield the lines of `dirty` in the shop's layout. The second and later copies get ids of their own."""
    for record in dirty.records:
        if isinstance(record, bytes):
            yield record
            continue
        attributes = dict(record["attributes"])
        shop = {
            "name": record["title"],
            "maker": {"name": record["brand"]},
            "details": {"text": record["description"], "price": record["price"]},
            "media": {"picture": record["image_uri"]},
            "changed": record["updated_at"],
            "kind": attributes.pop("kind"),
            "facts": attributes,
        }
        sku = record.get("product_id")
        if "product_id" in record:
            shop["sku"] = f"{sku}-{copy}" if copy > 1 and sku and sku.strip() else sku
        yield json.dumps(shop).encode()
