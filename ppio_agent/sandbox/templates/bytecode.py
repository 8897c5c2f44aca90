"""Compiled Python for the modules of a template, so that agents start without it.

Source: spec/performance.md, 10: missing `.pyc` files cost 0.3-2.4 s at a first start.
"""

from __future__ import annotations

import posixpath
import py_compile
import sys
import tempfile
from pathlib import Path

__all__ = ["cached_path", "compiled"]


def cached_path(source: str) -> str | None:
    """Return where Python looks for the compiled form of a module, or None.

    Example:
        >>> cached_path("pkg/mod.py").startswith("pkg/__pycache__/mod.")
        True
    """
    tag = sys.implementation.cache_tag
    folder, name = posixpath.split(source)
    if tag is None or not name.endswith(".py"):
        return None
    return posixpath.join(folder, "__pycache__", f"{name[:-3]}.{tag}.pyc")


def compiled(source: bytes, path: str) -> bytes | None:
    """Return the compiled form of a module; None if it has none.

    It carries a hash of its source, which Python compares: a module that is changed
    in its sandbox is compiled again, whatever the clocks say.

    Args:
        source: The module.
        path: Its path in the template.
    """
    with tempfile.TemporaryDirectory(prefix="ppio-compile-") as folder:
        module = Path(folder, "module.py")
        module.write_bytes(source)
        try:
            done = py_compile.compile(
                str(module),
                cfile=f"{module}c",
                dfile=path,
                doraise=True,
                invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH,
            )
        except (py_compile.PyCompileError, ValueError, RecursionError):
            return None  # whoever imports it learns what is wrong with it
        return None if done is None else Path(done).read_bytes()
