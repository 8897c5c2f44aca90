"""Files that are replaced as a whole."""

from __future__ import annotations

import resource
import signal
from pathlib import Path

import pytest

from ppio_agent._util.files import replace_file


def test_a_file_is_made_and_replaced_with_its_mode(tmp_path: Path) -> None:
    """And nothing else is left beside it."""
    path = tmp_path / "record"
    for content, mode in ((b"one", 0o600), (b"another", 0o644)):
        replace_file(path, content, mode=mode)
        assert path.read_bytes() == content
        assert path.stat().st_mode & 0o777 == mode
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_leaves_the_former(tmp_path: Path) -> None:
    """As on a full disk: it is as it was, and no half of the next is beside it."""
    path = tmp_path / "record"
    replace_file(path, b"one", mode=0o600)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            replace_file(path, bytes(2000), mode=0o600)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]
