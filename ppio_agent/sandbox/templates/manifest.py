"""The manifest of an agent, `.ppio-agent.yaml`: text in, values or all problems out.

Pure. Source: spec/platform.md, section 4.
"""

from __future__ import annotations

import difflib
import math
import re
import sys
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from typing import Final, TypeVar

from attrs import field, frozen

from ppio_agent.exceptions import TemplateManifestError, WireError
from ppio_agent.wire.headers import valid_entrypoint
from ppio_agent.wire.json import Json
from ppio_agent.wire.times import format_time, parse_time

from .yamltree import Branch, Leaf, Node, Problem, Row, read_tree, set_scalars

__all__ = [
    "MANIFEST_NAME",
    "AgentManifest",
    "Host",
    "manifest_error",
    "parse_manifest",
    "with_status",
]

MANIFEST_NAME: Final = ".ppio-agent.yaml"

_MAX_TEXT: Final = 256 * 1024
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_TAG: Final = re.compile(r"[a-z0-9-]{1,32}")
_EMAIL: Final = re.compile(r"[^@\s]{1,64}@[^@\s]{1,189}")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TEMPLATE_ID: Final = re.compile(r"[a-z0-9]{20}")
_MEMORY: Final = re.compile(r"([0-9]{1,9})(Mi|Gi)")
_CPUS: Final = re.compile(r"([0-9]{1,6})m|([0-9]{1,4}(?:\.[0-9]{1,3})?)")
_NUMBER: Final = r"(?:0|[1-9][0-9]{0,8})"
_PRE: Final = r"[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*"
_SEMVER: Final = re.compile(
    rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}(?:-{_PRE})?(?:\+{_PRE})?", re.ASCII
)

_T = TypeVar("_T")
_Convert = Callable[[str], _T]


@frozen(kw_only=True)
class Host:
    """What the machine has, and so the most that a manifest may ask for."""

    memory_mb: int
    cpus: float


@frozen(kw_only=True)
class AgentManifest:
    """A manifest that holds together.

    Attributes:
        name: Name of the agent and of its template.
        version: Semantic version.
        author: E-mail address.
        description: Text for people; None if there is none.
        tags: Words to find it by.
        created: When it was made, if the file says so.
        entrypoint: The script, relative to the folder.
        env_vars: Variables for invocations; never part of the template.
        start_timeout: Seconds within which the agent has to be ready.
        memory_mb: Memory limit in MiB.
        cpus: CPU limit.
        template_id: Template to be deployed to, if the file names one.
        status: What the last deploy wrote, such as `template_id`.
    """

    name: str
    version: str
    author: str
    description: str | None = None
    tags: tuple[str, ...] = ()
    created: datetime | None = None
    entrypoint: str
    env_vars: Mapping[str, str] = field(factory=dict, repr=False)
    start_timeout: int = 60
    memory_mb: int = 1024
    cpus: float = 1.0
    template_id: str | None = None
    status: Mapping[str, str] = field(factory=dict)

    def document(self) -> dict[str, Json]:
        """Return the agent document: the manifest without status, secrets and target.

        Where it is deployed to and how that went are not part of what it is; otherwise
        the first deploy, which writes them into the file, would make the second differ.
        """
        metadata = {
            "name": self.name,
            "version": self.version,
            "author": self.author,
            "description": self.description,
            "tags": list(self.tags),
            "created": None if self.created is None else format_time(self.created),
        }
        return {
            "apiVersion": "v1",
            "kind": "Agent",
            "metadata": {k: v for k, v in metadata.items() if v is not None},
            "spec": {
                "entrypoint": self.entrypoint,
                "runtime": {
                    "timeout": self.start_timeout,
                    "memory_limit": f"{self.memory_mb}Mi",
                    "cpu_limit": f"{self.cpus:g}",
                },
            },
        }


def manifest_error(problems: Collection[Problem]) -> TemplateManifestError:
    """Return the error that lists every problem with its place.

    One without a path is of the whole document, and named by its file.
    """
    placed = [(path or MANIFEST_NAME, line, what) for path, line, what in problems]
    lines = [
        f"{path}{f' (line {line})' if line else ''}: {what}"
        for path, line, what in placed
    ]
    return TemplateManifestError(
        f"the template has {len(lines)} problem{'s' if len(lines) > 1 else ''}: "
        + "; ".join(lines),
        problems=tuple(placed),
    )


def parse_manifest(
    text: str, *, host: Host | None = None, files: Collection[str] | None = None
) -> AgentManifest:
    """Return the manifest that `text` holds.

    Args:
        text: The YAML document.
        host: The most memory and CPUs that may be asked for; None: no limit.
        files: Paths of the template, to check the entrypoint; None: not checked.

    Raises:
        TemplateManifestError: With all problems, in the order of their lines.
    """
    if len(text) > _MAX_TEXT:
        raise manifest_error([("", 0, f"longer than {_MAX_TEXT} characters")])
    root, found = read_tree(text.removeprefix("\ufeff"))
    reader = _Reader(problems=list(found))
    if not isinstance(root, Branch) or root.flow:
        if not found:
            reader.problems.append(("", 1, "expected a mapping in block style"))
        raise manifest_error(reader.problems)
    most = host or Host(memory_mb=sys.maxsize, cpus=math.inf)
    manifest = _read(root, reader, most, files)
    if manifest is None or reader.problems:
        raise manifest_error(sorted(reader.problems, key=lambda p: p[1]))
    return manifest


def with_status(text: str, status: Mapping[str, str]) -> str:
    """Return the manifest `text` with members of `status` set, the rest untouched."""
    mark = "\ufeff" if text.startswith("\ufeff") else ""
    return mark + set_scalars(text.removeprefix("\ufeff"), "status", status)


def _read(
    root: Branch, reader: _Reader, host: Host, files: Collection[str] | None
) -> AgentManifest | None:
    reader.scalar(root, "apiVersion", _one_of("v1"), required=True)
    reader.scalar(root, "kind", _one_of("Agent"), required=True)
    metadata = reader.branch(root, "metadata", required=True)
    spec = reader.branch(root, "spec", required=True)
    reader.known(spec, "spec", "entrypoint", "envVars", "runtime", "sandbox")
    runtime = reader.branch(spec, "spec.runtime")
    reader.known(runtime, "spec.runtime", "timeout", "memory_limit", "cpu_limit")
    sandbox = reader.branch(spec, "spec.sandbox")
    reader.known(sandbox, "spec.sandbox", "template_id")
    status = reader.branch(root, "status")

    name = reader.scalar(metadata, "metadata.name", _name, required=True)
    version = reader.scalar(metadata, "metadata.version", _semver, required=True)
    author = reader.scalar(metadata, "metadata.author", _email, required=True)
    script = _entrypoint_in(files)
    entrypoint = reader.scalar(spec, "spec.entrypoint", script, required=True)
    given = {
        "description": reader.scalar(metadata, "metadata.description", _description),
        "tags": reader.words(metadata, "metadata.tags", _tag, most=16),
        "created": reader.scalar(metadata, "metadata.created", _instant),
        "env_vars": reader.pairs(spec, "spec.envVars", _VARIABLE),
        "start_timeout": reader.scalar(runtime, "spec.runtime.timeout", _timeout),
        "memory_mb": reader.scalar(
            runtime, "spec.runtime.memory_limit", _memory_within(host.memory_mb)
        ),
        "cpus": reader.scalar(
            runtime, "spec.runtime.cpu_limit", _cpus_within(host.cpus)
        ),
        "template_id": reader.scalar(sandbox, "spec.sandbox.template_id", _template_id),
    }
    if name is None or version is None or author is None or entrypoint is None:
        return None
    return AgentManifest(
        name=name,
        version=version,
        author=author,
        entrypoint=entrypoint,
        status=_texts(status),
        **{k: v for k, v in given.items() if v is not None},  # type: ignore[arg-type]  # each was converted for its field
    )


def _texts(section: Branch | None) -> dict[str, str]:
    entries = section.entries.items() if section else ()
    return {k: v.text for k, (_, v) in entries if isinstance(v, Leaf) and not v.absent}


@frozen
class _Reader:
    """Takes values out of the tree and collects what is wrong with them.

    A path names a member of the section it is given: `metadata.name` is the member
    `name` of the mapping `metadata`.
    """

    problems: list[Problem]

    def _member(
        self, section: Branch | None, path: str, *, required: bool = False
    ) -> Node | None:
        if section is None:
            return None
        key = path.rpartition(".")[2]
        node = section.get(key)
        if node is None and required:
            written = section.entries.get(key)
            line = written[0].line if written else section.line
            self.problems.append((path, line, "is required"))
        return node

    def scalar(
        self,
        section: Branch | None,
        path: str,
        convert: _Convert[_T],
        *,
        required: bool = False,
    ) -> _T | None:
        node = self._member(section, path, required=required)
        if node is None:
            return None
        return self._converted(node, path, convert)

    def _converted(self, node: Node, path: str, convert: _Convert[_T]) -> _T | None:
        if not isinstance(node, Leaf):
            self.problems.append((path, node.line, "expected one value"))
            return None
        try:
            return convert(node.text)
        except ValueError as error:
            self.problems.append((path, node.line, str(error)))
            return None

    def branch(
        self, section: Branch | None, path: str, *, required: bool = False
    ) -> Branch | None:
        node = self._member(section, path, required=required)
        if node is None or isinstance(node, Branch):
            return node
        self.problems.append((path, node.line, "expected a mapping"))
        return None

    def known(self, section: Branch | None, path: str, *names: str) -> None:
        for name, (key, _) in section.entries.items() if section else ():
            if name in names:
                continue
            near = difflib.get_close_matches(name, names, 1)
            hint = f"did you mean {near[0]}?" if near else f"use {', '.join(names)}"
            self.problems.append((f"{path}.{name}", key.line, f"unknown key: {hint}"))

    def words(
        self, section: Branch | None, path: str, convert: _Convert[str], *, most: int
    ) -> tuple[str, ...] | None:
        node = self._member(section, path)
        if node is None:
            return None
        if not isinstance(node, Row) or len(node.items) > most:
            self.problems.append((path, node.line, f"expected a list of up to {most}"))
            return None
        read = [
            self._converted(item, f"{path}[{i}]", convert)
            for i, item in enumerate(node.items)
        ]
        return tuple(word for word in read if word is not None)

    def pairs(
        self, section: Branch | None, path: str, names: re.Pattern[str]
    ) -> dict[str, str] | None:
        branch = self.branch(section, path)
        if branch is None:
            return None
        read: dict[str, str] = {}
        for name, (key, node) in branch.entries.items():
            where = f"{path}.{name}"
            if names.fullmatch(name) is None:
                self.problems.append((where, key.line, "not a name of a variable"))
            value = self._converted(node, where, str)
            if value is not None:
                read[name] = value
        return read


def _one_of(word: str) -> _Convert[str]:
    def convert(text: str) -> str:
        if text != word:
            raise ValueError(f"expected {word}")
        return text

    return convert


def _matching(pattern: re.Pattern[str], message: str) -> _Convert[str]:
    def convert(text: str) -> str:
        if pattern.fullmatch(text) is None:
            raise ValueError(message)
        return text

    return convert


_name = _matching(
    _NAME, "expected 1 to 63 of a-z, 0-9 and -, not beginning or ending with -"
)
_semver = _matching(_SEMVER, "expected a semantic version such as 1.0.0")
_email = _matching(_EMAIL, "expected an e-mail address")
_tag = _matching(_TAG, "expected 1 to 32 of a-z, 0-9 and -")
_template_id = _matching(_TEMPLATE_ID, "expected a template id: 20 of a-z and 0-9")


def _description(text: str) -> str:
    if len(text) > 1024:
        raise ValueError("expected at most 1024 characters")
    return text


def _instant(text: str) -> datetime:
    try:
        return parse_time(text)
    except WireError as error:
        raise ValueError(error.message) from None


def _entrypoint_in(files: Collection[str] | None) -> _Convert[str]:
    def convert(text: str) -> str:
        if not valid_entrypoint(text):
            raise ValueError(
                "expected a .py file inside the folder, of the characters"
                " A-Z a-z 0-9 _ . / - and without .."
            )
        path = "/".join(part for part in text.split("/") if part not in ("", "."))
        if files is not None and path not in files:
            raise ValueError(f"there is no file {path} in the folder")
        return path

    return convert


def _timeout(text: str) -> int:
    if re.fullmatch(r"[0-9]{1,4}", text) is None or not 1 <= int(text) <= 3600:
        raise ValueError("expected whole seconds from 1 to 3600")
    return int(text)


def _memory_within(most: int) -> _Convert[int]:
    def convert(text: str) -> int:
        match = _MEMORY.fullmatch(text)
        if match is None:
            raise ValueError("expected an amount of memory such as 512Mi or 1Gi")
        mib = int(match[1]) * (1024 if match[2] == "Gi" else 1)
        if not 64 <= mib <= most:
            raise ValueError(f"expected from 64Mi to the machine's {most}Mi")
        return mib

    return convert


def _cpus_within(most: float) -> _Convert[float]:
    def convert(text: str) -> float:
        match = _CPUS.fullmatch(text)
        if match is None:
            raise ValueError("expected a number of CPUs such as 1 or 500m")
        cpus = int(match[1]) / 1000 if match[1] else float(match[2])
        if not 0.1 <= cpus <= most:
            raise ValueError(f"expected from 100m to the machine's {most:g} CPUs")
        return cpus

    return convert
