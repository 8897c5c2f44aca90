"""Identifiers and tokens."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import threading

from ppio_agent._util.ids import new_id, secret_token

FORKING = """
import os, sys
from ppio_agent._util.ids import new_id

def work(depth):
    for _ in range(50):
        ids.append(new_id())
    if depth and os.fork() == 0:
        ids.clear()
        work(depth - 1)
        os.write(1, "\\n".join(ids).encode() + b"\\n")
        os._exit(0)

ids = []
for _ in range(3):
    work(2)
    while True:
        try:
            os.wait()
        except ChildProcessError:
            break
os.write(1, "\\n".join(ids).encode() + b"\\n")
"""


def test_an_id_is_32_hex_digits() -> None:
    """Ids fit wherever a request id or a file name does."""
    assert re.fullmatch(r"[0-9a-f]{32}", new_id())


def test_ids_are_unique_over_threads() -> None:
    """Threads that start together share one counter and never one number."""
    together = threading.Barrier(8)
    found: list[list[str]] = []

    def take() -> None:
        together.wait()
        found.append([new_id() for _ in range(2000)])

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({each for ids in found for each in ids}) == 8 * 2000


def test_ids_are_unique_over_forks() -> None:
    """Children and grandchildren go on with keys of their own."""
    done = subprocess.run(
        [sys.executable, "-c", FORKING], capture_output=True, text=True, check=True
    )
    ids = done.stdout.split()
    assert len(ids) == 150 + 3 * (50 + 50)
    # Of its parent's ids a child has none: each process listed its own.
    assert len(set(ids)) == len(ids)


def test_an_id_does_not_tell_the_next() -> None:
    """Neighbours differ in many places, unlike numbers that are counted up."""
    ids = [new_id() for _ in range(100)]
    differing = [
        sum(a != b for a, b in zip(one, other, strict=True))
        for one, other in itertools.pairwise(ids)
    ]
    assert min(differing) > 16


def test_tokens_are_long_and_safe_in_urls() -> None:
    """A token needs no quoting in a URL or a header."""
    tokens = {secret_token() for _ in range(100)}
    assert len(tokens) == 100
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{43}", token) for token in tokens)
    assert len(secret_token(6)) == 8
