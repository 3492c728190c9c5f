"""Results of the steps, each printed as one JSON line, which Airflow passes to the following tasks."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from schemas.documents import Ledger
from schemas.loading import Strict


class StepResult(Strict):
    """Base of all results."""

    def html_page(self) -> str:
        """Return the path of the page that the step wrote; empty if it wrote none."""
        return ""


class ImportResult(StepResult):
    """Result of ``import-catalog``."""

    ds: str
    rows: int
    files: int


class ExportResult(StepResult):
    """Result of ``export``."""

    file: str
    rows: int
    exported: int = Field(description="changes of attributes in the file")
    left_out: int = Field(description="changes of attributes that are not in the file")


class ValidateResult(StepResult):
    """Result of ``validate``."""

    ds: str
    valid: int
    quarantined: int
    unparsable: int
    report: str = Field(description="path of the rules' page")

    def html_page(self) -> str:
        """Return the path of the rules' page."""
        return self.report


class PlanResult(StepResult):
    """Result of ``plan``."""

    ds: str
    run_id: str
    shards: tuple[str, ...] = Field(description="groups of shards, each in the form of `tag --shard`")
    to_preprocess: int = Field(description="products that still need an example")


class PreprocessResult(StepResult):
    """Result of ``preprocess``."""

    run_id: str
    examples: int


class PrepareResult(StepResult):
    """Result of ``prepare``."""

    ds: str
    examples: int


class DatasetResult(StepResult):
    """Result of ``dataset``."""

    set_id: str
    products: int
    families: int
    table: str
    page: str

    def html_page(self) -> str:
        """Return the path of the labelled set's page."""
        return self.page


class PretrainResult(StepResult):
    """Result of ``pretrain``."""

    towers: str = Field(description="the towers' name in the lake")


class ExperimentResult(StepResult):
    """Result of ``experiment``."""

    results: str = Field(description="path of the Markdown page")


class TrainResult(StepResult):
    """Result of ``train``."""

    model_version: str


class SuspectsResult(StepResult):
    """Result of ``suspects``."""

    suspects: str = Field(description="path of the page")

    def html_page(self) -> str:
        """Return the path of the page of suspected labels."""
        return self.suspects


class TagResult(StepResult):
    """Result of ``tag``."""

    run_id: str
    tagged: int = Field(description="products")


class PublishResult(StepResult):
    """Result of ``publish``."""

    run_id: str = Field(description="the published run: a new one if the day was planned again")
    products: int
    rows: int
    manifest: str | None = Field(description="path of the run's manifest; null if nothing changed")
    ledger: Ledger


class ReportResult(StepResult):
    """Result of ``report``."""

    run_id: str
    report: str

    def html_page(self) -> str:
        """Return the path of the night's page."""
        return self.report


class NightResult(StepResult):
    """Result of ``night``."""

    run_id: str
    products: int
    rows: int
    report: str

    def html_page(self) -> str:
        """Return the path of the night's page."""
        return self.report


class EstimateResult(StepResult):
    """Result of ``estimate``."""

    first: str
    last: str
    days: tuple[dict[str, Any], ...] = Field(description="counts and seconds of each day, or the reason to skip it")
    products: int = Field(description="products that would be tagged")
    seconds: float | None = Field(description="null if no past run gives a rate")


class RollbackResult(StepResult):
    """Result of ``tables rollback``."""

    live: str


class RepairResult(StepResult):
    """Result of ``tables repair`` and ``models repair``."""

    written: bool
    sure: bool
    files: tuple[str, ...]


class MaintenanceResult(StepResult):
    """Result of ``maintenance``."""

    deleted: bool
    expired: dict[str, int] = Field(description="counts of expired items, by kind")
    bytes: int


class JudgeResult(StepResult):
    """Result of ``models judge``."""

    model_version: str
    accepted: bool
    verdict: str = Field(description="in words")
    page: str = Field(description="the verdict in Markdown")


class ChampionResult(StepResult):
    """Result of ``models promote`` and ``models rollback``."""

    champion: str | None
