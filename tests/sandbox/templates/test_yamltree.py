"""YAML as text with places, and edits that touch nothing else."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent.sandbox.templates.yamltree import (
    Branch,
    Leaf,
    Row,
    read_tree,
    set_scalars,
)
from tests.support import SLOW


def _values(text: str, section: str = "status") -> dict[str, str]:
    root, problems = read_tree(text)
    assert problems == ()
    assert isinstance(root, Branch)
    branch = root.get(section)
    assert isinstance(branch, Branch)
    return {k: v.text for k, (_, v) in branch.entries.items() if isinstance(v, Leaf)}


def test_scalars_stay_text() -> None:
    root, problems = read_tree("a: 1.10\nb: no\nc: 2026-01-01\nd: '1'\ne: ~\n")

    assert problems == ()
    assert isinstance(root, Branch)
    texts = {k: v.text for k, (_, v) in root.entries.items() if isinstance(v, Leaf)}
    assert texts == {"a": "1.10", "b": "no", "c": "2026-01-01", "d": "1", "e": "~"}
    assert root.get("e") is None


def test_nodes_know_their_lines() -> None:
    root, _ = read_tree("a:\n  - x\n  - y: z\nb:\n")
    assert isinstance(root, Branch)
    row = root.get("a")
    assert isinstance(row, Row)

    assert [item.line for item in row.items] == [2, 3]
    assert root.entries["b"][1].line == 4


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: &x 1\n", ("a", 1, "anchors are not supported")),
        ("a: &x 1\nb: *x\n", ("b", 2, "aliases are not supported")),
        ("a: 1\nb: !int 2\n", ("b", 2, "tags are not supported")),
        ("a: 1\n\na: 2\n", ("a", 3, "the key is there twice")),
        ("a: 1\n---\nb: 2\n", ("", 2, "expected one document")),
        ("? [a]\n: 1\n", ("", 1, "expected a plain key")),
        ("a: [1\n", ("", 2, "not YAML: expected ',' or ']', but got '<stream end>'")),
        ("a: \x00\n", ("", 0, "not YAML: it has a character that is not text")),
    ],
)
def test_what_cannot_be_meant_is_a_problem_with_its_line(
    text: str, problem: tuple[str, int, str]
) -> None:
    assert problem in read_tree(text)[1]


@pytest.mark.parametrize(
    "text",
    [
        "a: " + "[" * 300 + "]" * 300,
        "a: " + "[" * 50_000,
        "{a: " * 3000,
        "- " * 50_000,
        "? " * 3000,
        "\n".join("  " * depth + "a:" for depth in range(400)),
    ],
)
def test_depth_is_limited(text: str) -> None:
    """It is one problem, found before the rest is read."""
    began = time.process_time()
    root, problems = read_tree(text)

    assert root is None
    assert [message for _, _, message in problems] == ["deeper than 32 levels"]
    assert time.process_time() - began < 1.0 * SLOW


def test_an_empty_text_has_no_document() -> None:
    assert read_tree("# nothing\n") == (None, ())


MANIFEST = """\
# the agent
a: 1.10   # kept
status:
  # written by deploy
  phase: old  # here
  other: |
    kept
    too
  empty:
tail: [x,  y] # odd   spacing
"""


def test_an_edit_leaves_every_other_byte() -> None:
    edited = set_scalars(MANIFEST, "status", {"phase": "new", "id": "1e5"})

    assert edited == MANIFEST.replace("old", "new").replace(
        "  empty:\n", '  empty:\n  id: "1e5"\n'
    )


def test_an_empty_and_a_block_value_are_replaced() -> None:
    edited = set_scalars(MANIFEST, "status", {"empty": "x", "other": "y z"})

    assert _values(edited) == {"phase": "old", "other": "y z", "empty": "x"}
    assert edited.endswith("  empty: x\ntail: [x,  y] # odd   spacing\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: b", "a: b\nstatus:\n  k: v\n"),
        ("a: b\n# end\n", "a: b\nstatus:\n  k: v\n# end\n"),
        ("a: |\n  b\n", "a: |\n  b\nstatus:\n  k: v\n"),
        ("status:\na: b\n", "status:\n  k: v\na: b\n"),
        ("status: {}  # c\na: b\n", "status:   # c\n  k: v\na: b\n"),
        ("status: ~\n", "status: \n  k: v\n"),
        ("status: {x: 'y'}\n", "status: \n  x: 'y'\n  k: v\n"),
        ("a: b\r\n", "a: b\r\nstatus:\r\n  k: v\r\n"),
    ],
)
def test_the_section_is_made_where_there_is_none(text: str, expected: str) -> None:
    assert set_scalars(text, "status", {"k": "v"}) == expected


@pytest.mark.parametrize("text", ["{a: b}", "- a\n", "a: *b\n", ""])
def test_what_is_no_sound_mapping_is_not_edited(text: str) -> None:
    with pytest.raises(ValueError, match="not a sound block mapping"):
        set_scalars(text, "status", {})


_plain = st.text("abcxyz019 -_#:'\"{}[],&*!|>%@`~\\\u00e4\n", max_size=12)
_keys = st.text("abcdef", min_size=1, max_size=4)


@given(
    before=st.dictionaries(_keys, _plain, max_size=4),
    values=st.dictionaries(_keys, _plain, min_size=1, max_size=4),
    twice=st.booleans(),
)
@settings(max_examples=100)
def test_what_is_set_is_read_back_and_the_rest_stays(
    before: dict[str, str], values: dict[str, str], twice: bool
) -> None:
    """Whatever characters the values have, set once or set again."""
    text = set_scalars("a: b # c\nz: 1\n", "status", before) if before else "a: b # c\n"
    edited = set_scalars(text, "status", values)
    if twice:
        edited = set_scalars(edited, "status", values)

    assert _values(edited) == {**before, **values}
    assert edited.startswith("a: b # c\n")
