"""YAML as a tree of text with its places, and edits of it in place. Pure.

The parser's events are used directly: no scalar is ever interpreted (`1.10` stays what
it is, `no` is no boolean), each node knows its line for error messages, and an edit
replaces only the characters of one value, so that comments, order and every other byte
of a person's file stay. Anchors, tags, further documents and duplicate keys are
problems, since nobody can tell what they would mean for text that is not typed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from attrs import field, frozen

__all__ = ["Branch", "Leaf", "Node", "Problem", "Row", "read_tree", "set_scalars"]

Problem = tuple[str, int, str]
"""Where (`spec.entrypoint`), line (from 1; 0 is nowhere), and what is wrong."""

_MAX_DEPTH: Final = 32
_PLAIN: Final = re.compile(r"[a-z][a-z_]*")
_WORDS: Final = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n"})


@frozen
class Leaf:
    """A scalar: its text, its line from 1, and its place in the source."""

    text: str
    line: int
    start: int
    end: int
    plain: bool = True

    @property
    def absent(self) -> bool:
        """Whether nothing was written, or a null."""
        return self.plain and self.text in ("", "~", "null")


@frozen
class Row:
    """A sequence."""

    items: tuple[Node, ...]
    line: int
    start: int
    end: int


@frozen
class Branch:
    """A mapping; `flow` tells braces from indentation."""

    entries: Mapping[str, tuple[Leaf, Node]]
    line: int
    start: int
    end: int
    flow: bool = False

    def get(self, key: str) -> Node | None:
        """Return the value of `key`; None if it is not there or null."""
        entry = self.entries.get(key)
        if entry is None or (isinstance(entry[1], Leaf) and entry[1].absent):
            return None
        return entry[1]


Node = Leaf | Row | Branch


def read_tree(text: str) -> tuple[Node | None, tuple[Problem, ...]]:
    """Return the only document of `text` (None if there is none) and what is wrong."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    builder = _Builder()
    try:
        root = builder.build(iter(YAML(typ="rt").parse(text)))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 0
        builder.problems.append(("", line, f"not YAML: {error.problem}"))
        root = None
    except _TooDeepError:  # the rest is not even read: its cost grows with the depth
        root = None
    except YAMLError:
        builder.problems.append(
            ("", 0, "not YAML: it has a character that is not text")
        )
        root = None
    return root, tuple(builder.problems)


class _TooDeepError(Exception):
    """A problem after which nothing more is read."""


@frozen
class _Builder:
    """Makes nodes of events; `problems` are what it met on the way."""

    problems: list[Problem] = field(factory=list)

    def build(self, events: Iterator[Any]) -> Node | None:
        root: Node | None = None
        documents = 0
        for event in events:
            kind = type(event).__name__
            if kind == "DocumentStartEvent":
                documents += 1
                if documents == 2:
                    line = event.start_mark.line + 1
                    self.problems.append(("", line, "expected one document"))
            elif kind not in ("StreamStartEvent", "StreamEndEvent", "DocumentEndEvent"):
                node = self._node(event, events, "", 0)
                root = root or node
        return root

    def _node(self, event: Any, events: Iterator[Any], path: str, depth: int) -> Node:
        kind = type(event).__name__
        line = event.start_mark.line + 1
        start, end = event.start_mark.index, event.end_mark.index
        if kind == "AliasEvent":
            self.problems.append((path, line, "aliases are not supported"))
            return Leaf("", line, start, end)
        if event.anchor is not None:
            self.problems.append((path, line, "anchors are not supported"))
        if event.tag is not None:
            self.problems.append((path, line, "tags are not supported"))
        if kind == "ScalarEvent":
            plain = event.style in (None, "")
            return Leaf(event.value, line, start, end, plain)
        if depth == _MAX_DEPTH:
            self.problems.append((path, line, f"deeper than {_MAX_DEPTH} levels"))
            raise _TooDeepError
        if kind == "SequenceStartEvent":
            return self._row(event, events, path, depth)
        return self._branch(event, events, path, depth)

    def _row(self, opening: Any, events: Iterator[Any], path: str, depth: int) -> Row:
        items: list[Node] = []
        last = opening.end_mark.index
        for event in events:
            if type(event).__name__ == "SequenceEndEvent":
                last = event.end_mark.index if opening.flow_style else last
                break
            where = f"{path}[{len(items)}]"
            node = self._node(event, events, where, depth + 1)
            last = max(last, node.end)
            items.append(node)
        mark = opening.start_mark
        return Row(tuple(items), mark.line + 1, mark.index, last)

    def _branch(
        self, opening: Any, events: Iterator[Any], path: str, depth: int
    ) -> Branch:
        entries: dict[str, tuple[Leaf, Node]] = {}
        last = opening.end_mark.index
        flow = bool(opening.flow_style)
        for event in events:
            if type(event).__name__ == "MappingEndEvent":
                last = event.end_mark.index if flow else last
                break
            key = self._node(event, events, path, depth + 1)
            name = key.text if isinstance(key, Leaf) else ""
            where = f"{path}.{name}" if path else name
            value = self._node(next(events), events, where, depth + 1)
            if isinstance(value, Leaf) and value.start == value.end:
                # The parser places what was not written at the next token.
                value = Leaf(value.text, key.line, key.end, key.end, value.plain)
            last = max(last, key.end, value.end)
            if not isinstance(key, Leaf):
                self.problems.append((path, key.line, "expected a plain key"))
            elif name in entries:
                self.problems.append((where, key.line, "the key is there twice"))
            else:
                entries[name] = (key, value)
        mark = opening.start_mark
        return Branch(entries, mark.line + 1, mark.index, last, flow)


def set_scalars(text: str, section: str, values: Mapping[str, str]) -> str:
    """Return `text` with the members `values` of a top-level section set.

    Other members, comments and the order stay. The section is made when absent.

    Args:
        text: A document that `read_tree` reads without problems and whose top level
            is a mapping in block style.
        section: Name of the top-level mapping.
        values: Its members to be set.
    """
    root, problems = read_tree(text)
    if problems or not isinstance(root, Branch) or root.flow:
        raise ValueError("the document is not a sound block mapping")
    newline = "\r\n" if "\r\n" in text else "\n"
    entry = root.entries.get(section)
    if entry is None:
        lines = [f"{section}:", *(f"  {k}: {_scalar(v)}" for k, v in values.items())]
        return _insert_lines(text, root.end, lines, newline)
    key, node = entry
    if isinstance(node, Branch) and not node.flow and node.entries:
        return _set_members(text, node, values, newline)
    members = {}
    if isinstance(node, Branch):
        members = {k: text[v.start : v.end] for k, (_, v) in node.entries.items()}
    members.update((k, _scalar(v)) for k, v in values.items())
    indent = " " * (_column(text, key.start) + 2)
    text = text[: node.start] + text[node.end :]
    lines = [f"{indent}{k}: {v}".rstrip() for k, v in members.items()]
    return _insert_lines(text, node.start, lines, newline)


def _set_members(
    text: str, node: Branch, values: Mapping[str, str], newline: str
) -> str:
    first = next(iter(node.entries.values()))[0]
    indent = " " * _column(text, first.start)
    added = [
        f"{indent}{k}: {_scalar(v)}" for k, v in values.items() if k not in node.entries
    ]
    if added:
        text = _insert_lines(text, node.end, added, newline)
    # From the end, so that the places of what comes before stay right.
    present = [(k, *node.entries[k]) for k in values if k in node.entries]
    for name, key, value in sorted(present, key=lambda e: -e[1].start):
        start, end = value.start, value.end
        while end > start and text[end - 1] in "\r\n":
            end -= 1  # a block scalar ends behind its line
        new = _scalar(values[name])
        if start == key.end:  # nothing was written: go behind the colon
            start = end = text.index(":", key.end) + 1
            new = f" {new}"
        text = text[:start] + new + text[end:]
    return text


def _insert_lines(text: str, place: int, lines: list[str], newline: str) -> str:
    """Insert whole lines behind the line in which `place` is."""
    block = newline.join(lines)
    if place and text[place - 1] == "\n":
        return text[:place] + block + newline + text[place:]
    end = text.find("\n", place)
    if end < 0:
        return text + newline + block + newline
    return text[: end + 1] + block + newline + text[end + 1 :]


def _column(text: str, place: int) -> int:
    return place - (text.rfind("\n", 0, place) + 1)


def _scalar(value: str) -> str:
    if _PLAIN.fullmatch(value) and value not in _WORDS:
        return value
    return json.dumps(value, ensure_ascii=False)
