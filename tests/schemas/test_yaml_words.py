"""Words of YAML files are read as their author wrote them."""

from __future__ import annotations

import pytest

from schemas.loading import ContractError, parse_yaml
from schemas.mapping import Mapping
from schemas.taxonomy import Taxonomy

TRAPS = "[Yes, No, 38, 40.50, on, 1e3, 2024-01-01, ~, null, 12:30, 1_000, 0x1F, 010]"


def taxonomy(text: str) -> Taxonomy:
    return parse_yaml(f"name: shop\narticle_type: kind\nattributes:\n  - {text}\n", Taxonomy, "shop.yaml")


def test_values_that_yaml_takes_for_truth_numbers_dates_and_nothing_are_words() -> None:
    kind = taxonomy(f"{{name: kind, label: 38, field: on, values: {TRAPS}}}")["kind"]
    assert kind.value_names == tuple(TRAPS.strip("[]").split(", "))
    assert (kind.label, kind.field) == ("38", "on")


def test_names_aliases_and_ignored_words_are_words() -> None:
    kind = taxonomy("{name: kind, label: Kind, field: k, values: [{name: Yes, aliases: [y, 1]}, 0], ignore: [off, ~]}")
    assert [(v.name, v.aliases) for v in kind["kind"].values] == [("Yes", ("y", "1")), ("0", ())]
    assert kind["kind"].ignore == ("off", "~")


def test_numbers_and_truth_values_stay_what_the_contract_wants() -> None:
    text = "name: kind, label: Kind, field: k, values: [a, b]"
    assert taxonomy(f"{{{text}, target_precision: 0.95}}")["kind"].target_precision == 0.95
    several = f"{{{text}}}\n  - {{name: tags, label: Tags, field: t, values: [a, b], multi_valued: yes}}"
    assert taxonomy(several)["tags"].multi_valued is True


def test_a_mapping_can_name_columns_that_look_like_numbers() -> None:
    text = "{records: 2024.csv, product_id: 1, title: 2, labels: [3, Yes], null_values: ['', ~, 0, null]}"
    mapping = parse_yaml(text, Mapping, "mapping.yaml")
    assert (mapping.product_id, mapping.title, mapping.labels) == ("1", ("2",), ("3", "Yes"))
    assert mapping.null_values == ("", "~", "0", "null")


def test_a_key_that_occurs_twice_is_an_error_that_names_it() -> None:
    with pytest.raises(ContractError, match="'label' occurs twice"):
        taxonomy("{name: kind, label: Kind, label: Other, field: k, values: [a, b]}")
