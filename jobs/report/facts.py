"""Plain records of a night's page: `jobs.report.gather` fills them, `jobs.report.night_page` renders them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cma_clip_core.content.paths import AnyPath
from cma_clip_core.model_documents import Threshold
from schemas.documents import Ledger, Plan, RunManifest
from schemas.tables import ImageStatus, Modality

BINS: Final = 40  # in a confidence histogram


@dataclass(frozen=True, slots=True)
class Rejected:
    """A quarantined line."""

    kind: str
    product_id: str | None
    raw: bytes  # the start of the line
    size: int  # bytes of the whole line
    source: str  # raw file


@dataclass(frozen=True, slots=True)
class Reason:
    """A reason for which lines were quarantined."""

    name: str
    why: str
    lines: int
    examples: tuple[Rejected, ...]


@dataclass(frozen=True, slots=True)
class Counted:
    """A text of the shop that occurs `n` times under `name`, with one product that has it."""

    name: str
    text: str
    n: int
    product_id: str


@dataclass(frozen=True, slots=True)
class Note:
    """A rule that dropped a field of valid records, or a remark about that field."""

    name: str
    why: str  # the rule's explanation; '' if the rule table no longer has the rule
    products: int
    examples: tuple[tuple[str, str], ...]  # product id; field and its content


@dataclass(frozen=True, slots=True)
class PictureProblem:
    """A reason for which products of this run have no picture."""

    status: str
    products: int
    examples: tuple[tuple[str, str], ...]  # product id, message of the decoder


@dataclass(frozen=True, slots=True)
class Share:
    """A value's share of an attribute's values, now and in the tables before (None: no such tables)."""

    attribute: str
    value: str
    n: int
    now: float
    before: float | None

    @property
    def shift(self) -> float:
        """Change of the share; 0 without an earlier share."""
        return self.now - self.before if self.before is not None else 0.0


@dataclass(slots=True)
class AttributeFacts:
    """One attribute in the tables."""

    name: str
    label: str
    threshold: Threshold | None  # None: the run's model does not predict it
    products: int = 0  # that it applies to
    from_catalog: int = 0
    from_unlisted: int = 0  # catalog values that the taxonomy does not list
    from_model: int = 0
    predicted: int = 0  # rows with a model value
    accepted: int = 0
    histogram: tuple[tuple[int, int], ...] = ()  # (accepted, not accepted) predictions in each confidence bin
    image_weight: float | None = None  # mean over products with text and picture; None: no such products
    image_quartiles: tuple[float, float] = (0.0, 0.0)
    methods: tuple[str, ...] = ()  # that answered, the most frequent first; empty: older rows do not say
    conflicts: int = 0
    new_conflicts: int = 0  # conflicts of products tagged in this run
    suspects: int = 0  # new conflicts whose product the model was not trained on
    shares: tuple[Share, ...] = ()  # most frequent first

    @property
    def missing(self) -> int:
        """Number of products that it applies to and that have no value."""
        return self.products - self.from_catalog - self.from_unlisted - self.from_model


@dataclass(frozen=True, slots=True)
class Value:
    """An attribute of one product."""

    attribute: str
    label: str
    value: str | None
    source: str | None
    catalog: tuple[str, ...]
    model: str | None
    confidence: float | None
    accepted: bool


@dataclass(frozen=True, slots=True)
class Shown:
    """A product on the page."""

    product_id: str
    title: str
    modality: Modality | None  # None: the product is no longer published
    image_status: ImageStatus | None
    picture: str | None  # a data: URI
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Conflict:
    """A suspected wrong label of the catalog."""

    product: Shown
    value: Value
    this_run: bool  # tagged in this run


@dataclass(frozen=True, slots=True)
class Night:
    """Everything that the page shows, except the cost of the steps."""

    ledger: Ledger
    plan: Plan
    manifest: RunManifest | None  # None: nothing changed
    live_run: str | None
    before_run: str | None  # run or day that shares are compared with
    data_docs: AnyPath
    reasons: tuple[Reason, ...]
    unknown_labels: tuple[Counted, ...]
    unknown_total: int
    mistyped_labels: tuple[Counted, ...]
    notes: tuple[Note, ...]  # on fields of valid records
    import_remarks: dict[str, int]  # remarks of the import -> count
    picture_problems: tuple[PictureProblem, ...]
    attributes: tuple[AttributeFacts, ...]
    conflicts: tuple[Conflict, ...]
    conflicts_of_training: int  # labels of products that the model was trained on; not shown
    tagged: tuple[Shown, ...]

    @property
    def shifts(self) -> list[Share]:
        """All shares, the largest shift first."""
        return sorted((s for a in self.attributes for s in a.shares), key=lambda s: -abs(s.shift))
