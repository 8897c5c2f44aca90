"""The ladder of layers, the public names and the cost of an import."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ppio_agent

ROOT = Path(ppio_agent.__file__).parent

LAYER = {
    "_version": 0, "_util": 0, "exceptions": 0,
    "wire": 1,
    "hooks": 2,
    "agent": 3, "storage": 3, "transport": 3, "web": 3,
    "serving": 4, "client": 4, "sandbox": 4, "actors": 4,
    "runtime": 5, "orchestrator": 5,
    "testing": 6, "aio": 6, "cli": 6, "console": 6,
}  # fmt: skip

HOMES = {
    "cryptography": {"sandbox"},
    "django": {"client"},
    "requests": {"transport"},
    "urllib3": {"transport"},
    "waitress": {"web"},
    "sqlite3": {"storage"},
    "redis": {"storage"},
    "psycopg": {"storage"},
    "sqlalchemy": {"storage"},
    "rich": {"cli", "client"},
    "h11": {"sandbox"},
    "openai": {"actors"},
    "opentelemetry": {"agent"},
    "pytest": {"testing"},
}
"""Libraries that only these packages may import."""


def _modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def _part(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def _imports(path: Path) -> Iterator[tuple[str, int]]:
    """Yield (absolute module, line) of every import, type-only ones included."""
    package = ("ppio_agent", *path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = ".".join((*base, *filter(None, [node.module])))
            yield stem, node.lineno
            for alias in node.names:
                yield f"{stem}.{alias.name}", node.lineno


def test_every_part_has_a_layer() -> None:
    """A new package must take its place in the ladder."""
    parts = {_part(path) for path in _modules()} - {"__init__"}
    assert parts <= LAYER.keys()


@pytest.mark.parametrize("path", _modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down_only(path: Path) -> None:
    """No part imports one beside or above it, nor a library that has another home."""
    part = _part(path)
    wrong = []
    for module, line in _imports(path):
        top, _, rest = module.partition(".")
        if top in HOMES and part not in HOMES[top]:
            wrong.append(f"line {line}: {top} is for {sorted(HOMES[top])} only")
        other = rest.partition(".")[0]
        known = top == "ppio_agent" and other in LAYER and part in LAYER
        if known and other != part and LAYER[other] >= max(LAYER[part], 1):
            wrong.append(f"line {line}: {part} must not import {other}")
    assert wrong == []


def _public_modules() -> list[str]:
    names = ["ppio_agent"]
    for info in pkgutil.walk_packages([str(ROOT)], "ppio_agent."):
        if not info.name.rpartition(".")[2].startswith("__"):
            names.append(info.name)
    return names


@pytest.mark.parametrize("name", _public_modules())
def test_exports_exist(name: str) -> None:
    """Every module with code lists its public names and has each of them."""
    module = importlib.import_module(name)
    exports = getattr(module, "__all__", None)
    source = Path(module.__file__ or "").read_text()
    if exports is None:
        body = ast.parse(source).body
        assert all(isinstance(node, ast.Expr) for node in body), "has code, no __all__"
        return
    assert [n for n in exports if not hasattr(module, n)] == []


def test_type_checkers_see_the_same_root() -> None:
    """The stub beside the lazy root names exactly what the root gives, from there."""
    stub = ast.parse((ROOT / "__init__.pyi").read_text())
    seen = {
        alias.asname: f"{node.module}"
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen.pop("__version__") == "_version"
    assert seen == ppio_agent._HOME_OF


def _run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_root_is_lazy() -> None:
    """`import ppio_agent` loads nothing of others; its names appear when used."""
    heavy = "{'flask', 'requests', 'rich', 'click', 'django', 'attrs', 'waitress'}"
    assert (
        _run(f"import sys, ppio_agent; print(sorted({heavy} & set(sys.modules)))")
        == "[]"
    )
    assert _run("import ppio_agent; print(ppio_agent.ValidationError.code)") == (
        "validation_error"
    )


def test_a_server_process_loads_no_client() -> None:
    """An agent's process stays small: neither requests nor the command line in it."""
    heavy = (
        "{'requests', 'rich', 'click', 'sqlite3', 'flask', 'ppio_agent.client',"
        " 'opentelemetry', 'ppio_agent.serving.openapi', 'ppio_agent.web.logs'}"
    )
    code = f"import sys, ppio_agent.serving; print(sorted({heavy} & set(sys.modules)))"
    assert _run(code) == "[]"


def test_files_stay_readable() -> None:
    """No file of the package has more than 500 lines."""
    long = {str(p.relative_to(ROOT)): n for p in _modules()
            if (n := len(p.read_text().splitlines())) > 500}  # fmt: skip
    # The tree of errors is one idea and is read by its docstring.
    long.pop("exceptions.py", None)
    assert long == {}
