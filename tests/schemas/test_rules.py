"""Tests of the rule table and its patterns: `make test TESTS=tests/schemas`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from jobs.validation.parse_records import PARSED
from jobs.validation.row_rules import within_roots_pattern
from schemas.loading import ContractError
from schemas.rules import COLUMNS, load_rules

ROOTS = (Path("/lake/catalog/pictures"), Path("/shop (old)/pics"))


@pytest.mark.parametrize(
    ("uri", "allowed"),
    [
        ("ab/1234.jpg", True),
        ("a..b/..c/1.jpg", True),
        ("/lake/catalog/pictures/1.jpg", True),
        ("file:///shop (old)/pics/1.jpg", True),
        ("/shop (old)/pics/deep/1.jpg", True),
        ("..", False),
        ("../1.jpg", False),
        ("a/../../1.jpg", False),
        ("a/..", False),
        ("/lake/catalog/pictures/../../secret", False),
        ("/lake/catalog/pictures", False),
        ("/lake/catalog/pictures-of-others/1.jpg", False),
        ("/etc/passwd", False),
        ("//host/share", False),
        ("file:///etc/passwd", False),
        ("http://169.254.169.254/", False),
        ("HTTPS://host/1.jpg", False),
        ("javascript:x", False),
        ("a\\..\\b", False),
        ("a\x00.jpg", False),
        ("a\n../b", False),
        ("a.jpg\n", False),
        ("a.jpg\r", False),
        ("a.jpg\u2028", True),
        ("a\u2028/../../b", False),
        ("a\x85/..", False),
        ("..\u2028", True),
        ("", False),
    ],
)
def test_within_roots(uri: str, allowed: bool) -> None:
    assert bool(re.search(within_roots_pattern(ROOTS), uri)) is allowed


def test_wrong_rule_is_refused_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(
        "row_rules:\n- {name: a, check: not_null, column: title, why: w, max_failed_share: 2}\n"
        "batch_rules:\n- {name: b, check: row_count, minimum: 1, why: w}\n"
    )
    with pytest.raises(ContractError, match=r"row_rules\[0 'a'\].*max_failed_share"):
        load_rules(path)


def test_same_name_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(
        "row_rules:\n- {name: a, check: not_null, column: title, why: w, max_failed_share: 0.1}\n"
        "batch_rules:\n- {name: a, check: row_count, minimum: 1, why: w}\n"
    )
    with pytest.raises(ContractError, match="names must differ"):
        load_rules(path)


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ("{name: a, check: is_null, column: wrong_types, why: w, max_failed_share: 0.1}", "write a rule with the check `readable`"),
        ("{name: a, check: not_null, column: titel, why: w, max_failed_share: 0.1}", "no column 'titel'; the columns are line_error"),
        ("{name: a, check: max_length, characters: 9, column: product_id, why: w, max_failed_share: 0.1, on_fail: clear}",
         "a record without product_id is not a product"),
        ("{name: a, check: not_null, column: title, why: w, max_failed_share: 0.1, on_fail: clear}", "on_fail"),
        ("{name: a, check: max_length, characters: 9, column: attributes, why: w, max_failed_share: 0.1}",
         "attributes allow only the check `readable`"),
    ],
)  # fmt: skip
def test_rule_that_cannot_mean_anything_is_refused(tmp_path: Path, rule: str, told: str) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(f"row_rules:\n- {rule}\nbatch_rules:\n- {{name: b, check: row_count, minimum: 1, why: w}}\n")
    with pytest.raises(ContractError, match=re.escape(told)):
        load_rules(path)


def test_only_what_no_prediction_reads_may_fail_without_bound() -> None:
    unbounded = {rule.name for rule in load_rules("default").row_rules if rule.max_failed_share == 1}
    assert unbounded == {"unreadable_price", "implausible_price", "nothing_readable"}


def test_rules_name_columns_that_the_parser_makes() -> None:
    assert set(COLUMNS) - set(PARSED.names) == {"several_rows", "attributes"}


def test_unknown_rules_name_lists_the_shipped_ones() -> None:
    with pytest.raises(ContractError, match=r"\['default'\]"):
        load_rules("nonesuch")
