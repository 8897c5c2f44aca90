"""Blobs: whole or not there, kept once, never changed."""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import ExitStack
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import IO

import pytest

from ppio_agent.sandbox.templates.blobs import BlobStore


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


def test_a_blob_is_found_by_its_digest(blobs: BlobStore) -> None:
    digest, size = blobs.add(BytesIO(b"hello"))

    assert (sha256(b"hello").hexdigest(), 5) == (digest, size)
    assert blobs.read(digest) == b"hello"


def test_equal_content_is_kept_once_and_read_only(
    blobs: BlobStore, tmp_path: Path
) -> None:
    digest = blobs.add_bytes(b"x")
    blobs.add_bytes(b"x")

    files = [p for p in (tmp_path / "blobs").rglob("*") if p.is_file()]
    assert files == [tmp_path / "blobs" / digest[:2] / digest]
    assert files[0].stat().st_mode & 0o777 == 0o400


def test_a_copy_is_a_file_of_its_own(blobs: BlobStore, tmp_path: Path) -> None:
    digest = blobs.add_bytes(b"x")
    blobs.copy(digest, tmp_path / "a")
    blobs.copy(digest, tmp_path / "b", executable=True)
    (tmp_path / "a").write_bytes(b"changed")

    assert blobs.read(digest) == b"x"
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in "ab"]
    assert modes == [0o644, 0o755]


def test_a_copy_shares_blocks_where_the_file_system_can(
    blobs: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system makes the copy then, by a call that is Linux's."""
    digest = blobs.add_bytes(b"x")

    def clone(to: IO[bytes], what: int, source: int) -> None:
        to.write(b"%x of " % what + os.pread(source, 9, 0))

    monkeypatch.setattr(fcntl, "ioctl", clone)
    blobs.copy(digest, tmp_path / "a", executable=True)

    assert (tmp_path / "a").read_bytes() == b"40049409 of x"
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o755


def test_where_blocks_cannot_be_shared_that_is_tried_once(
    blobs: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file of each sandbox would be opened once more."""
    tried: list[int] = []

    def refuse(_: object, what: int, __: int) -> None:
        tried.append(what)
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    digest = blobs.add_bytes(b"x")
    for name in "abc":
        blobs.copy(digest, tmp_path / name)

    assert [(tmp_path / name).read_bytes() for name in "abc"] == [b"x"] * 3
    assert len(tried) == 1


def test_a_write_that_fails_leaves_nothing(blobs: BlobStore, tmp_path: Path) -> None:
    class Failing(BytesIO):
        reads = 0

        def read(self, size: int | None = -1, /) -> bytes:
            self.reads += 1
            if self.reads == 4:
                raise OSError("gone")
            return super().read(1)

    with pytest.raises(OSError, match="gone"):
        blobs.add(Failing(b"x"))

    assert list((tmp_path / "blobs").iterdir()) == []


def test_what_nobody_refers_to_is_removed(blobs: BlobStore, tmp_path: Path) -> None:
    kept, dropped = blobs.add_bytes(b"1"), blobs.add_bytes(b"2")
    (tmp_path / "blobs" / "new-leftover").write_bytes(b"torn")

    assert blobs.keep_only({kept}) == 2
    assert blobs.read(kept) == b"1"
    with pytest.raises(FileNotFoundError):
        blobs.read(dropped)


def test_what_is_held_stays_until_nobody_holds_any(
    blobs: BlobStore, tmp_path: Path
) -> None:
    """Also what is held no more by who has added it, while another one looks."""
    known = blobs.add_bytes(b"1")
    with ExitStack() as deploy, blobs.holding():
        deploy.enter_context(blobs.holding())
        assert blobs.hold(known)
        assert not blobs.hold("0" * 64)
        added = blobs.add_bytes(b"2")
        deploy.close()

        assert blobs.keep_only(set()) == 0
        assert (blobs.read(known), blobs.read(added)) == (b"1", b"2")
    assert blobs.keep_only(set()) == 2


def test_what_is_being_written_is_held(blobs: BlobStore) -> None:
    """It may be for long, as from a slow disk."""

    class Slow(BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            assert blobs.keep_only(set()) == 0
            return super().read(size)

    with blobs.holding():
        digest, _ = blobs.add(Slow(b"x"))
    assert blobs.read(digest) == b"x"
