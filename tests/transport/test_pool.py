"""The pool: bounds, order, fairness."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from ppio_agent._util.clock import Deadline
from ppio_agent.exceptions import PoolTimeoutError
from ppio_agent.testing import FaultServer, reply
from ppio_agent.transport.calls import CallHandle
from ppio_agent.transport.connect import Connection
from ppio_agent.transport.messages import TransportConfig
from ppio_agent.transport.pool import ConnectionPool
from ppio_agent.transport.route import Origin, split_url
from tests.support import wait_until

Serve = Callable[..., FaultServer]

SOON = Deadline(None)


@pytest.fixture
def pool() -> Iterator[ConnectionPool]:
    """A pool of two connections, of which one is kept idle."""
    config = TransportConfig(max_connections=2, max_keepalive_connections=1)
    pool = ConnectionPool(config)
    yield pool
    pool.close()


def _origin(server: FaultServer) -> Origin:
    return split_url(server.url)[0]


def _get(
    pool: ConnectionPool, server: FaultServer, *, fresh: bool = False
) -> Connection:
    return pool.acquire(_origin(server), CallHandle(), SOON, fresh=fresh)


def _later(
    pool: ConnectionPool, server: FaultServer, into: list[object]
) -> threading.Thread:
    def run() -> None:
        try:
            into.append(_get(pool, server))
        except Exception as error:
            into.append(error)

    waiting = len(pool._waiting)
    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: len(pool._waiting) > waiting)
    return thread


def test_a_connection_is_used_again(serve: Serve, pool: ConnectionPool) -> None:
    """The one given back last, unless a fresh one is asked for."""
    server = serve(reply())
    one = _get(pool, server)
    pool.release(one, keep=True)
    assert _get(pool, server) is one
    pool.release(one, keep=True)
    other = _get(pool, server, fresh=True)
    assert other is not one
    pool.release(other, keep=False)
    assert pool.size == pool.idle == 1


def test_few_are_kept_idle_and_the_oldest_goes(
    serve: Serve, pool: ConnectionPool
) -> None:
    """Over all hosts."""
    a, b = serve(reply()), serve(reply())
    first, second = _get(pool, a), _get(pool, b)
    pool.release(first, keep=True)
    pool.release(second, keep=True)
    assert (pool.size, pool.idle) == (1, 1)
    assert _get(pool, b) is second
    pool.release(second, keep=False)


def test_an_idle_connection_makes_room_for_another_host(
    serve: Serve, pool: ConnectionPool
) -> None:
    """Nobody waits for what nobody uses."""
    a, b = serve(reply()), serve(reply())
    kept, used = _get(pool, a), _get(pool, a)
    pool.release(kept, keep=True)
    other = _get(pool, b)
    assert (pool.size, pool.idle) == (2, 0)
    for connection in (used, other):
        pool.release(connection, keep=False)
    assert pool.size == 0


def test_who_waits_longest_is_served_first(serve: Serve, pool: ConnectionPool) -> None:
    """With the connection itself if it fits, else with its place."""
    a, b = serve(reply()), serve(reply())
    held = [_get(pool, a), _get(pool, a)]
    first: list[object] = []
    second: list[object] = []
    threads = [_later(pool, a, first), _later(pool, b, second)]
    pool.release(held[0], keep=True)
    wait_until(lambda: first)
    assert first == [held[0]]
    assert second == []
    pool.release(held[1], keep=True)
    wait_until(lambda: second)
    assert isinstance(second[0], Connection)
    assert second[0].origin == _origin(b)
    assert pool.size == 2
    for thread in threads:
        thread.join(5.0)
    for connection in (held[0], second[0]):
        pool.release(connection, keep=False)


def test_waiting_ends_with_the_deadline(serve: Serve, pool: ConnectionPool) -> None:
    """The error says what to do; the line is empty again."""
    server = serve(reply())
    held = [_get(pool, server), _get(pool, server)]
    with pytest.raises(PoolTimeoutError, match="all 2 are in use") as caught:
        pool.acquire(_origin(server), CallHandle(), Deadline.after(0.05))
    assert caught.value.phase == "pool"
    assert not pool._waiting
    pool.allow(3)
    held.append(_get(pool, server))
    for connection in held:
        pool.release(connection, keep=False)
    assert pool.size == 0


def test_a_place_is_given_back_if_connecting_fails(
    serve: Serve, pool: ConnectionPool
) -> None:
    """As often as it fails."""
    server = serve(reply())
    server.close()
    for _ in range(5):
        with pytest.raises(ConnectionRefusedError):
            _get(pool, server)
    assert pool.size == 0


def test_a_connection_that_went_stale_is_replaced(
    serve: Serve, pool: ConnectionPool
) -> None:
    """It keeps its place."""
    server = serve(reply())
    connection = _get(pool, server)
    pool.release(connection, keep=True)
    wait_until(lambda: server.connections)
    server.drop_connections()
    wait_until(connection.is_stale)
    other = _get(pool, server)
    assert other is not connection
    assert pool.size == 1
    pool.release(other, keep=False)


def test_what_is_given_back_to_a_closed_pool_is_closed(
    serve: Serve, pool: ConnectionPool
) -> None:
    """Nothing is kept any more."""
    server = serve(reply())
    held = [_get(pool, server), _get(pool, server)]
    pool.release(held.pop(), keep=True)
    pool.close()
    assert (pool.size, pool.idle) == (1, 0)
    pool.release(held.pop(), keep=True)
    assert (pool.size, pool.idle) == (0, 0)


def test_giving_back_never_blocks(serve: Serve, pool: ConnectionPool) -> None:
    """A finalizer may do it on top of a thread that holds the lock."""
    server = serve(reply())
    connection = _get(pool, server)
    with pool._lock:
        pool.release(connection, keep=True)
        assert pool.idle == 0
    other = _get(pool, server)
    assert pool.idle + (other is connection) >= 1
    pool.release(other, keep=False)


def test_who_waits_gets_a_place_when_the_limit_is_raised(
    serve: Serve, pool: ConnectionPool
) -> None:
    """As many as fit, the one that came first before the others."""
    server = serve(reply())
    held: list[object] = [_get(pool, server), _get(pool, server)]
    first: list[object] = []
    second: list[object] = []
    threads = [_later(pool, server, first), _later(pool, server, second)]
    pool.allow(3)
    wait_until(lambda: first)
    assert (pool.size, second) == (3, [])
    pool.allow(4)
    for thread in threads:
        thread.join(5.0)
    for connection in (*held, *first, *second):
        assert isinstance(connection, Connection)
        pool.release(connection, keep=False)
    assert pool.size == 0
