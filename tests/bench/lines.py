"""What a line of the table is made of: what is measured, beside whom, for what aim."""

from __future__ import annotations

from typing import Literal

from attrs import field, frozen

from .report import Target

__all__ = ["Beside", "Line", "own", "ratio"]


@frozen
class Beside:
    """What stands beside in a line of the table.

    Attributes:
        who: Its name; None for our figure alone.
        target: What is aimed at.
    """

    who: str | None
    target: Target | None = None


@frozen
class Line:
    """One thing that is measured, and a row of the table for each beside it.

    Attributes:
        key: What it is called among the measurements.
        what: What was measured, with its unit.
        beside: What stands beside it.
        ours: Whose figure is in our column.
    """

    key: str
    what: str
    beside: tuple[Beside, ...] = field(converter=tuple)
    ours: str = field(default="ours", kw_only=True)


def ratio(sign: Literal[">=", ">", "<=", "<"], limit: float) -> Target:
    """Aim at a ratio of ours to theirs."""
    return Target("ratio", sign, limit)


def own(sign: Literal[">=", ">", "<=", "<"], limit: float) -> Target:
    """Aim at a figure of ours."""
    return Target("ours", sign, limit)
