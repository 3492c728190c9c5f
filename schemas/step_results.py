"""What each step prints as its result, a JSON line: Airflow hands it to the tasks that follow, by the names below."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from schemas.documents import Ledger
from schemas.loading import Strict


class StepResult(Strict):
    """Base of all results."""

    def html_page(self) -> str:
        """Return the path of the page that the step wrote; empty where it wrote none."""
        return ""


class ImportResult(StepResult):
    """Result of ``import-catalog``."""

    ds: str
    rows: int
    files: int


class ValidateResult(StepResult):
    """Result of ``validate``."""

    ds: str
    valid: int
    quarantined: int
    unparsable: int
    report: str = Field(description="the page of the rules")

    def html_page(self) -> str:
        """Return the page of the rules."""
        return self.report


class PlanResult(StepResult):
    """Result of ``plan``."""

    ds: str
    run_id: str
    shards: tuple[str, ...] = Field(description="shards in groups, each as `tag --shard` takes it")
    to_preprocess: int = Field(description="products whose examples are still to be made")


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
        """Return the page of the labelled set."""
        return self.page


class PretrainResult(StepResult):
    """Result of ``pretrain``."""

    towers: str = Field(description="name of the towers in the lake")


class ExperimentResult(StepResult):
    """Result of ``experiment``."""

    results: str = Field(description="the page in Markdown")


class TrainResult(StepResult):
    """Result of ``train``."""

    model_version: str


class SuspectsResult(StepResult):
    """Result of ``suspects``."""

    suspects: str = Field(description="the page")

    def html_page(self) -> str:
        """Return the page of suspected labels."""
        return self.suspects


class TagResult(StepResult):
    """Result of ``tag``."""

    run_id: str
    tagged: int = Field(description="products")


class PublishResult(StepResult):
    """Result of ``publish``."""

    run_id: str = Field(description="the run that was published: another one where the day was planned anew")
    products: int
    rows: int
    manifest: str | None = Field(description="none where nothing changed")
    ledger: Ledger


class ReportResult(StepResult):
    """Result of ``report``."""

    run_id: str
    report: str

    def html_page(self) -> str:
        """Return the night's page."""
        return self.report


class NightResult(StepResult):
    """Result of ``night``."""

    run_id: str
    products: int
    rows: int
    report: str

    def html_page(self) -> str:
        """Return the night's page."""
        return self.report


class EstimateResult(StepResult):
    """Result of ``estimate``."""

    first: str
    last: str
    days: tuple[dict[str, Any], ...] = Field(description="of each day its counts and seconds, or why it is left out")
    products: int = Field(description="that would be tagged")
    seconds: float | None = Field(description="none where no past run tells a rate")


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
    expired: dict[str, int] = Field(description="what is no longer needed, counted by kind")
    bytes: int


class JudgeResult(StepResult):
    """Result of ``models judge``."""

    model_version: str
    accepted: bool
    verdict: str = Field(description="in words")
    page: str = Field(description="the same in Markdown")


class ChampionResult(StepResult):
    """Result of ``models promote`` and ``models rollback``."""

    champion: str | None
