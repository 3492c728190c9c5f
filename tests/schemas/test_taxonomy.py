"""Tests of the taxonomy: `make test TESTS=tests/schemas`."""

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
            "Colour": ["NA", " BLUE ", "Blue"],
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


@pytest.mark.parametrize(
    "written",
    [
        "Women's Knit-Top", "  WOMEN'S\t knit-top ", "Women\u2019s Knit-Top", "Women\u02bcs Knit\u2011Top", "Women&#39;s Knit-Top",
        "Women&rsquo;s Knit&ndash;Top", "Women&amp;rsquo;s Knit-Top", "Women\u2019s Knit\u2013Top.", "Women's\u00a0Knit-Top",
        "Women's\u3000Knit\u2014Top", "\ufeffWomen's Knit-Top\u200b", "Wo\u00admen's Knit-Top", "Women's Knit\u2212Top\x00",
        "\uff37omen's Knit\uff0dTop", "Women`s Knit-Top", "Women\u00b4s Knit-Top\n",
    ],
)  # fmt: skip
def test_spellings_of_one_word_are_folded_alike(written: str) -> None:
    assert fold(written) == "women's knit-top"


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("Caf\u00e9", "CAFE\u0301", True), ("Stra\u00dfe", "STRASSE", True), ("\u0130stanbul", "i\u0307stanbul", True),
        ("38", "38.0", True), ("38", "38,00", True), ("1", "1.000", False), ("38", "38.5", False), ("T-shirt", "T shirt", False),
        ("Tshirt", "T-shirt", False), ("Shirt", "Shirts", False), ("R&D", "R&amp;D", True), ("a...", "a", False),
    ],
)  # fmt: skip
def test_what_is_folded_alike(one: str, other: str, alike: bool) -> None:
    assert (fold(one) == fold(other)) is alike


@pytest.mark.parametrize(
    "word", ["&" * 10**6, "a\u0301" * 10**6, "\u0301" * 10**6, " " * 10**6, "&#" + "9" * 10**6, "." * 10**6]
)
@pytest.mark.timeout(60)  # a quadratic step takes minutes
def test_a_long_label_is_folded_in_linear_time(word: str) -> None:
    fold(word)


def test_fingerprint_changes_with_any_word() -> None:
    changed = document()
    changed["attributes"][1]["values"].append("Green")
    assert parse(changed).fingerprint != parse(document()).fingerprint == parse(document()).fingerprint


@pytest.mark.parametrize(
    ("path", "value", "location", "reason"),
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
        (["article_type"], "type", "article_type", "'type' is not one of the attributes"),
        (["groups", "tops"], ["Hat"], "groups.tops", "'Hat' is not a value of 'kind'"),
        (["attributes"], [], "attributes", "at least 1"),
    ],
)  # fmt: skip
def test_errors_name_file_place_and_reason(path: list[Any], value: Any, location: str, reason: str) -> None:
    changed: Any = document()
    node = changed
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = value
    with pytest.raises(ContractError) as error:
        parse(changed)
    message = str(error.value)
    assert message.startswith("shop.yaml: ")
    assert location in message
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
                "sleeves: with Elbow", "extras: one value per product now",
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
        # Written differently, but equal for every product.
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


def test_of_several_words_of_a_single_valued_attribute_none_is_the_value() -> None:
    taxonomy = parse(document())

    def read(*words: str) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        return taxonomy.normalise({"Colour": list(words)})

    assert read("Red", "Blue") == ({}, {"colour": ["Red|Blue"]})
    assert read("Blue ", "Red", "red") == ({}, {"colour": ["Blue|Red"]})
    assert read("Red", "Mint") == ({}, {"colour": ["Red|Mint"]})
    assert read("Red", "NA", "", "RED", "-") == ({"colour": ["Red"]}, {})
    assert read("Red", "NULL", "#N/A") == ({"colour": ["Red"]}, {})
    assert read("Mint", "mint", "Mint.") == ({}, {"colour": ["Mint"]})
    colour = taxonomy["colour"]
    assert colour.several("Red|Blue") == ("Red", "Blue")
    assert colour.several("Red|red") == colour.several("Red") == taxonomy["extras"].several("Belt|Zip") == ()


@pytest.mark.parametrize(
    "word",
    ["NULL", "null.", "#N/A", "\\N", "nan", "#REF!", "#VALUE!", "(null)", "N.A.", "?", "--", "\u200b", "undefined"],
)
def test_what_programs_write_for_nothing_says_nothing(word: str) -> None:
    assert parse(document()).normalise({"Extras": [word], "type": [word]}) == ({}, {})
    named = document()
    named["attributes"][1]["values"] = ["Red", word, "Blue"] if any(map(str.isalnum, word)) else ["Red", "Blue", "N/A"]
    assert parse(named).normalise({"Colour": [word if any(map(str.isalnum, word)) else "n/a"]})[0] != {}


@pytest.mark.parametrize("word", ["None", "unknown", "not applicable", "TBC", "false", "0"])
def test_a_word_that_a_person_may_mean_is_the_shop_s_value_until_it_is_ignored(word: str) -> None:
    assert parse(document()).normalise({"Colour": [word]}) == ({}, {"colour": [word]})
    changed = document()
    changed["attributes"][1]["ignore"] = [word]
    assert parse(changed).normalise({"Colour": [word]}) == ({}, {})


def test_unlisted_words_of_a_column_of_tags_are_no_values() -> None:
    changed = document()
    for at in (1, 3):
        changed["attributes"][at] |= {"field": "tags", "unlisted": "ignore"}
    taxonomy = parse(changed)
    assert taxonomy.normalise({"tags": ["sale", "Red", "zip", "new"]}) == ({"colour": ["Red"], "extras": ["Zip"]}, {})
    assert taxonomy.normalise({"tags": ["sale", "new"]}) == ({}, {})
    # Two listed values for one colour are still the shop's own words.
    assert taxonomy.normalise({"tags": ["sale", "red", "Blue"]}) == ({}, {"colour": ["red|Blue"]})
    assert parse(document()).differences(taxonomy)[-1] == "extras: unlisted values are ignored now, not kept"


def test_a_field_of_another_case_is_found_where_no_field_has_that_very_name() -> None:
    taxonomy = parse(document())
    assert taxonomy.normalise({"colour": ["Red"], "SLEEVE  LENGTH": ["Long"]})[0] == {
        "colour": ["Red"],
        "sleeves": ["Long"],
    }
    assert taxonomy.normalise({"colour": ["Red"], "Colour": ["Blue"]})[0] == {"colour": ["Blue"]}
    assert taxonomy.normalise({"colour": ["Red"], "COLOUR": ["Blue"]}) == ({}, {"colour": ["Red|Blue"]})


def test_a_value_that_resembles_a_word_is_named() -> None:
    taxonomy = parse(document())
    assert taxonomy["kind"].nearest("T-Shrt") == "Tee"  # by its alias
    assert taxonomy["kind"].nearest("Spaceship") is None


def test_numbers_and_truth_values_are_words() -> None:
    changed = document()
    changed["attributes"][1]["values"] = [38, {"name": 40.5, "aliases": [41]}]
    assert parse(changed)["colour"].value_names == ("38", "40.5")
    assert parse(changed).normalise({"Colour": ["38.0"]})[0] == {"colour": ["38"]}
    changed["attributes"][1]["values"] = [True, False]
    assert parse(changed)["colour"].value_names == ("true", "false")


def test_values_that_fold_alike_are_refused() -> None:
    changed = document()
    changed["attributes"][1]["values"] = ["Off-White", "Off\u2011White", "Blue"]
    with pytest.raises(ContractError, match="stands for both 'Off-White' and"):
        parse(changed)


def test_fingerprints_of_taxonomies_that_ignore_nothing_are_what_they_were() -> None:
    assert load_taxonomy("fashion").fingerprint == "174eea7cfafd"
    assert load_taxonomy("sample").fingerprint == "9376d5817f2a"
    changed = document()
    changed["attributes"][1]["unlisted"] = "keep"
    assert parse(changed).fingerprint == parse(document()).fingerprint
    changed["attributes"][1]["unlisted"] = "ignore"
    assert parse(changed).fingerprint != parse(document()).fingerprint
