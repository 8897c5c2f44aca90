"""Turns measurements into one table, and puts it into a page. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from attrs import field, frozen

__all__ = ["Row", "insert", "table"]

_BEGIN = "<!-- bench: begin; written by `make bench` -->"
_END = "<!-- bench: end -->"


@frozen(kw_only=True)
class Row:
    """One comparison, measured in turns.

    Attributes:
        what: What was measured, with its unit.
        ours: Our measurements.
        theirs: Those of what stands beside.
        beside: What stands beside.
        smaller_is_better: Whether it is a cost.
        target: Ratio that is aimed at, as text.
    """

    what: str
    ours: Sequence[float] = field(converter=tuple)
    theirs: Sequence[float] = field(converter=tuple)
    beside: str
    smaller_is_better: bool = False
    target: str = ""

    @property
    def ratio(self) -> float:
        """Median of ours over median of theirs."""
        return median(self.ours) / median(self.theirs)


def table(rows: Sequence[Row], *, note: str) -> str:
    """Return the table as Markdown, with what it was made by below it."""
    lines = [
        "| what | ours | beside | | ratio | target |",
        "|---|---:|---:|---|---:|---|",
    ]
    lines += [
        f"| {row.what} | {median(row.ours):,.0f} | {median(row.theirs):,.0f} |"
        f" {row.beside} | {row.ratio:.2f} | {row.target} |"
        for row in rows
    ]
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
