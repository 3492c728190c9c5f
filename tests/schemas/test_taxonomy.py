"""`make test TESTS=tests/schemas`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from schemas.loading import ContractError, parse_yaml
from schemas.taxonomy import Taxonomy, fold, load_taxonomy


def document() -> dict[str, Any]:
    return {
        "name": "shop",
        "article_type": "kind",
        "groups": {"tops": ["Shirt", "Tee"]},
        "attributes": [
            {"name": "kind", "label": "Kind", "field": "type", "values": [{"name": "Tee", "aliases": ["T-Shirt"]}, "Shirt", "Bag"]},
            {"name": "colour", "label": "Colour", "field": "Colour", "values": ["Red", "Blue"], "ignore": ["NA"]},
            {"name": "sleeves", "label": "Sleeves", "field": "Sleeve Length", "values": ["Long", "Short"], "applies_to": ["tops"]},
            {"name": "extras", "label": "Extras", "field": "Extras", "values": ["Belt", "Logo", "Zip"], "multi_valued": True},
        ],
    }  # fmt: skip


def parse(changed: dict[str, Any]) -> Taxonomy:
    return parse_yaml(yaml.safe_dump(changed), Taxonomy, "shop.yaml")


def test_labels_are_read_in_the_taxonomys_words() -> None:
    known, unknown = parse(document()).normalise(
        {
            "type": ["t-shirt"],
            "Colour": ["NA", " BLUE ", "Red"],
            "Extras": ["zip", "Belt", "belt", "Wings"],
            "Sleeve Length": [""],
            "Brand": ["Nobody asks"],
        }
    )
    assert known == {"kind": ["Tee"], "colour": ["Blue"], "extras": ["Belt", "Zip"]}
    assert unknown == {"extras": ["Wings"]}


def test_attributes_apply_to_groups_and_types() -> None:
    taxonomy = parse(document())
    assert taxonomy.applicable("Tee") == ("kind", "colour", "sleeves", "extras")
    assert taxonomy.applicable("Bag") == ("kind", "colour", "extras")
    assert taxonomy.applicable(None) == taxonomy.applicable("Spaceship") == ("kind", "colour", "extras")


def test_fold_ignores_case_and_spaces() -> None:
    assert fold("  Navy\t BLUE ") == "navy blue"


def test_fingerprint_changes_with_any_word() -> None:
    changed = document()
    changed["attributes"][1]["values"].append("Green")
    assert parse(changed).fingerprint != parse(document()).fingerprint == parse(document()).fingerprint


@pytest.mark.parametrize(
    ("path", "value", "place", "reason"),
    [
        (["attributes", 1, "values"], ["Red"], "attributes[1 'colour'].values", "at least 2"),
        (["attributes", 1, "colour"], "x", "attributes[1 'colour'].colour", "Extra inputs"),
        (["attributes", 1, "values"], ["Red", "red"], "attributes[1 'colour']", "'red' stands for both 'Red' and 'red'"),
        (["attributes", 1, "values"], ["Red", "Red"], "attributes[1 'colour']", "'Red' stands for both"),
        (["attributes", 1, "ignore"], ["blue"], "attributes[1 'colour']", "'blue' is both ignored and a name of 'Blue'"),
        (["attributes", 1, "prompts"], ["a photo"], "attributes[1 'colour'].prompts", "'a photo' has no {value}"),
        (["attributes", 1, "prompts"], ["{value}", "{value} {x}"], "attributes[1 'colour'].prompts", "'{value} {x}' has {x}; only"),
        (["attributes", 1, "prompts"], ["{value.name}"], "attributes[1 'colour'].prompts", "has {value.name}; only"),
        (["attributes", 1, "prompts"], ["{value} {}"], "attributes[1 'colour'].prompts", "has {}; only"),
        (["attributes", 1, "prompts"], ["{value!r:>9}"], "attributes[1 'colour'].prompts", "has {value!r:>9}; only"),
        (["attributes", 1, "prompts"], ["{value} {"], "attributes[1 'colour'].prompts", "'{value} {' cannot be read"),
        (["attributes", 1, "prompts"], ["{{value}}"], "attributes[1 'colour'].prompts", "has no {value}"),
        (["attributes", 1, "target_precision"], 1.0, "attributes[1 'colour'].target_precision", "less than 1"),
        (["attributes", 1, "name"], "kind", "attributes[1]", "'kind' is taken by attributes[0]"),
        (["attributes", 1, "name"], "../colour", "attributes[1 '../colour'].name", "match pattern"),
        (["attributes", 2, "applies_to"], ["Hats"], "attributes[2 'sleeves'].applies_to", "'Hats' is neither a group nor"),
        (["attributes", 0, "applies_to"], ["tops"], "article_type", "must be single-valued and apply to all"),
        (["article_type"], "type", "article_type", "'type' is none of the attributes"),
        (["groups", "tops"], ["Hat"], "groups.tops", "'Hat' is no value of 'kind'"),
        (["attributes"], [], "attributes", "at least 1"),
    ],
)  # fmt: skip
def test_errors_name_file_place_and_reason(path: list[Any], value: Any, place: str, reason: str) -> None:
    changed: Any = document()
    node = changed
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = value
    with pytest.raises(ContractError) as error:
        parse(changed)
    message = str(error.value)
    assert message.startswith("shop.yaml: ")
    assert place in message
    assert reason in message


def test_all_errors_are_listed_at_once() -> None:
    changed = document()
    changed["attributes"][1]["values"] = ["Red"]
    changed["attributes"][2]["target_precision"] = 7
    with pytest.raises(ContractError, match=r"(?s)attributes\[1 'colour'\].*attributes\[2 'sleeves'\]"):
        parse(changed)


@pytest.mark.parametrize("text", ["attributes: [", "just text", "", "[1, 2]"])
def test_what_is_no_taxonomy_is_refused(text: str) -> None:
    with pytest.raises(ContractError, match=r"shop\.yaml"):
        parse_yaml(text, Taxonomy, "shop.yaml")


def test_a_missing_taxonomy_names_the_shipped_ones() -> None:
    with pytest.raises(ContractError, match=r"nowhere.*\['fashion', 'sample'\]"):
        load_taxonomy("nowhere")


def test_an_unknown_attribute_names_the_known_ones() -> None:
    with pytest.raises(KeyError, match=r"no attribute 'size'.*'sleeves'"):
        parse(document())["size"]


def renamed(changed: dict[str, Any]) -> None:
    changed["attributes"][2]["values"] = ["Long", "Elbow"]
    changed["attributes"][3]["multi_valued"] = False
    changed["attributes"][1] = changed["attributes"][1] | {"name": "shade"}


def types_apart(changed: dict[str, Any]) -> None:
    changed["attributes"][0]["values"].append("Sock")
    changed["groups"]["tops"].append("Sock")  # of an article type that is new too: no other difference


@pytest.mark.parametrize(
    ("change", "asked", "read"),
    [
        (
            renamed,
            [
                "attribute 'colour' is gone", "attribute 'shade' is new", "sleeves: without Short",
                "sleeves: with Elbow", "extras: one value to a product now",
            ],
            [],
        ),
        (types_apart, ["kind: with Sock"], []),
        (lambda d: d["attributes"][1].update(values=["Blue", "Red"]), ["colour: its values are in another order"], []),
        (lambda d: d["attributes"].reverse(), ["the attributes are in another order"], []),
        (lambda d: d.update(article_type="colour", groups={}, attributes=[d["attributes"][i] | {"applies_to": "all"} for i in range(4)]),
         ["the article type is 'colour' now, not 'kind'", "sleeves: applies to products of unknown type too now"], []),
        (lambda d: d["groups"].update(tops=["Shirt", "Bag"]),
         ["sleeves: no longer applies to Tee", "sleeves: applies to Bag too now"], []),
        (lambda d: d["attributes"][1].update(applies_to=["tops"]), ["colour: no longer applies to Bag, products of unknown type"], []),
        # Written otherwise, but the same of every product.
        (lambda d: d["attributes"][2].update(applies_to=["Tee", "Shirt"]), [], []),
        (lambda d: d.update(name="other"), [], []),
        (lambda d: d["attributes"][1].update(label="Farbe"), [], []),
        (lambda d: d["attributes"][1].update(field="Color"), [], ["colour: read from 'Color' now, not from 'Colour'"]),
        (
            lambda d: d["attributes"][0]["values"][0].update(aliases=["t-shirt", "Top"]),
            [], ["kind: the label 'top' means Tee now, not nothing"],
        ),
        (
            lambda d: d["attributes"][0].update(values=["Tee", {"name": "Shirt", "aliases": ["T-Shirt"]}, "Bag"]),
            [], ["kind: the label 't-shirt' means Shirt now, not Tee"],
        ),
        (lambda d: d["attributes"][1].update(ignore=["na", "None"]), [], ["colour: ignored by one of them alone: 'none'"]),
        (lambda d: d["attributes"][1].update(target_precision=0.95), ["colour: the target precision is 0.95 now, not 0.9"], []),
        (lambda d: d["attributes"][1].update(prompts=["{value}!"]), [], ["colour: other prompts"]),
    ],
)  # fmt: skip
def test_differences(change: Callable[[dict[str, Any]], object], asked: list[str], read: list[str]) -> None:
    changed = document()
    change(changed)
    assert parse(document()).incomparable(parse(changed)) == asked
    assert parse(document()).differences(parse(changed)) == asked + read


def test_shipped_taxonomies() -> None:
    sample, fashion = load_taxonomy("sample"), load_taxonomy("fashion")
    assert [a.name for a in sample.attributes if a.multi_valued] == ["details"]
    assert "sleeve_length" in sample.applicable("Dress")
    assert "sleeve_length" not in sample.applicable("Bag")
    assert {"article_type", "gender", "base_colour", "season", "usage"} == set(fashion.applicable(None))
    assert {"pattern", "sleeve_length", "neck", "fit", "fabric", "occasion"} <= set(fashion.applicable("Tshirts"))
    assert set(fashion.applicable("Watches")) - set(fashion.applicable(None)) == {"occasion"}
    assert fashion["fabric"].read("pure  cotton") == (True, "Cotton")
    assert fashion["pattern"].read("NA") == (False, None)
