"""Which files become part of a template, and which make it unusable."""

from __future__ import annotations

import itertools
import os.path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent.sandbox.templates.snapshot import (
    MAX_BYTES,
    MAX_FILES,
    Candidate,
    Ignore,
    link_escapes,
    select,
)


def _file(path: str, size: int = 1) -> Candidate:
    return Candidate(path=path, kind="file", size=size)


def _paths(*paths: str, dockerignore: str = "") -> list[str]:
    chosen, problems = select([_file(p) for p in paths], Ignore(dockerignore))
    assert problems == []
    return [c.path for c in chosen]


def test_files_come_sorted_and_without_manifest_folders_and_leftovers() -> None:
    found = _paths(
        *("b.py", "a/x", ".ppio-agent.yaml", ".git/config", "a/.git/x", ".env"),
        *("a/.env.local", "__pycache__/a.pyc", "a/b.pyc", ".venv/bin/python"),
        *("node_modules/x/y", "a/node_modules/z", "a/.ppio-agent.yaml", "environment"),
    )

    assert found == ["a/.ppio-agent.yaml", "a/x", "b.py", "environment"]


@pytest.mark.parametrize(
    ("pattern", "left"),
    [
        ("*.txt", ["d/a.txt", "d/e/a.md"]),
        ("**/*.txt", ["d/e/a.md"]),
        ("d", ["a.txt"]),
        ("/d/", ["a.txt"]),
        ("d/*/a.md", ["a.txt", "d/a.txt"]),
        ("**\n!d/a.txt", ["d/a.txt"]),
        ("# d\n\n?.txt", ["d/a.txt", "d/e/a.md"]),
        ("[a-c].txt", ["d/a.txt", "d/e/a.md"]),
        ("[z-a]", ["a.txt", "d/a.txt", "d/e/a.md"]),
    ],
)
def test_dockerignore_patterns(pattern: str, left: list[str]) -> None:
    assert _paths("a.txt", "d/a.txt", "d/e/a.md", dockerignore=pattern) == left


def test_a_folder_is_pruned_unless_something_in_it_may_come_back() -> None:
    assert Ignore("d").prunes("d")
    assert not Ignore("d\n!d/keep").prunes("d")
    assert Ignore("!x").prunes("a/.git")


@pytest.mark.parametrize(
    ("candidate", "problem"),
    [
        (_file("../x"), "the path leads out of the template"),
        (_file("/etc/passwd"), "the path leads out of the template"),
        (_file("a/../../x"), "the path leads out of the template"),
        (_file("a\udce4"), "the name is not UTF-8"),
        (_file("x" * 256), "the name is longer than 255 bytes"),
        (_file("a\\b"), "the path has a backslash or a NUL character"),
        (_file("a/" * 64 + "b"), "the path has more than 64 levels or 1024 bytes"),
        (
            _file(("x" * 254 + "/") * 4 + "xxxxx"),
            "the path has more than 64 levels or 1024 bytes",
        ),
        (
            Candidate(path="p", kind="other"),
            "is neither a file, a folder nor a symbolic link",
        ),
        (
            Candidate(path="l", kind="link", link="/etc/passwd"),
            "the symbolic link leads out of the template",
        ),
        (
            Candidate(path="l", kind="link", link="a\udce4"),
            "the link is not UTF-8",
        ),
    ],
)
def test_what_cannot_be_part_of_a_template_is_a_problem(
    candidate: Candidate, problem: str
) -> None:
    _, problems = select([_file("ok"), candidate], Ignore())

    assert [p[2] for p in problems] == [problem]
    problems[0][0].encode()


def test_nothing_may_lie_below_a_link_or_be_there_twice() -> None:
    link = Candidate(path="d", kind="link", link="e")
    _, problems = select([link, _file("d/x"), _file("a"), _file("a")], Ignore())

    assert [(p[0], p[2]) for p in problems] == [
        ("a", "is there twice"),
        ("d/x", "is below d, which is no folder"),
    ]


@pytest.mark.parametrize("size", [0, MAX_BYTES // 4])
def test_size_and_number_are_limited_while_the_source_is_read(size: int) -> None:
    endless = (_file(f"f{number}", size) for number in itertools.count())

    chosen, problems = select(endless, Ignore())

    assert (chosen, len(problems)) == ([], 1)
    told = f"the template is larger than 512 MiB or has more than {MAX_FILES} files"
    assert problems[0] == (".", 0, told)


_names = st.sampled_from(["a", "b", "..", ".", ""])


@given(
    path=st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=4),
    target=st.lists(_names, min_size=1, max_size=6),
)
@settings(max_examples=100)
def test_a_link_that_is_let_in_leads_to_a_place_inside(
    path: list[str], target: list[str]
) -> None:
    """With folders only on its way; links on the way have `..` at their start only."""
    where, to = "/".join(path), "/".join(target)
    if not link_escapes(where, to):
        found = os.path.normpath(os.path.join("/r", os.path.dirname(where), to))
        assert found == "/r" or found.startswith("/r/")
        assert ".." not in to.lstrip("./").split("/")
