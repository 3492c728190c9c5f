"""Champions and challengers: `pytest tests/jobs/models/test_promotion.py`"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from cma_clip_core import registry
from cma_clip_core.evaluation.choose_thresholds import fewest_right
from cma_clip_core.evaluation.metrics import PAPER_PRECISION
from cma_clip_core.model_documents import Metrics, Threshold, TowersOrigin
from cma_clip_core.training.fit import Trained
from jobs.errors import JobError
from jobs.lake import storage
from jobs.lake.layout import Lake
from jobs.lake.storage import SwapLostError
from jobs.models import promotion
from jobs.models.champion_pointer import champion, champions, rollback
from jobs.models.champion_pointer import promote as name_champion
from jobs.models.list_models import show_model
from jobs.models.promotion import LEAST_FAMILIES, compare, promote
from jobs.models.verdict import MEAN, Verdict
from jobs.settings import Settings
from jobs.training.train import train
from schemas.taxonomy import Taxonomy
from tests.cma_clip_core import drawn
from tests.jobs.training.test_train import RUN, add_examples, settings_of

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
    with pytest.raises(JobError, match=f"no champion precedes {good}"):
        rollback(settings)
    assert champion(settings) == good


def test_a_model_is_no_worse_than_itself(made: tuple[Path, str, str], settings: Settings) -> None:
    _, good, _ = made
    verdict = compare(settings, good, good)
    assert verdict.worse == ()
    assert all(d is not None and d.mean == 0 for d in verdict.differences.values())
    card = registry.read_json(Lake(settings.root).models / good / registry.METRICS, Metrics).test
    assert verdict.coverage == {name: (card[name].coverage, card[name].coverage) for name in drawn.taxonomy().names}


FEW = "it has 3 training labels; at least 20 are needed"
TAGS = Threshold(threshold=0.9, target_precision=0.9, precision=1.0, accepted=40, candidates=40)
ACCEPTS_NOTHING = TAGS.model_copy(update={"threshold": None, "precision": None, "accepted": 0})


def test_what_either_has_not_learnt_is_neither_compared_nor_in_the_mean(
    made: tuple[Path, str, str], settings: Settings
) -> None:
    """A head with random weights is worse than one that has learnt, which says nothing about the models."""
    _, good, bad = made
    whole = compare(settings, bad, good)
    knows_less = saved_again(settings, good, not_learnt={"colour": FEW, "pattern": FEW})
    both = saved_again(settings, bad, not_learnt={"pattern": FEW})
    verdict = compare(settings, both, knows_less)
    assert verdict.not_compared == {
        "colour": "the champion has not learnt it", "pattern": "neither has learnt it",
    }  # fmt: skip
    assert verdict.differences["colour"] is verdict.differences["pattern"] is None
    assert not {"colour", "pattern"} & set(verdict.worse)
    assert "colour" in whole.worse
    rest = [verdict.differences[name] for name in ("article_type", "material")]
    assert rest == [whole.differences[name] for name in ("article_type", "material")]
    mean = verdict.differences[MEAN]
    assert mean is not None
    assert mean.mean == pytest.approx(sum(d.mean for d in rest if d is not None) / 2)
    assert any(
        line.split() == ["colour", "not", "compared:", "the", "champion", "has", "not", "learnt", "it"]
        for line in verdict.lines()
    )


def test_a_challenger_that_has_not_learnt_what_the_champion_tags_is_worse(
    made: tuple[Path, str, str], settings: Settings
) -> None:
    _, good, _ = made
    tags = saved_again(settings, good, thresholds={"pattern": TAGS})
    forgot = saved_again(settings, good, thresholds={"pattern": ACCEPTS_NOTHING}, not_learnt={"pattern": FEW})
    promote(settings, tags, force=True)
    with pytest.raises(
        JobError,
        match=rf"(?s){forgot} is worse than .* pattern +worse: the challenger has not learnt it, as {FEW}; the champion has, and"
        " tags it",
    ):
        promote(settings, forgot)
    assert compare(settings, forgot, tags).worse == ("pattern",)
    assert champion(settings) == tags


def test_what_the_champion_never_tagged_cannot_be_lost(made: tuple[Path, str, str], settings: Settings) -> None:
    _, good, _ = made
    silent = saved_again(settings, good, thresholds={"pattern": ACCEPTS_NOTHING})
    forgot = saved_again(settings, good, thresholds={"pattern": ACCEPTS_NOTHING}, not_learnt={"pattern": FEW})
    promote(settings, silent, force=True)
    verdict = promote(settings, forgot)
    assert verdict is not None
    assert verdict.accepted
    assert "but accepts no value of it" in verdict.not_compared["pattern"]
    assert champion(settings) == forgot


def test_a_challenger_that_would_tag_nothing_more_is_worse_however_well_it_ranks(
    made: tuple[Path, str, str], settings: Settings
) -> None:
    _, good, _ = made
    tags = saved_again(settings, good, thresholds={"pattern": TAGS})
    mute = saved_again(settings, good, thresholds={"pattern": ACCEPTS_NOTHING})
    promote(settings, tags, force=True)
    with pytest.raises(
        JobError,
        match=rf"(?s){mute} is worse than .* pattern +\+0\.0 \(.* points .*worse: it accepts no value of it any more",
    ):
        promote(settings, mute)
    verdict = compare(settings, mute, tags)
    assert (verdict.worse, verdict.silenced) == ((), ("pattern",))
    before, now = verdict.coverage["pattern"]
    assert before
    assert now == 0
    shown = f"0.0 % (before {100 * before:.1f} %)"
    assert any(f"points  tags {shown}  worse: it accepts" in line for line in verdict.lines())
    rows = [line for line in verdict.page().splitlines() if line.startswith("| pattern |")]
    assert rows == [f"| pattern | +0.0 (+0.0 to +0.0) | {shown} | worse: it accepts no value of it any more |"]
    assert champion(settings) == tags
    few = with_test_families(settings, mute, LEAST_FAMILIES - 1, 0)  # it needs no test product to be seen
    verdict = compare(settings, few, tags)
    assert set(verdict.differences.values()) == {None}
    assert verdict.silenced == ("pattern",)
    assert verdict.judged
    assert not verdict.accepted


def test_models_that_have_learnt_no_attribute_in_common_cannot_be_judged(
    made: tuple[Path, str, str], settings: Settings
) -> None:
    _, good, _ = made
    names = drawn.taxonomy().names
    thresholds = dict.fromkeys(names, ACCEPTS_NOTHING)
    colour = saved_again(settings, good, not_learnt={name: FEW for name in names if name != "colour"})
    rest = saved_again(settings, good, thresholds=thresholds, not_learnt={"colour": FEW})
    verdict = compare(settings, colour, rest)
    assert set(verdict.differences.values()) == {None}
    assert not verdict.judged
    assert not verdict.accepted
    said = "\n".join(verdict.lines())
    assert "mean             not compared: no attribute is compared" in said
    assert "no attribute has been learnt by both: compare the two cards" in said
    assert "train on more products" not in said


def test_what_the_champion_learnt_from_is_left_out(made: tuple[Path, str, str], settings: Settings) -> None:
    _, good, _ = made
    lake = Lake(settings.root)
    # Another split: the champion learnt from most of this one's test products.
    other = drawn.config(epochs=1).model_dump(mode="json")
    other["selection"] |= {"test_share": 0.5}
    path = lake.root.parent / "other.yaml"
    path.write_text(yaml.safe_dump(other))
    third = train(settings.model_copy(update={"model_config_name": str(path)}), DAY, promote=False)
    tables = {
        v: lake.root / registry.read_json(lake.models / v / registry.METRICS, Metrics).labelled_set / "products.parquet"
        for v in (good, third)
    }
    sides = {p["product_id"]: p["side"] for p in pq.read_table(tables[good]).to_pylist()}
    found = pq.read_table(tables[third])
    rows = found.to_pylist()
    known = {row["family"] for row in rows if sides[row["product_id"]] != "test"}
    here = [row for row in rows if row["side"] == "test"]
    fair = [row for row in here if row["family"] not in known]
    assert 1 < len(fair) < len(here)
    # A sibling of what it learnt from is no fair test either.
    fair[0]["family"] = next(iter(known))
    pq.write_table(pa.Table.from_pylist(rows, schema=found.schema), tables[third])
    assert compare(settings, third, good).products == len(fair) - 1


def test_what_either_may_have_seen_is_said_with_the_verdict(made: tuple[Path, str, str], settings: Settings) -> None:
    _, good, bad = made
    lake = Lake(settings.root)
    assert compare(settings, bad, good).doubts == ()
    seen = TowersOrigin(
        name="20261001-0", labelled_set="labelled/a", same_set=False, seen={"test": 12, "validation": 3}
    )
    again = saved_again(settings, bad, towers=seen)
    gone = saved_again(settings, good, labelled_set="labelled/gone")
    verdict = compare(settings, again, gone)
    assert verdict.doubts == (
        f"{again}: {seen.words()}",
        f"the labelled set of {gone} is gone: it may have learnt from the products it is judged on",
    )
    assert verdict.lines()[-2:] == [f"  but {doubt}" for doubt in verdict.doubts]
    assert verdict.page().split("\n\n")[-2:] == [f"But {doubt}." for doubt in verdict.doubts]
    storage.write_document(lake.models_reports / "kept.json", verdict)
    assert storage.read_document(lake.models_reports / "kept.json", Verdict) == verdict
    same = saved_again(settings, bad, towers=seen.model_copy(update={"same_set": True}))
    assert compare(settings, same, good).doubts == ()


def test_of_two_promoted_against_no_champion_one_wins(made: tuple[Path, str, str], settings: Settings) -> None:
    _, good, bad = made
    Lake(settings.root).champion.unlink()
    seen = champions(settings)
    name_champion(settings, good, champions(settings))
    with pytest.raises(
        SwapLostError, match=rf"{bad} was to follow the champion \(none\), but the champion is now {good}"
    ):
        name_champion(settings, bad, seen)
    assert champions(settings).versions == (good,)


def test_promoted_while_another_one_is(
    made: tuple[Path, str, str], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second is promoted, with no other version in its way, while the first is still being judged."""
    _, good, bad = made
    other = with_taxonomy(settings, good, lambda d: d["attributes"][1]["values"][0].update(aliases=["Crimson"]))
    promote(settings, bad, force=True)

    def slowly(*arguments: Any) -> Verdict:
        verdict = compare(*arguments)
        monkeypatch.undo()
        assert promote(settings, good) is not None
        return verdict

    monkeypatch.setattr(promotion, "compare", slowly)
    with pytest.raises(
        SwapLostError, match=f"{other} was to follow the champion {bad}, but the champion is now {good}"
    ):
        promote(settings, other)
    assert champions(settings).versions == (good, bad, good)


def test_a_rollback_meanwhile_is_not_undone(made: tuple[Path, str, str], settings: Settings) -> None:
    _, good, bad = made
    promote(settings, bad, force=True)
    seen = champions(settings)
    rollback(settings)
    with pytest.raises(SwapLostError):
        name_champion(settings, bad, seen)
    assert champion(settings) == good


def saved_again(
    settings: Settings,
    version: str,
    *,
    taxonomy: Taxonomy | None = None,
    thresholds: dict[str, Threshold] | None = None,
    **metrics: Any,
) -> str:
    """Register the same model with other documents."""
    models = Lake(settings.root).models
    folder = models / version
    known = registry.read_json(folder / registry.METRICS, Metrics).model_copy(update=metrics)
    chosen = registry.read_thresholds(folder) | (thresholds or {})
    same = Trained(registry.load_model(folder), chosen, known)
    return registry.save(
        same, registry.read_config(folder), taxonomy or registry.read_taxonomy(folder), models, drawn.NOW
    )


def with_taxonomy(settings: Settings, version: str, change: Callable[[dict[str, Any]], object]) -> str:
    """Register the same model for a changed taxonomy."""
    document = registry.read_taxonomy(Lake(settings.root).models / version).model_dump(mode="json")
    change(document)
    return saved_again(settings, version, taxonomy=Taxonomy.model_validate(document))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["attributes"][1]["values"].append({"name": "Black"}), "colour: with Black"),
        (lambda d: d["attributes"][2].update(applies_to=["Shirt", "Watch"]), "pattern: applies to Watch too now"),
        (
            lambda d: (d["groups"].update(clothes=["Watch"]), d["attributes"][3].update(applies_to=["clothes"])),
            "material: no longer applies to Shirt; material: applies to Watch too now",
        ),
        (lambda d: d["attributes"][1].update(target_precision=0.5), "colour: the target precision is 0.5 now, not 0.9"),
    ],
)
def test_another_taxonomy_is_refused_with_the_difference(
    made: tuple[Path, str, str], settings: Settings, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    _, good, bad = made
    other = with_taxonomy(settings, bad, change)
    with pytest.raises(JobError, match=rf"{other} has another taxonomy than the champion {good}: {words}; .*--force"):
        promote(settings, other)
    assert champion(settings) == good


def test_a_taxonomy_that_only_reads_labels_otherwise_is_compared(
    made: tuple[Path, str, str], settings: Settings
) -> None:
    _, good, _ = made
    other = with_taxonomy(settings, good, lambda d: d["attributes"][1]["values"][0].update(aliases=["Crimson"]))
    assert other != good
    verdict = promote(settings, other)
    assert verdict is not None
    assert verdict.accepted
    assert champion(settings) == other


def test_train_saves_a_model_of_another_taxonomy_and_says_why_it_is_no_champion(
    made: tuple[Path, str, str], settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    _, good, _ = made
    document = drawn.taxonomy().model_dump(mode="json")
    document["attributes"][2]["applies_to"] = "all"
    taxonomy = Taxonomy.model_validate(document)
    path = settings.root.parent / "everything.yaml"
    path.write_text(yaml.safe_dump(document))
    lake = Lake(settings.root)
    add_examples(lake, "2026-11-20-prepare-89abcdef", drawn.examples(300), fingerprint=taxonomy.fingerprint)
    hasty = settings.root.parent / "hasty.yaml"
    version = train(settings.model_copy(update={"taxonomy": str(path), "model_config_name": str(hasty)}), DAY)
    assert champion(settings) == good
    registry.load_model(lake.models / version)
    said = (
        f"{version} is not the champion: {version} has another taxonomy than the champion {good}: pattern: applies to"
    )
    assert any(said in record.getMessage() for record in caplog.records)


def test_nothing_is_promoted_on_no_evidence(made: tuple[Path, str, str], settings: Settings) -> None:
    _, good, _ = made
    lake = Lake(settings.root)
    # The champion has learnt from all that there is.
    folder = lake.root / "labelled" / "all"
    shutil.copytree(lake.root / registry.read_json(lake.models / good / registry.METRICS, Metrics).labelled_set, folder)
    table = pq.read_table(folder / "products.parquet")
    sides = pa.array(["train"] * table.num_rows)
    pq.write_table(table.set_column(table.schema.get_field_index("side"), "side", sides), folder / "products.parquet")
    knowing = saved_again(settings, good, labelled_set=lake.relative(folder))
    promote(settings, knowing, force=True)
    with pytest.raises(
        JobError,
        match=rf"(?s){good} cannot be judged against the champion {knowing}, on 0 products:.* colour +not compared: 0 test families",
    ):
        promote(settings, good)
    assert champion(settings) == knowing


def with_test_families(settings: Settings, version: str, shirts: int, watches: int) -> str:
    """Register the same model with a labelled set that has so many families on its test side, of shirts and of watches.

    All have an article type and a colour, shirts alone a pattern and a material.
    """
    lake = Lake(settings.root)
    source = lake.root / registry.read_json(lake.models / version / registry.METRICS, Metrics).labelled_set
    folder = lake.root / "labelled" / f"few-{shirts}-{watches}"
    shutil.copytree(source, folder)
    table = pq.read_table(folder / "products.parquet")
    rows = table.to_pylist()
    test = [row for row in rows if row["side"] == "test"]
    of_shirts = {row["family"] for row in test if any(label["attribute"] == "pattern" for label in row["labels"])}
    of_watches = {row["family"] for row in test} - of_shirts
    kept = {*sorted(of_shirts)[:shirts], *sorted(of_watches)[:watches]}
    assert len(kept) == shirts + watches
    for row in test:
        row["side"] = "test" if row["family"] in kept else "train"
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), folder / "products.parquet")
    return saved_again(settings, version, labelled_set=lake.relative(folder))


def test_the_fewest_families_can_show_the_precision_that_is_compared() -> None:
    assert fewest_right(PAPER_PRECISION, 0.95) == LEAST_FAMILIES


def test_on_the_fewest_families_a_worse_model_is_told(made: tuple[Path, str, str], settings: Settings) -> None:
    _, good, bad = made
    verdict = compare(settings, with_test_families(settings, bad, LEAST_FAMILIES, 0), good)
    assert verdict.not_compared == {}
    assert None not in verdict.differences.values()
    assert {MEAN, "pattern"} <= set(verdict.worse)


def test_on_fewer_families_nothing_is_judged_and_it_is_said_what_to_do(
    made: tuple[Path, str, str], settings: Settings
) -> None:
    """Not even the same model counts as no worse."""
    _, good, _ = made
    same = with_test_families(settings, good, LEAST_FAMILIES - 1, 0)
    with pytest.raises(
        JobError,
        match=rf"(?s){same} cannot be judged against the champion {good}, on \d+ products:.* colour +not compared: 28 test "
        rf"families.* 29 are the least.*train on more products.*`models promote {same} --force`",
    ):
        promote(settings, same)
    assert champion(settings) == good
    assert promote(settings, same, force=True) is None
    assert champion(settings) == same


def test_an_attribute_of_too_few_families_does_not_decide(made: tuple[Path, str, str], settings: Settings) -> None:
    _, good, bad = made
    verdict = compare(settings, with_test_families(settings, bad, LEAST_FAMILIES - 1, 10), good)
    assert set(verdict.not_compared) == {"pattern", "material"}
    assert "pattern" in compare(settings, bad, good).worse
    assert not {"pattern", "material"} & set(verdict.worse)
    assert "colour" in verdict.worse


@pytest.mark.parametrize("force", [False, True])
def test_a_version_that_was_changed_is_never_the_champion(
    made: tuple[Path, str, str], settings: Settings, force: bool
) -> None:
    _, good, bad = made
    path = Lake(settings.root).models / bad / registry.THRESHOLDS
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(JobError, match=rf"{bad} cannot be the champion: .*thresholds\.json: its hash is not"):
        promote(settings, bad, force=force)
    assert champion(settings) == good


def test_a_challenger_of_a_broken_champion(made: tuple[Path, str, str], settings: Settings) -> None:
    _, good, bad = made
    (Lake(settings.root).models / good / registry.TAXONOMY).unlink()
    with pytest.raises(
        JobError, match=rf"{bad} cannot be compared with the champion {good}: .*taxonomy\.yaml.*--force"
    ):
        promote(settings, bad)
    promote(settings, bad, force=True)
    assert champion(settings) == bad
    with pytest.raises(JobError, match=rf"{good} cannot be the champion"):
        rollback(settings)


def test_the_card_is_shown(made: tuple[Path, str, str], settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    show_model(settings, made[1])
    assert made[1] in capsys.readouterr().out
    path = Lake(settings.root).models / made[1] / registry.CARD
    path.write_text(path.read_text().replace("Not to be used", "To be used"))
    with pytest.raises(JobError, match=r"MODEL_CARD\.md: its hash is not that in SHA256SUMS"):
        show_model(settings, made[1])
    with pytest.raises(JobError, match="no model version"):
        show_model(settings, "20260101-00000000")
