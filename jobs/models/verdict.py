"""What was found of a challenger against the champion, in words and as a page (`jobs.models.promotion` finds it)."""

from __future__ import annotations

from typing import Final

from pydantic import Field

from cma_clip_core.model_card.markdown_tables import markdown
from cma_clip_core.model_documents import Difference
from schemas.loading import Strict

MEAN: Final = "mean"


class Verdict(Strict):
    """A challenger against the champion: recall at 90 % precision, the challenger's less the champion's."""

    challenger: str
    champion: str
    products: int  # test products that neither was trained on
    differences: dict[str, Difference | None]  # by attribute, and of the mean of those that are compared
    not_compared: dict[str, str] = Field(default_factory=dict)  # attribute: why
    too_few: tuple[str, ...] = ()  # those of them with too few test families to judge by
    worse: tuple[str, ...]  # what the challenger is worse at, beyond noise, and what it alone has not learnt
    # What either may have seen, for all that is known, of the products that both are judged on.
    doubts: tuple[str, ...] = ()
    # By attribute, the champion's and the challenger's, each at its own thresholds. It does not decide: a higher threshold may be
    # the more honest one.
    coverage: dict[str, tuple[float | None, float | None]] = Field(default_factory=dict)
    silenced: tuple[str, ...] = ()  # what both have learnt and the champion tags, and the challenger accepts nothing of

    @property
    def judged(self) -> bool:
        """Whether there was enough to judge by: a challenger is not promoted on next to no evidence."""
        return bool(self.worse or self.silenced) or any(d is not None for d in self.differences.values())

    @property
    def accepted(self) -> bool:
        """Whether the challenger may be promoted."""
        return self.judged and not self.worse and not self.silenced

    def lines(self) -> list[str]:
        """Return the verdict in words, a line for each comparison."""
        found = []
        for name, difference, tags, said in self._rows():
            parts = (difference and f"{difference} points", tags and f"tags {tags}", said)
            found.append(f"  {name:<16} {'  '.join(filter(None, parts))}")
        return [
            self._says(),
            *found,
            *(f"  {advice}" for advice in self._advice()),
            *(f"  but {d}" for d in self.doubts),
        ]

    def page(self) -> str:
        """Return the verdict in Markdown, as who is to approve the challenger sees it."""
        header = ("recall at 90 % precision", "points, new less old", "tags", "")
        table = markdown(header, [[cell.strip() for cell in row] for row in self._rows()])
        after = (*self._advice(), *(f"but {doubt}" for doubt in self.doubts))
        return "\n\n".join((self._says(), table, *(f"{said[0].upper()}{said[1:]}." for said in after)))

    def _says(self) -> str:
        says = "is no worse than" if self.accepted else "is worse than" if self.judged else "cannot be judged against"
        return f"{self.challenger} {says} the champion {self.champion}, on {self.products:,} products:"

    def _advice(self) -> list[str]:
        if self.judged:
            return []
        why = (
            "no attribute has enough test products that the champion learnt nothing from: train on more products, or with a "
            "larger `selection.test_share`; or"
            if self.too_few
            else "there is no attribute that both have learnt:"
        )
        return [f"{why} compare the two cards (`models show`) and decide: `models promote {self.challenger} --force`"]

    def _rows(self) -> list[tuple[str, str, str, str]]:
        """Return of each comparison its name, the difference, how much both tag, and what there is to say, in words."""
        found = []
        for name, d in self.differences.items():
            said = []
            if d is None:
                why = "no attribute is compared" if name == MEAN and not self.judged else "too few labels"
                mark = "worse" if name in self.worse else "not compared"
                said.append(f"{mark}: {self.not_compared.get(name, why)}")
            elif name in self.worse:
                said.append("worse, beyond noise")
            if name in self.silenced:
                said.append("worse: it accepts nothing of it any more")
            found.append((name, "" if d is None else _points(d), self._tags(name), "; ".join(said)))
        return found

    def _tags(self, name: str) -> str:
        of_old, of_new = self.coverage.get(name, (None, None))
        return "" if of_old is None or of_new is None else f"{100 * of_new:.1f} % (before {100 * of_old:.1f} %)"


def _points(d: Difference) -> str:
    return f"{100 * d.mean:+6.1f} ({100 * d.interval.low:+.1f} to {100 * d.interval.high:+.1f})"
