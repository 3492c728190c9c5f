"""The verdict on a challenger against the champion, in words and as a page; `jobs.models.promotion` computes it."""

from __future__ import annotations

from typing import Final

from pydantic import Field

from cma_clip_core.model_card.markdown_tables import markdown
from cma_clip_core.model_documents import Difference
from schemas.loading import Strict

MEAN: Final = "mean"


class Verdict(Strict):
    """A comparison of a challenger with the champion, by the difference of their recalls at 90 % precision."""

    challenger: str
    champion: str
    products: int  # test products that neither was trained on
    differences: dict[str, Difference | None]  # by attribute, and for the mean of the compared attributes
    not_compared: dict[str, str] = Field(default_factory=dict)  # attribute: reason
    too_few: tuple[str, ...] = ()  # attributes in `not_compared` with too few test families
    # attributes (or the mean) with a worse challenger, beyond noise, or that it alone has not learnt
    worse: tuple[str, ...]
    # Reasons why either model may have seen some of the products that both are judged on.
    doubts: tuple[str, ...] = ()
    # By attribute, the champion's and the challenger's, each at its own thresholds. Coverage does not decide: a higher
    # threshold may be the more honest one.
    coverage: dict[str, tuple[float | None, float | None]] = Field(default_factory=dict)
    # attributes that both have learnt and the champion tags, but the challenger never accepts
    silenced: tuple[str, ...] = ()

    @property
    def judged(self) -> bool:
        """True if the evidence is sufficient; otherwise a challenger is not promoted."""
        return bool(self.worse or self.silenced) or any(d is not None for d in self.differences.values())

    @property
    def accepted(self) -> bool:
        """True if the challenger may be promoted."""
        return self.judged and not self.worse and not self.silenced

    def lines(self) -> list[str]:
        """Return the verdict in words, with a line for each comparison."""
        comparisons = []
        for name, difference, tags, remark in self._rows():
            parts = (difference and f"{difference} points", tags and f"tags {tags}", remark)
            comparisons.append(f"  {name:<16} {'  '.join(filter(None, parts))}")
        return [
            self._headline(),
            *comparisons,
            *(f"  {advice}" for advice in self._advice()),
            *(f"  but {d}" for d in self.doubts),
        ]

    def page(self) -> str:
        """Return the verdict in Markdown, for the person who approves the challenger."""
        header = ("recall at 90 % precision", "points, new minus old", "tags", "")
        table = markdown(header, [[cell.strip() for cell in row] for row in self._rows()])
        remarks = (*self._advice(), *(f"but {doubt}" for doubt in self.doubts))
        return "\n\n".join((self._headline(), table, *(f"{text[0].upper()}{text[1:]}." for text in remarks)))

    def _headline(self) -> str:
        result = "is no worse than" if self.accepted else "is worse than" if self.judged else "cannot be judged against"
        return f"{self.challenger} {result} the champion {self.champion}, on {self.products:,} products:"

    def _advice(self) -> list[str]:
        if self.judged:
            return []
        why = (
            "no attribute has enough test products that the champion has not learnt from: train on more products, or with a "
            "larger `selection.test_share`; or"
            if self.too_few
            else "no attribute has been learnt by both:"
        )
        return [f"{why} compare the two cards (`models show`) and decide: `models promote {self.challenger} --force`"]

    def _rows(self) -> list[tuple[str, str, str, str]]:
        """Return the name, the difference, the coverages and the remarks of each comparison, in words."""
        rows = []
        for name, d in self.differences.items():
            remarks = []
            if d is None:
                why = "no attribute is compared" if name == MEAN and not self.judged else "too few labels"
                mark = "worse" if name in self.worse else "not compared"
                remarks.append(f"{mark}: {self.not_compared.get(name, why)}")
            elif name in self.worse:
                remarks.append("worse, beyond noise")
            if name in self.silenced:
                remarks.append("worse: it accepts no value of it any more")
            rows.append((name, "" if d is None else _points(d), self._tags(name), "; ".join(remarks)))
        return rows

    def _tags(self, name: str) -> str:
        old, new = self.coverage.get(name, (None, None))
        return "" if old is None or new is None else f"{100 * new:.1f} % (before {100 * old:.1f} %)"


def _points(d: Difference) -> str:
    return f"{100 * d.mean:+6.1f} ({100 * d.interval.low:+.1f} to {100 * d.interval.high:+.1f})"
