"""The contract of every store of nonces, and how one is opened."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ppio_agent.exceptions import (
    ConfigurationError,
    RateLimitError,
    ServiceUnavailableError,
)
from ppio_agent.storage import open_nonces
from ppio_agent.storage.redis_nonces import RedisNonceStore
from ppio_agent.storage.sqlite_nonces import SqliteNonceStore
from ppio_agent.wire.signing import MemoryNonceStore, NonceStore
from tests.support import SLOW, wait_until
from tests.support_redis import RedisServer

N1, N2, N3 = "0123456789abcdef", "1123456789abcdef", "2123456789abcdef"


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("r"))
    yield server
    server.stop()


_databases = iter(range(16))


def _url(kind: str, request: pytest.FixtureRequest, folder: Path) -> str:
    if kind == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        return server.url(next(_databases))  # an empty one
    return f"sqlite:///{folder}/nonces/n.db"


@pytest.fixture(params=["memory", "sqlite", "redis"])
def make(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Callable[..., NonceStore]]:
    """Make stores of one kind; two of them share what they keep, but for memory."""
    made: list[NonceStore] = []
    url = "" if request.param == "memory" else _url(request.param, request, tmp_path)

    def make(**options: Any) -> NonceStore:
        if request.param == "memory":
            made.append(MemoryNonceStore(**options))
        elif request.param == "sqlite":
            path = url.removeprefix("sqlite:///")
            made.append(SqliteNonceStore(path, **options))
        else:
            made.append(RedisNonceStore(url, **options))
        return made[-1]

    yield make
    for store in made:
        store.close()


@pytest.fixture(params=["sqlite", "redis"])
def shared_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store for several processes."""
    return _url(request.param, request, tmp_path)


def test_a_nonce_counts_once_for_each_key(make: Callable[..., NonceStore]) -> None:
    """Two keys may choose the same one."""
    store = make()
    assert store.claim("a", N1, keep=600.0)
    assert not store.claim("a", N1, keep=600.0)
    assert store.claim("b", N1, keep=600.0)
    assert store.claim("a", N2, keep=600.0)


def test_a_nonce_is_remembered_as_long_as_asked(
    make: Callable[..., NonceStore],
) -> None:
    """Then it is forgotten; others are not."""
    store = make()
    assert store.claim("a", N1, keep=0.3)
    assert store.claim("b", N1, keep=600.0)
    assert not store.claim("a", N1, keep=0.3)
    wait_until(lambda: store.claim("a", N1, keep=600.0))
    assert not store.claim("b", N1, keep=600.0)


def test_a_full_key_is_refused_until_one_is_forgotten(
    make: Callable[..., NonceStore],
) -> None:
    """Only that key, and what it has used stays used."""
    store = make(limit=2)
    assert store.claim("a", N1, keep=0.5)
    assert store.claim("a", N2, keep=90.0)
    with pytest.raises(RateLimitError, match="with this key") as caught:
        store.claim("a", N3, keep=90.0)
    assert (caught.value.http_status, caught.value.retryable) == (429, True)
    assert caught.value.retry_after == 1.0
    assert not store.claim("a", N2, keep=90.0)
    assert store.claim("b", N3, keep=90.0)

    def claimed() -> bool:
        try:
            return store.claim("a", N3, keep=90.0)
        except RateLimitError:
            return False

    wait_until(claimed, what="the oldest is forgotten")
    with pytest.raises(RateLimitError) as caught:
        store.claim("a", N1, keep=90.0)
    assert caught.value.retry_after is not None
    assert 60 < caught.value.retry_after <= 90


def test_of_racing_threads_one_gets_each_nonce(
    make: Callable[..., NonceStore],
) -> None:
    """However many there are."""
    store = make()
    start = threading.Barrier(8)
    won: list[str] = []

    def race() -> None:
        start.wait()
        for number in range(25):
            nonce = f"{number:016}"
            if store.claim("a", nonce, keep=600.0):
                won.append(nonce)

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == [f"{number:016}" for number in range(25)]


RACE = """
import multiprocessing, sys
from ppio_agent.storage import open_nonces

def race(store):
    start.wait(30)
    store = open_nonces(store) if isinstance(store, str) else store
    won = [n for n in range(25) if store.claim("a", f"{n:016}", keep=600.0)]
    store.close()
    results.put(won)

context = multiprocessing.get_context("fork")
start, results = context.Barrier(4), context.Queue()
store = sys.argv[1] if sys.argv[2] == "late" else open_nonces(sys.argv[1])
racers = [context.Process(target=race, args=(store,)) for _ in range(4)]
for racer in racers:
    racer.start()
print(sorted(n for _ in racers for n in results.get(timeout=60)))
for racer in racers:
    racer.join(30)
"""


@pytest.mark.parametrize("opened", ["late", "before the fork"])
def test_of_racing_processes_one_gets_each_nonce(shared_url: str, opened: str) -> None:
    """Whether each opens the store, or their parent did before it started them."""
    # In a process of its own: this one has threads, which do not survive a fork.
    done = subprocess.run(
        [sys.executable, "-c", RACE, shared_url, opened],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == str(list(range(25))), done.stderr


def test_nonces_outlive_a_restart(shared_url: str) -> None:
    """An agent that is started anew does not take old requests again."""
    for fresh in (True, False):
        store = open_nonces(shared_url)
        assert store.claim("a", N1, keep=600.0) is fresh
        store.close()


def test_a_file_that_cannot_be_used_is_told_when_it_is_opened(tmp_path: Path) -> None:
    """Not at the first request."""
    (tmp_path / "n.db").write_bytes(b"this is no database" * 100)
    for path in ("n.db", "n.db/below", "."):
        with pytest.raises(ConfigurationError, match="cannot be used"):
            open_nonces(f"sqlite:///{tmp_path}/{path}")


def test_a_file_that_fails_later_admits_nobody(tmp_path: Path) -> None:
    """It is an error that passes, with its cause for the log."""
    store = SqliteNonceStore(tmp_path / "n.db")
    (tmp_path / "n.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(ServiceUnavailableError, match="cannot be told") as caught:
        store.claim("a", N1, keep=600.0)
    assert (caught.value.code, caught.value.retryable) == ("nonces_unavailable", True)
    assert caught.value.__cause__ is not None
    (tmp_path / "n.db").unlink()
    wait_until(lambda: _says(store, N1) is True)
    store.close()
    with pytest.raises(ServiceUnavailableError):
        store.claim("a", N2, keep=600.0)


@pytest.mark.parametrize("used", [False, True])
def test_a_file_that_others_hold_makes_nobody_wait_for_long(
    tmp_path: Path, used: bool
) -> None:
    """One second for all who come at once, not one after the other; then none."""
    path = tmp_path / "n.db"
    store = SqliteNonceStore(path)
    other = sqlite3.connect(path, isolation_level=None)
    said: list[bool | None] = []
    threads = [
        threading.Thread(target=lambda: said.append(_says(store, N2))) for _ in range(8)
    ]
    try:
        assert not used or store.claim("a", N1, keep=600.0)
        other.execute("BEGIN IMMEDIATE")
        before = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        said += [_says(store, N2) for _ in range(20)]
        assert 0.9 < time.monotonic() - before < 3 * SLOW
        assert said == [None] * 28
        other.execute("ROLLBACK")
        wait_until(lambda: _says(store, N2) is True)
    finally:
        other.close()
        store.close()


def test_a_server_that_is_away_admits_nobody(tmp_path: Path) -> None:
    """Nobody is listening, it does not answer, it comes back: no new store is needed."""
    server = RedisServer(tmp_path)
    store = open_nonces(server.url())
    try:
        assert store.claim("a", N1, keep=600.0)
        server.freeze()
        before = time.monotonic()
        for _ in range(20):  # of which the first waits
            with pytest.raises(ServiceUnavailableError):
                store.claim("a", N2, keep=600.0)
        assert time.monotonic() - before < 4 * SLOW
        server.thaw()
        wait_until(lambda: _says(store, N1) is False)
        server.stop()
        with pytest.raises(ServiceUnavailableError, match="cannot be told"):
            store.claim("a", N3, keep=600.0)
        server.start()
        wait_until(lambda: _says(store, N3) is True)
    finally:
        store.close()
        server.stop()


def _says(store: NonceStore, nonce: str) -> bool | None:
    try:
        return store.claim("a", nonce, keep=600.0)
    except ServiceUnavailableError:
        return None


@pytest.mark.parametrize("url", ["", "x", "sqlite:///", "http://secret@host", "redis:"])
def test_an_unknown_url_is_a_configuration_error(url: str) -> None:
    """It says what there is, and not what was in it."""
    with pytest.raises(ConfigurationError, match="use memory://") as caught:
        open_nonces(url)
    assert "secret" not in str(caught.value)


def test_a_redis_url_that_cannot_be_read_is_not_repeated() -> None:
    """It may hold a password."""
    with pytest.raises(ConfigurationError, match="check port and options") as caught:
        open_nonces("redis://:secret@host:secret")
    assert "secret" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_without_its_client_redis_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only whoever uses it needs it."""
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'ppio-agent\[redis\]'"):
        open_nonces("redis://localhost")


def test_the_stores_are_loaded_when_they_are_opened() -> None:
    """Neither library is in a process that keeps its nonces in memory."""
    code = (
        "import sys, ppio_agent.storage as s; s.open_nonces('memory://').close();"
        " print({'sqlite3', 'redis'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
