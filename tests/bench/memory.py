"""What a process uses of memory, as Linux counts it."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["proportional_mib", "resident_mib"]


def resident_mib(pid: int) -> float:
    """Return the resident memory of a process, in MiB."""
    return _kib(Path(f"/proc/{pid}/status"), "VmRSS") / 1024


def proportional_mib(pid: int) -> float:
    """Return a process's memory, of shared pages its share (PSS), in MiB."""
    return _kib(Path(f"/proc/{pid}/smaps_rollup"), "Pss") / 1024


def _kib(path: Path, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", path.read_text(), re.MULTILINE)
    assert found is not None, f"{path} has no {name}"
    return int(found[1])
