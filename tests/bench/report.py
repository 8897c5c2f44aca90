"""Turns measurements into one table, and puts it into a page. Pure."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from statistics import median
from typing import Literal

from attrs import field, frozen

__all__ = ["Row", "Side", "Target", "document", "insert"]

_BEGIN = "<!-- bench: begin; written by `make bench` -->"
_END = "<!-- bench: end -->"
_HEAD = (
    "| what | ours | beside | | ratio | target | met |",
    "|---|---:|---:|---|---:|---|---|",
)
_SIGNS = {
    ">=": operator.ge,
    ">": operator.gt,
    "<=": operator.le,
    "<": operator.lt,
}


@frozen(kw_only=True)
class Side:
    """What was measured of one of the two that are compared, in turns.

    Attributes:
        values: The measurements; empty if there are none.
        failures: Answers that were wrong, or did not come, in all of them.
        capped: Whether a measurement was given up, so that the figure is a lower bound.
        reason: Why there is no measurement.
    """

    values: Sequence[float] = field(converter=tuple, default=())
    failures: int = 0
    capped: bool = False
    reason: str = "not measured"

    @property
    def median(self) -> float | None:
        """The figure; None if there is none."""
        return median(self.values) if self.values else None

    def text(self) -> str:
        """Return the figure for a cell, with what has to be known of it."""
        if self.median is None:
            return f"- ({self.reason})"
        failed = f" ({self.failures:,} failed)" if self.failures else ""
        return f"{'> ' * self.capped}{_figure(self.median)}{failed}"


@frozen
class Target:
    """What is aimed at, as to the ratio or as to our own figure.

    Attributes:
        of: What has to reach it.
        sign: How it is compared.
        limit: What it is compared with.
    """

    of: Literal["ratio", "ours"]
    sign: Literal[">=", ">", "<=", "<"]
    limit: float

    def text(self) -> str:
        """Return it for a cell."""
        return f"{'ours ' * (self.of == 'ours')}{self.sign} {self.limit:,g}"

    def met_by(self, figure: float) -> bool:
        """Tell whether a ratio, or our figure, reaches it."""
        met: bool = _SIGNS[self.sign](figure, self.limit)
        return met


@frozen(kw_only=True)
class Row:
    """One comparison.

    Attributes:
        what: What was measured, with its unit.
        ours: What was measured of ours.
        beside: What stands beside; empty if nothing does.
        theirs: What was measured of that.
        target: What is aimed at, if anything.
    """

    what: str
    ours: Side
    beside: str = ""
    theirs: Side | None = None
    target: Target | None = None

    @property
    def ratio(self) -> float | None:
        """Median of ours over median of theirs; None if there is none."""
        ours, theirs = self.ours.median, self.theirs and self.theirs.median
        return None if ours is None or not theirs else ours / theirs

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None without a target, or a figure.

        Ours has to do without a failure for it.
        """
        if self.target is None:
            return None
        figure = self.ratio if self.target.of == "ratio" else self.ours.median
        if figure is None:
            return None
        return not self.ours.failures and self.target.met_by(figure)

    def _ratio_text(self) -> str:
        if self.ratio is None:
            return ""
        capped = self.theirs is not None and self.theirs.capped
        if self.ratio < 0.001:
            return "< 0.001"
        digits = "2g" if self.ratio < 0.1 else "2f" if self.ratio < 100 else "0f"
        return f"{'< ' * capped}{self.ratio:.{digits}}"

    def text(self) -> str:
        """Return it as a line of the table."""
        cells = (
            self.what,
            self.ours.text(),
            self.theirs.text() if self.theirs else "",
            self.beside,
            self._ratio_text(),
            self.target.text() if self.target else "",
            {True: "yes", False: "**no**", None: "-" if self.target else ""}[self.met],
        )
        return f"| {' | '.join(cells)} |"

    def missed(self) -> str:
        """Return one sentence that says by how much the target is missed."""
        assert self.target is not None
        beside = f" beside {self.beside}" if self.beside else ""
        aim = f"aimed at: {self.target.text()}"
        if self.met is None:
            return f"{self.what}{beside}: not measured; {aim}."
        reached = self._ratio_text() if self.target.of == "ratio" else self.ours.text()
        if self.ours.failures:
            reached += f" and {self.ours.failures:,} of our answers failed"
        return f"{self.what}{beside}: {reached}; {aim}."


def document(rows: Sequence[Row], *, note: str) -> str:
    """Return the table as Markdown, what misses its target, and how it was made."""
    lines = [*_HEAD, *(row.text() for row in rows)]
    missed = [row.missed() for row in rows if row.target and not row.met]
    count = sum(row.target is not None for row in rows)
    lines += ["", f"{count - len(missed)} of {count} targets are met."]
    if missed:
        lines += ["Missed:", "", *(f"- {sentence}" for sentence in missed)]
    return "\n".join([*lines, "", note])


def insert(page: str, text: str) -> str:
    """Return `page` with `text` between its marks.

    Raises:
        ValueError: The page has no marks.
    """
    before, begin, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not (begin and end):
        raise ValueError(f"the page has no lines {_BEGIN!r} and {_END!r}")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


def _figure(value: float) -> str:
    if float(value).is_integer():
        return f"{value:,.0f}"
    for least, digits in ((100, 0), (10, 1), (1, 2)):
        if abs(value) >= least:
            return f"{value:,.{digits}f}"
    return f"{value:.3g}"
