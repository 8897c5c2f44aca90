"""The lines of the table have all that a row needs."""

from __future__ import annotations

from tests.bench.environments import CLIENTS, MAILBOXES, SERVERS
from tests.bench.report import Side
from tests.bench.rows import LINES, rows

PROGRAMS = {**MAILBOXES, **CLIENTS, **SERVERS}
TITLES = {who: program.title for who, program in PROGRAMS.items()}


def test_every_line_becomes_rows_with_a_name_beside() -> None:
    """Whatever stands beside has a title, and each line comes out in order."""
    found = {
        (line.key, who): Side(values=[1.0])
        for line in LINES
        for who in (line.ours, *(beside.who or "" for beside in line.beside))
    }
    made = rows(found, TITLES)
    assert len(made) == sum(len(line.beside) for line in LINES)
    assert all(row.beside or row.theirs is None for row in made)


def test_what_was_not_asked_for_has_no_row() -> None:
    """A run of one group makes a table of that group."""
    found = {("ring", "ours"): Side(values=[1.0])}
    assert [row.what for row in rows(found, TITLES)] == [
        "one replay ring, no reader, appends/s"
    ]
