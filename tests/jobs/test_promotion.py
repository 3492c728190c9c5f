"""Champions and challengers: `pytest tests/jobs/test_promotion.py`"""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from cma_clip_core import registry
from cma_clip_core.training import Metrics
from jobs import storage
from jobs.errors import JobError
from jobs.lake import Lake
from jobs.models import champion, rollback
from jobs.models import promote as name_champion
from jobs.promotion import MEAN, Verdict, compare, promote
from jobs.settings import Settings
from jobs.train import show_model, train
from schemas.taxonomy import Taxonomy
from tests.cma_clip_core import drawn
from tests.jobs.test_train import RUN, add_examples, settings_of

DAY = "2026-11-20"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A lake with a good champion, and a challenger that has learnt next to nothing."""
    root = tmp_path_factory.mktemp("promotion")
    settings = settings_of(root)
    add_examples(Lake(settings.root), RUN, drawn.examples(600))
    good = train(settings, DAY)
    assert champion(settings) == good
    hasty = root / "hasty.yaml"
    hasty.write_text(yaml.safe_dump(drawn.config(epochs=1, learning_rate=1e-5).model_dump(mode="json")))
    bad = train(settings.model_copy(update={"model_config_name": str(hasty)}), DAY)
    return root, good, bad


@pytest.fixture
def settings(made: tuple[Path, str, str], tmp_path: Path) -> Settings:
    shutil.copytree(made[0], tmp_path, dirs_exist_ok=True)
    return settings_of(tmp_path)


def test_a_worse_model_stays_a_challenger_and_says_why(made: tuple[Path, str, str], settings: Settings) -> None:
    _, good, bad = made
    assert champion(settings) == good
    verdict = storage.read_document(Lake(settings.root).models_reports / f"{bad}-against-{good}.json", Verdict)
    assert verdict is not None
    assert not verdict.accepted
    assert MEAN in verdict.worse
    assert set(verdict.differences) == {MEAN, *drawn.taxonomy().names}
    with pytest.raises(
        JobError,
        match=rf"(?s){bad} is worse than the champion {good}, on \d+ products:.*mean .*-.*beyond noise.*--force",
    ):
        promote(settings, bad)
    assert champion(settings) == good


def test_force_and_back(made: tuple[Path, str, str], settings: Settings) -> None:
    _, good, bad = made
    assert promote(settings, bad, force=True) is None
    assert champion(settings) == bad
    verdict = promote(settings, good)  # a better one needs no force
    assert verdict is not None
    assert verdict.accepted
    assert verdict.differences[MEAN] is not None
    assert verdict.differences[MEAN].mean > 0
    assert champion(settings) == good
    assert rollback(settings) == bad
    assert rollback(settings) == good == champion(settings)
    with pytest.raises(JobError, match=f"no champion before {good}"):
        rollback(settings)
    assert champion(settings) == good


def test_a_model_is_no_worse_than_itself(made: tuple[Path, str, str], settings: Settings) -> None:
    _, good, _ = made
    verdict = compare(settings, good, good)
    assert verdict.worse == ()
    assert all(d is not None and d.mean == 0 for d in verdict.differences.values())


def test_what_the_champion_learnt_from_is_left_out(made: tuple[Path, str, str], settings: Settings) -> None:
    _, good, _ = made
    lake = Lake(settings.root)
    # Another split: the champion learnt from most of this one's test products.
    other = drawn.config(epochs=1).model_dump(mode="json")
    other["selection"] |= {"test_share": 0.5}
    path = lake.root.parent / "other.yaml"
    path.write_text(yaml.safe_dump(other))
    third = train(settings.model_copy(update={"model_config_name": str(path)}), DAY, promote=False)
    sides = {
        v: dict(
            zip(
                *(column.to_pylist() for column in pq.read_table(table, columns=["product_id", "side"]).columns),
                strict=True,
            )
        )
        for v in (good, third)
        for table in [
            lake.root
            / registry.read_json(lake.models / v / registry.METRICS, Metrics).labelled_set
            / "products.parquet"
        ]
    }
    fair = {p for p, side in sides[third].items() if side == "test" and sides[good][p] == "test"}
    assert 0 < len(fair) < sum(side == "test" for side in sides[third].values())
    assert compare(settings, third, good).products == len(fair)


def test_a_champion_that_changed_meanwhile(made: tuple[Path, str, str], settings: Settings) -> None:
    _, good, bad = made
    with pytest.raises(JobError, match=f"judged against {bad}, but the champion is now {good}"):
        name_champion(settings, bad, instead_of=bad)


def test_another_taxonomy_is_refused_with_the_difference(made: tuple[Path, str, str], settings: Settings) -> None:
    _, good, bad = made
    path = Lake(settings.root).models / bad / registry.TAXONOMY
    document = yaml.safe_load(path.read_text())
    document["attributes"][1]["values"].append({"name": "Black"})
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(JobError, match=rf"{bad} has another taxonomy than the champion {good}: colour: with Black"):
        promote(settings, bad)


def test_differences_of_taxonomies() -> None:
    document = drawn.taxonomy().model_dump(mode="json")
    other = Taxonomy.model_validate(document)
    assert drawn.taxonomy().differences(other) == []
    document["attributes"][2]["values"] = [{"name": "Solid"}, {"name": "Dotted"}]
    document["attributes"][3]["multi_valued"] = False
    del document["attributes"][1]
    assert drawn.taxonomy().differences(Taxonomy.model_validate(document)) == [
        "attribute 'colour' is gone",
        "pattern: without Striped, Checked",
        "pattern: with Dotted",
        "material: one value to a product now",
    ]


def test_the_card_is_shown(made: tuple[Path, str, str], settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    show_model(settings, made[1])
    assert made[1] in capsys.readouterr().out
    with pytest.raises(JobError, match="no model version"):
        show_model(settings, "20260101-00000000")
