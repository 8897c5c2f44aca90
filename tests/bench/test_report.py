"""The table: what a row says, when a target counts as met, and where the table goes."""

from __future__ import annotations

import pytest

from tests.bench.report import Row, Side, Target, document, insert


def _row(*, ours: Side, theirs: Side | None = None, target: Target | None) -> Row:
    return Row(what="it", ours=ours, beside="them", theirs=theirs, target=target)


def test_a_ratio_is_of_medians() -> None:
    """One turn that was disturbed does not change the result."""
    row = _row(
        ours=Side(values=[3.0, 4.0, 90.0]), theirs=Side(values=[2.0]), target=None
    )
    assert row.ratio == 2.0
    assert row.text() == "| it | 4 | 2 | them | 2.00 |  |  |"


@pytest.mark.parametrize(
    ("target", "met"),
    [
        (Target("ratio", ">=", 2.0), True),
        (Target("ratio", ">", 2.0), False),
        (Target("ours", "<=", 4.0), True),
        (Target("ours", "<", 4.0), False),
    ],
)
def test_a_target_is_of_the_ratio_or_of_ours(target: Target, met: bool) -> None:
    """The sign says on which side of the limit the figure has to be."""
    row = _row(ours=Side(values=[4.0]), theirs=Side(values=[2.0]), target=target)
    assert row.met is met


def test_failures_are_shown_and_miss_the_target() -> None:
    """A server that answers wrongly, but fast, has not reached anything."""
    ours = Side(values=[1234.0], failures=3)
    row = _row(ours=ours, target=Target("ours", ">", 1.0))
    assert "1,234 (3 failed)" in row.text()
    assert "3 of our answers failed" in row.missed()
    assert row.met is False


def test_what_was_given_up_is_a_bound() -> None:
    """Of streams that did not end, only a least time is known."""
    theirs = Side(values=[20.0], capped=True)
    text = _row(ours=Side(values=[1.0]), theirs=theirs, target=None).text()
    assert text == "| it | 1 | > 20 | them | < 0.05 |  |  |"


def test_a_tiny_ratio_is_not_spelled_out() -> None:
    """Nobody compares the digits of a thousandth."""
    row = _row(ours=Side(values=[1.0]), theirs=Side(values=[20_000.0]), target=None)
    assert row.text() == "| it | 1 | 20,000 | them | < 0.001 |  |  |"


def test_what_is_missing_says_why() -> None:
    """A peer that cannot be measured leaves a row, without a ratio."""
    theirs = Side(reason="cannot be installed: no network")
    row = _row(
        ours=Side(values=[1.0]), theirs=theirs, target=Target("ratio", ">=", 3.5)
    )
    assert "- (cannot be installed: no network)" in row.text()
    assert row.ratio is None
    assert row.met is None


def test_each_missed_target_has_a_sentence() -> None:
    """Below the table stands what falls short, unmeasured rows included."""
    met = _row(ours=Side(values=[2.0]), target=Target("ours", ">=", 1.0))
    missed = _row(ours=Side(values=[0.5]), target=Target("ours", ">=", 1.0))
    unknown = _row(ours=Side(), target=Target("ours", ">=", 1.0))
    text = document([met, missed, unknown], note="Made by hand.")
    assert "1 of 3 targets are met." in text
    assert "- it beside them: 0.5; aimed at: ours >= 1." in text
    assert "- it beside them: not measured; aimed at: ours >= 1." in text
    assert text.endswith("Made by hand.")


def test_the_table_replaces_the_one_between_the_marks() -> None:
    """What people wrote around it stays, however often it is made."""
    begin, end = (
        "<!-- bench: begin; written by `make bench` -->",
        "<!-- bench: end -->",
    )
    page = f"before\n{begin}\nold\n{end}\nafter\n"
    once = insert(page, "new")
    assert once == f"before\n{begin}\n\nnew\n\n{end}\nafter\n"
    assert insert(once, "new") == once


def test_a_page_without_marks_is_refused() -> None:
    """Nothing is overwritten by guessing."""
    with pytest.raises(ValueError, match="has no lines"):
        insert("a page", "new")
