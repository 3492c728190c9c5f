"""`make test TESTS=tests/jobs/importing/test_mapping_derived.py`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import JobError
from jobs.importing.columns import ABSENT, get_column
from jobs.importing.steps import STEPS, Unread, apply_steps
from schemas.derivations import ARGUMENTS, StepCall
from schemas.loading import ContractError
from schemas.mapping import load_mapping
from tests.jobs.importing.test_import_catalog import Shop

BASE = """
records: items.jsonl
product_id: id
title: name
"""


def shop_of(folder: Path, mapping: str, *rows: dict[str, Any]) -> Shop:
    shop = Shop(folder, BASE + mapping)
    shop.write(*rows)
    return shop


def records(folder: Path, mapping: str, *rows: dict[str, Any]) -> list[dict[str, Any]]:
    shop = shop_of(folder, mapping, *rows)
    shop.run()
    return [json.loads(line) for line in shop.lines()]


def labels(folder: Path, mapping: str, **row: Any) -> Any:
    (record,) = records(folder, mapping, {"id": "1", "name": "Tent"} | row)
    return record["attributes"]


def stepped(value: Any, *steps: Any) -> tuple[Any, list[Unread]]:
    unread: list[Unread] = []
    return apply_steps(value, tuple(StepCall.model_validate(step) for step in steps), unread.append), unread


# --- steps


@pytest.mark.parametrize(
    ("value", "steps", "result"),
    [
        ("tents, Stoves,,tents", [{"split": ","}], ["tents", "Stoves"]),
        (r"Large\, wide,Small", [{"split": ","}], ["Large, wide", "Small"]),
        ("Camping > Tents >  Family", [{"leaf": ">"}], "Family"),
        ("A > B, A > C", [{"split": ","}, {"leaf": ">"}], ["B", "C"]),
        ("en/nylon/olive", [{"part": ["/", 2]}], "nylon"),
        ("en/nylon/olive", [{"part": ["/", -1]}], "olive"),
        (["a", "b"], ["first"], "a"),
        (["a", "b"], ["last"], "b"),
        ([], ["first"], None),
        ("hue=Olive,poles=2", [{"key_value": ","}], {"hue": "Olive", "poles": "2"}),
        (
            "hue=Olive,note=dry, light,poles=2",
            [{"key_value": ","}],
            {"hue": "Olive", "note": "dry, light", "poles": "2"},
        ),
        ('note="a, b=""c""",poles=2', [{"key_value": ","}], {"note": 'a, b="c"', "poles": "2"}),
        ('width=29"|30"', [{"key_value": "|"}], {"width": '29"|30"'}),
        ("hue: Olive; poles: 2", [{"key_value": [";", ":"]}], {"hue": "Olive", "poles": "2"}),
        ("hue=Olive,hue=Sand", [{"key_value": ","}], {"hue": ["Olive", "Sand"]}),
        ("fabric=Nylon|PU", [{"key_value": ","}, {"split": "|"}], {"fabric": ["Nylon", "PU"]}),
        ([{"hue": "Olive"}, {"hue": "Sand"}, {"size": 3}], [{"pick": "hue"}], ["Olive", "Sand"]),
        ({"hue": "Olive", "sku": "7"}, [{"only": ["hue"]}], {"hue": "Olive"}),
        (["new", "Olive"], [{"only": ["Olive"]}], ["Olive"]),
        ({"hue": "Olive", "sku": "7", "n": "x"}, [{"drop": ["sku", "x"]}], {"hue": "Olive"}),
        (["BLK", "Olive"], [{"replace": {"BLK": "Black"}}], ["Black", "Olive"]),
        ("attr-Olive (new)", [{"remove": ["attr-", "(new)"]}], "Olive"),
        ("1.234,50 EUR", ["number"], 1234.5),
        ("28.00 USD", ["number"], 28.0),
        ("24.12.2026", [{"date": "%d.%m.%Y"}], "2026-12-24T00:00:00"),
        ("<b>Dry</b>&reg; shell", ["text"], "Dry® shell"),
        ({"a": "x > y"}, [{"leaf": ">"}], {"a": "y"}),
        (None, [{"split": ","}], None),
    ],
)
def test_a_step_makes_what_it_says(value: Any, steps: list[Any], result: Any) -> None:
    assert stepped(value, *steps) == (result, [])


@pytest.mark.parametrize(
    ("value", "step"),
    [("no mark", {"key_value": ","}), ("stray,hue=Olive", {"key_value": ","}), ("=Olive", {"key_value": ","}),
     (7, {"key_value": ","}), ("one", {"part": ["/", 2]}), ("cheap", "number"), ("1,299", "number"), ("12/24/2026", {"date": "%d.%m.%Y"}),
     ("text", {"pick": "hue"})],
)  # fmt: skip
def test_a_value_that_a_step_cannot_read_stays_and_is_reported(value: Any, step: Any) -> None:
    result, unread = stepped(value, step, {"only": ["hue"]})
    assert result == value
    assert [each.value for each in unread] == [value]


def test_one_wrong_item_costs_that_item_alone() -> None:
    result, unread = stepped(["hue=Olive", "broken", "hue=Sand"], {"key_value": ","}, {"only": ["hue"]})
    assert result == [{"hue": "Olive"}, "broken", {"hue": "Sand"}]
    assert len(unread) == 1


@pytest.mark.parametrize(
    ("name", "argument", "value"),
    [("split", ",", ["Large, wide", "Small"]), ("split", " | ", ["a", "b"]), ("replace", {"BLK": "Black"}, "BLK"),
     ("key_value", [",", "="], {"hue": ["Olive", "Sand"], "note": 'dry, "light"'}), ("date", "%d.%m.%Y", "24.12.2026")],
)  # fmt: skip
def test_a_step_with_a_way_back_gives_the_shops_value_again(name: str, argument: Any, value: Any) -> None:
    step = STEPS[name]
    assert step.inverse is not None
    if isinstance(value, str):
        assert step.inverse(step.apply(value, argument), argument) == value
    else:
        assert step.apply(step.inverse(value, argument), argument) == value


def test_the_mapping_and_the_import_know_the_same_steps() -> None:
    assert STEPS.keys() == ARGUMENTS.keys()


def test_steps_need_linear_time_on_hostile_texts() -> None:
    for text in ('a="' * 60_000, "," * 200_000, 'a="x,' * 40_000, 'a="' + '""' * 100_000):
        stepped(text, {"key_value": ","}, {"split": "|"})


def test_lists_nested_without_end_are_kept_and_reported() -> None:
    value: Any = "deep"
    for _ in range(500):
        value = [value]
    result, unread = stepped(value, {"split": ","})
    assert len(unread) == 1
    assert '"deep"' in json.dumps(result)


# --- derived columns


def test_a_derived_column_is_used_wherever_a_column_is(tmp_path: Path) -> None:
    mapping = """
derive:
  key: {from: [sku, "no:{nr}"]}
  shown: {from: heading, steps: [{remove: [" (new)"]}]}
  type: {from: path, steps: [{leaf: "/"}]}
  upper: {from: type, steps: [{replace: {tents: Tents}}]}
labels: [type, upper]
optional: [key, heading, name]
"""
    text = (BASE + mapping).replace("product_id: id", "product_id: key").replace("title: name", "title: [shown, name]")
    shop = Shop(tmp_path, text)
    shop.write(
        {"sku": "A1", "heading": "Dome (new)", "path": "home/tents"}, {"nr": 7, "name": "Stove", "path": "stoves"}
    )
    shop.run()
    first, second = (json.loads(line) for line in shop.lines())
    assert (first["product_id"], first["title"], first["attributes"]) == (
        "A1",
        "Dome",
        {"type": "tents", "upper": "Tents"},
    )
    assert (second["product_id"], second["title"], second["attributes"]) == (
        "no:7",
        "Stove",
        {"type": "stoves", "upper": "stoves"},
    )


def test_pairs_of_columns_become_labels_and_globs_pair_by_the_same_text(tmp_path: Path) -> None:
    mapping = "derive: {facts: {pairs: [[N1, V1], ['Spec * title', 'Spec * text']]}}\nlabel_objects: [facts]\n"
    row = {
        "N1": "Hue",
        "V1": "Olive",
        "Spec b text": "2",
        "Spec a title": "Fabric",
        "Spec a text": "Nylon",
        "Spec b title": "Poles",
    }
    assert labels(tmp_path, mapping, **row) == {"Hue": "Olive", "Poles": "2", "Fabric": "Nylon"}


def test_a_value_without_a_name_keeps_its_columns_name_and_is_counted(tmp_path: Path) -> None:
    mapping = "derive: {facts: {pairs: [N1, V1]}}\nlabel_objects: [facts]\n"
    shop = shop_of(tmp_path, mapping, {"id": 1, "name": "Tent", "N1": "", "V1": "Olive"})
    manifest = shop.run()
    assert json.loads(shop.lines()[0])["attributes"] == {"V1": "Olive"}
    assert manifest.notes["derived column 'facts': values without a name, kept under their column's name"] == 1


def test_a_cell_that_a_step_cannot_read_is_counted_by_column_and_step(tmp_path: Path) -> None:
    mapping = "derive: {facts: {from: given, steps: [{key_value: ','}]}}\nlabel_objects: [facts]\n"
    rows = [{"id": i, "name": "Tent", "given": "hue=Olive" if i else "no pair"} for i in range(9)]
    shop = shop_of(tmp_path, mapping, *rows)
    manifest = shop.run()
    assert manifest.notes["derived column 'facts': values that step 'key_value' could not read, kept as they are"] == 1
    assert json.loads(shop.lines()[0])["attributes"] == {"facts": "no pair"}


def test_globs_of_label_columns_find_the_files_columns(tmp_path: Path) -> None:
    assert labels(tmp_path, "labels: ['attr_*']\n", attr_hue="Olive", attr_poles=2, other="x") == {
        "attr_hue": "Olive",
        "attr_poles": "2",
    }


def test_all_takes_every_column_and_pictures_keep_the_shops_order(tmp_path: Path) -> None:
    mapping = (
        "derive: {views: {all: [front, more], steps: [{split: ','}]}}\npictures: pics\npicture_name: 'm/{views}'\n"
    )
    shop = shop_of(tmp_path, mapping, {"id": 1, "name": "Tent", "front": "a.jpg", "more": "a.jpg,b.jpg"})
    (shop.export / "pics" / "m").mkdir()
    for name in ("a", "b"):
        (shop.export / "pics" / "m" / f"{name}.jpg").write_bytes(b"\xff\xd8" + name.encode())
    manifest = shop.run()
    record = json.loads(shop.lines()[0])
    names = [hashlib.sha1(b"\xff\xd8" + name).hexdigest() for name in (b"a", b"b")]
    assert record["image_version"] == names[0]
    assert [Path(uri).stem for uri in record["image_uris"]] == names
    assert manifest.pictures == {"added": 2}


# --- paths


ITEM = {
    "name": [
        {"lang": "de_DE", "value": "Zelt"},
        {"lang": "en_GB", "value": "Tent"},
        {"lang": "en-US", "value": "Tent"},
    ],
    "hues": [{"lang": "en", "names": ["Olive", "Sand"]}, {"lang": "end", "names": ["?"]}],
    "kinds": [{"type": "bed", "v": 1}, {"type": "bed_frame", "v": 2}, "text"],
    "Material [EN]": "Nylon",
    "a": {"Fit [cm]": 5},
}


@pytest.mark.parametrize(
    ("path", "value"),
    [("name[lang=en].value", "Tent"), ("name[lang=de_DE].value", "Zelt"), ("name[].value", ["Zelt", "Tent"]), ("name.1.value", "Tent"),
     ("hues[lang=en].names", ["Olive", "Sand"]), ("hues[].names[]", ["Olive", "Sand", "?"]), ("kinds[type=bed].v", 1),
     ("kinds[v=2].type", "bed_frame"),
     ("name[lang=fr].value", ABSENT), ("Material [EN]", "Nylon"), ("a.Fit [cm]", 5), ("nothing[x=y].z", ABSENT), ("name[broken", ABSENT)],
)  # fmt: skip
def test_a_path_selects_items_of_lists(path: str, value: Any) -> None:
    assert get_column(ITEM, path) == value


def test_texts_of_one_language_become_title_and_paragraphs(tmp_path: Path) -> None:
    mapping = (BASE + "description: 'name[].value'\n").replace("title: name", "title: 'name[lang=en].value'")
    shop = Shop(tmp_path, mapping)
    shop.write({"id": "1"} | ITEM)
    shop.run()
    (record,) = map(json.loads, shop.lines())
    assert (record["title"], record["description"]) == ("Tent", "Zelt\n\nTent")


# --- mistakes in the mapping


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ("derive: {a: {from: b, steps: [{splat: ','}]}}", "'splat' is not a step; the steps are split, leaf"),
        ("derive: {a: {from: b, steps: [{first: 2}]}}", "'first' takes no argument"),
        ("derive: {a: {from: b, steps: [split]}}", "'split' needs an argument"),
        ("derive: {a: {from: b, steps: [{part: [',', 0]}]}}", "number of the part"),
        ("derive: {a: {from: b, steps: [{drop: [No]}]}}", "put it in quotes"),
        ("derive: {a: {from: b, pairs: [c, d]}}", "one of `from`, `all` and `pairs`"),
        ("derive: {a: {}}", "one of `from`, `all` and `pairs`"),
        ("derive: {a: {from: b}, b: {from: '{c}'}, c: {from: a}}", "'a' needs 'b', which needs 'c', which needs 'a'"),
        ("derive: {a: {from: a}}", "'a' needs 'a'"),
        ("derive: {a: {pairs: ['N *', V]}}", "must both have one '\\*', or both none"),
        ("group_first: {a: b}", "`group_by` must name"),
        ("picture_name: '{id}.jpg'", "only web addresses need no `pictures`"),
    ],
)
def test_a_mistake_is_found_when_the_mapping_is_loaded(tmp_path: Path, mapping: str, message: str) -> None:
    path = tmp_path / "mapping.yaml"
    path.write_text(BASE + mapping)
    with pytest.raises(ContractError, match=message):
        load_mapping(path)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ("derive: {a: {from: missing}}\nlabels: [a]\n", r"no record has the columns \['missing'\]"),
        (
            "derive: {kind: {from: name}}\nlabels: [kind]\n",
            "column 'kind' exists, and `derive` of the mapping makes another",
        ),
        ("where: {shop: A}\n", r"no record has the columns \['shop'\]"),
        ("labels: ['meta_*']\n", r"no record has the columns \['meta_\*'\]"),
        ("derive: {f: {pairs: ['N *', 'V *']}}\nlabel_objects: [f]\n", r"no record has the columns \['N \*', 'V \*'\]"),
        ("where: {kind: [B, C]}\n", "leave out every row: 'kind' has 'a'; nothing was imported"),
    ],
)
def test_a_mapping_that_does_not_fit_the_file_stops_the_import(tmp_path: Path, mapping: str, message: str) -> None:
    shop = shop_of(tmp_path, mapping, {"id": 1, "name": "Tent", "kind": "A"})
    with pytest.raises(JobError, match=message):
        shop.run()


def test_an_export_may_lack_what_an_optional_derived_column_is_made_of(tmp_path: Path) -> None:
    assert labels(tmp_path, "derive: {a: {from: [x, y]}}\nlabels: [a]\noptional: [a]\n") == {}


def test_an_id_that_no_column_gives_is_an_error_even_if_each_column_is_optional(tmp_path: Path) -> None:
    mapping = (BASE + "derive: {key: {from: [sku, nr]}}\noptional: [key]\n").replace(
        "product_id: id", "product_id: key"
    )
    shop = Shop(tmp_path, mapping)
    shop.write({"name": "Tent"})
    with pytest.raises(JobError, match=r"no record has the columns \['nr', 'sku'\]"):
        shop.run()
