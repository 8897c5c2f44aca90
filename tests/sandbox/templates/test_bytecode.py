"""Compiled modules: used when they fit their source, left aside when they do not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ppio_agent.sandbox.templates.bytecode import cached_path, compiled


def _run(folder: Path) -> str:
    # What it compiles it does not write, or that would be told, too.
    command = [sys.executable, "-Bv", "-c", "import mod; print(mod.X, mod.__file__)"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=True
    )
    used = "matches" in done.stderr and "mod.cpython" in done.stderr
    return f"{done.stdout.split()[0]} {'cached' if used else 'compiled'}"


def test_python_uses_the_compiled_module_until_its_source_changes(
    tmp_path: Path,
) -> None:
    source, cached = b"X = 1\n", cached_path("mod.py")
    code = compiled(source, "mod.py")
    assert cached is not None
    assert code is not None
    (tmp_path / "mod.py").write_bytes(source)
    (tmp_path / cached).parent.mkdir()
    (tmp_path / cached).write_bytes(code)

    assert _run(tmp_path) == "1 cached"
    (tmp_path / "mod.py").write_bytes(b"X = 2\n")
    assert _run(tmp_path) == "2 compiled"


def test_what_does_not_compile_is_left_to_its_importer() -> None:
    assert compiled(b"def", "a.py") is None
    assert compiled(b"\0", "a.py") is None


def test_only_modules_have_a_compiled_form() -> None:
    assert cached_path("a.txt") is None
