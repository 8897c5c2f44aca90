"""Which files of a folder or an archive become part of a template. Pure.

One set of rules for both, applied before anything is written.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable, Sequence
from typing import BinaryIO, Final, Literal

from attrs import field, frozen

from .manifest import MANIFEST_NAME
from .yamltree import Problem

__all__ = ["Candidate", "Ignore", "link_escapes", "select"]

MAX_BYTES: Final = 512 * 1024 * 1024
MAX_FILES: Final = 20_000
_MAX_NAME_BYTES: Final = 255
# Below a data directory there has to be room for them in a path of the system.
_MAX_PATH_BYTES: Final = 1024
_MAX_LEVELS: Final = 64
_MAX_PROBLEMS: Final = 50

_ALWAYS_IGNORED: Final = re.compile(
    r"(?:.*/)?(?:\.git|__pycache__|[^/]*\.pyc|\.venv|node_modules|\.env[^/]*)"
)


@frozen(kw_only=True)
class Candidate:
    """Something found in the source of a template.

    Attributes:
        path: Where, as the source spells it, with `/`.
        kind: What it is; `other` is a device, a socket and the like.
        size: Bytes of a file.
        executable: Whether a file may be run.
        link: Where a symbolic link leads.
        open: Gives the content of a file.
    """

    path: str
    kind: Literal["file", "folder", "link", "other"]
    size: int = 0
    executable: bool = False
    link: str = ""
    open: Callable[[], BinaryIO] | None = field(default=None, repr=False)


class Ignore:
    """What is left out: what never belongs to a template, and `.dockerignore`.

    Args:
        dockerignore: Text of that file: one pattern a line, `!` takes in again, the
            last that fits decides.
    """

    def __init__(self, dockerignore: str = "") -> None:
        self._rules: list[tuple[re.Pattern[str], bool]] = []
        for line in dockerignore.splitlines():
            pattern = line.strip()
            if not pattern or pattern.startswith("#"):
                continue
            again = pattern.startswith("!")
            cleaned = posixpath.normpath(pattern.lstrip("!").strip().lstrip("/"))
            self._rules.append((_compiled(cleaned), again))

    def prunes(self, folder: str) -> bool:
        """Whether nothing in `folder` can be taken in."""
        if any(_ALWAYS_IGNORED.fullmatch(part) for part in _above(folder)):
            return True
        return self.ignores(folder) and not any(again for _, again in self._rules)

    def ignores(self, path: str) -> bool:
        """Whether `path` is left out, by itself or by a folder it is in."""
        above = _above(path)
        if any(_ALWAYS_IGNORED.fullmatch(part) for part in above):
            return True
        ignored = False
        for rule, again in self._rules:
            if any(rule.fullmatch(part) for part in above):
                ignored = not again
        return ignored


def _above(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[: n + 1]) for n in range(len(parts))]


def _compiled(pattern: str) -> re.Pattern[str]:
    """Return a `.dockerignore` pattern (`*`, `?`, `[…]`, `**`) as an expression."""
    out, i = "", 0
    while i < len(pattern):
        if pattern.startswith("**/", i):
            out, i = out + "(?:.*/)?", i + 3
        elif pattern.startswith("**", i):
            out, i = out + ".*", i + 2
        elif pattern[i] in "*?":
            out, i = out + ("[^/]*" if pattern[i] == "*" else "[^/]"), i + 1
        elif pattern[i] == "[" and (end := pattern.find("]", i + 2)) > 0:
            inner = pattern[i + 1 : end].replace("\\", r"\\").replace("[", r"\[")
            out, i = f"{out}[{inner}]", end + 1
        else:
            out, i = out + re.escape(pattern[i]), i + 1
    try:
        return re.compile(out)
    except re.error:  # such as a range that runs backwards: fits nothing but itself
        return re.compile(re.escape(pattern))


def link_escapes(path: str, target: str) -> bool:
    """Whether a symbolic link at `path` may lead out of the template.

    `..` is allowed only at the beginning of the target, where it steps through real
    folders; behind a name it could step out of what another link leads to.

    Example:
        >>> link_escapes("a/b", "../c"), link_escapes("a/b", "../../c")
        (False, True)
    """
    if target.startswith("/") or not target:
        return True
    parts = [part for part in target.split("/") if part not in ("", ".")]
    ups = 0
    while ups < len(parts) and parts[ups] == "..":
        ups += 1
    return ".." in parts[ups:] or ups > path.count("/")


def select(
    candidates: Iterable[Candidate], ignore: Ignore, *, manifest: str = MANIFEST_NAME
) -> tuple[list[Candidate], list[Problem]]:
    """Return the files and links of a template, sorted by path, and what is wrong.

    The manifest is left out: the template holds it as a document, without its secrets.

    Args:
        candidates: What the source holds; read until a limit is passed.
        ignore: What is left out.
        manifest: Path of the manifest.
    """
    kept: dict[str, Candidate] = {}
    problems: list[Problem] = []
    size = 0
    for found in candidates:
        if found.path == manifest or ignore.ignores(found.path):
            continue
        problem = _name_problem(found.path) or _kind_problem(found)
        if problem is None and found.path in kept:
            problem = "is there twice"
        if problem is not None:
            problems.append((_printable(found.path), 0, problem))
        elif found.kind != "folder":
            kept[found.path] = found
            size += found.size
        if size > MAX_BYTES or len(kept) > MAX_FILES:
            most = f"{MAX_BYTES >> 20} MiB or has more than {MAX_FILES} files"
            problems.append((".", 0, f"the template is larger than {most}"))
        if size > MAX_BYTES or len(kept) > MAX_FILES or len(problems) > _MAX_PROBLEMS:
            return [], problems
    problems += _shadowed(kept)
    return [kept[path] for path in sorted(kept)], problems


def _name_problem(path: str) -> str | None:
    try:
        raw = path.encode()
    except UnicodeEncodeError:
        return "the name is not UTF-8"
    parts = path.split("/")
    if path.startswith("/") or any(part in ("", ".", "..") for part in parts):
        return "the path leads out of the template"
    if "\0" in path or "\\" in path:
        return "the path has a backslash or a NUL character"
    if len(raw) > _MAX_PATH_BYTES or len(parts) > _MAX_LEVELS:
        return f"the path has more than {_MAX_LEVELS} levels or {_MAX_PATH_BYTES} bytes"
    if any(len(part.encode()) > _MAX_NAME_BYTES for part in parts):
        return f"the name is longer than {_MAX_NAME_BYTES} bytes"
    return None


def _kind_problem(found: Candidate) -> str | None:
    if found.kind == "other":
        return "is neither a file, a folder nor a symbolic link"
    if found.kind == "link":
        try:
            found.link.encode()
        except UnicodeEncodeError:
            return "the link is not UTF-8"
        if link_escapes(found.path, found.link):
            return "the symbolic link leads out of the template"
    return None


def _shadowed(kept: dict[str, Candidate]) -> Sequence[Problem]:
    """Return the entries below what is no folder; a link there could lead anywhere."""
    problems = []
    for path in kept:
        above = posixpath.dirname(path)
        while above:
            if above in kept:
                problems.append((path, 0, f"is below {above}, which is no folder"))
                break
            above = posixpath.dirname(above)
    return problems


def _printable(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode()
