"""Groups of shards: one for each task that tags. `make test TESTS=tests/jobs/nightly/test_shards.py`."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.errors import JobError
from jobs.nightly.shards import choose, groups
from schemas.documents import Shard


def shards(*rows: int) -> list[Shard]:
    return [Shard(id=at, rows=n, example_paths=()) for at, n in enumerate(rows)]


def plan(made: list[Shard]) -> Any:
    return SimpleNamespace(run_id="2026-11-20-0123abcd", shards=tuple(made))


@pytest.mark.parametrize("most", [1, 2, 7, 1024])
@pytest.mark.parametrize("count", [0, 1, 2, 1023, 1024, 1025, 3000])
def test_there_are_never_more_groups_than_airflow_maps_over(count: int, most: int) -> None:
    draw = random.Random(count)
    made = shards(*(draw.randint(1, 20_000) for _ in range(count)))
    result = groups(made, most)
    assert len(result) <= most
    assert [shard for group in result for shard in choose(plan(made), group)] == made


def test_each_shard_is_a_task_where_airflow_allows_it() -> None:
    assert groups(shards(5, 1, 5), 3) == groups(shards(5, 1, 5)) == ["0", "1", "2"]
    assert groups([]) == []


def test_groups_are_even_in_rows_not_in_shards() -> None:
    assert groups(shards(20, 20, 1, 1, 1, 1, 8, 8), 3) == ["0", "1", "2-7"]
    made = shards(*[250] * 3000)
    rows = [sum(shard.rows for shard in choose(plan(made), group)) for group in groups(made, 1024)]
    assert max(rows) - min(rows) <= 250


def test_small_shards_share_a_task_that_is_worth_its_start() -> None:
    made = shards(*[100] * 12)
    assert groups(made, 1024, rows=300) == ["0-2", "3-5", "6-8", "9-11"]
    assert groups(made, 2, rows=300) == ["0-5", "6-11"]
    assert groups(made, 1024, rows=1_000_000) == ["0-11"]


def test_shards_that_a_plan_left_out_are_in_no_group() -> None:
    """A shard without rows is not in the plan. A range across it selects its neighbours."""
    made = [shard for shard in shards(1, 1, 0, 1) if shard.rows]
    (group,) = groups(made, 1)
    assert group == "0-3"
    assert [shard.id for shard in choose(plan(made), group)] == [0, 1, 3]


def test_shards_are_named_by_numbers_and_ranges() -> None:
    made = plan(shards(*[1] * 10))
    assert [shard.id for shard in choose(made, "7")] == [7]
    assert [shard.id for shard in choose(made, "0-2, 7,7,1")] == [0, 1, 2, 7]


@pytest.mark.parametrize("asked", ["", "x", "-1", "2-1", "1-", "0,", "0;1", "1.0", "\u0661", "9" * 5000, "[0]"])
def test_a_selection_without_shards_is_refused(asked: str) -> None:
    with pytest.raises(JobError, match="names no shards; write 7, 0-2, or 0-2,7") as caught:
        choose(plan(shards(1, 1)), asked)
    assert len(str(caught.value)) < 150
