"""Connections that several transports use, each with its own calls."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable

import pytest

from ppio_agent._util.clock import Deadline
from ppio_agent.exceptions import ClientClosedError
from ppio_agent.testing import FaultServer, reply
from ppio_agent.transport.calls import CallHandle
from ppio_agent.transport.connect import Connection
from ppio_agent.transport.messages import TransportConfig
from ppio_agent.transport.route import split_url
from ppio_agent.transport.sharing import PoolShare, SharedPools
from tests.support import wait_until

Serve = Callable[..., FaultServer]

CONFIG = TransportConfig(max_connections=2)


def _get(share: PoolShare, server: FaultServer) -> Connection:
    origin = split_url(server.url)[0]
    return share.acquire(origin, CallHandle(), Deadline(None))


def test_an_equal_key_shares_connections(serve: Serve) -> None:
    """What one gives back the other takes; None is equal to nothing."""
    server, pools = serve(reply()), SharedPools()
    ann, bob, eve = (pools.join(key, CONFIG) for key in ("k", "k", "other"))
    connection = _get(ann, server)
    ann.release(connection, keep=True)
    assert _get(bob, server) is connection
    assert (eve.size, eve.pool is ann.pool) == (0, False)
    assert pools.join(None, CONFIG).pool is not pools.join(None, CONFIG).pool
    for share in (ann, bob, eve):
        share.close()
    bob.release(connection, keep=True)
    assert bob.size == 0


def test_closing_ends_the_calls_of_one(serve: Serve) -> None:
    """Those that wait, too; the other goes on, and its end is that of the pool."""
    server, pools = serve(reply()), SharedPools()
    ann, bob = pools.join("k", CONFIG), pools.join("k", CONFIG)
    held = [_get(bob, server), _get(bob, server)]
    found: list[object] = []
    mine, other = CallHandle(), CallHandle()
    ann.enter(mine)
    bob.enter(other)

    def run() -> None:
        try:
            ann.acquire(held[0].origin, mine, Deadline(None))
        except ClientClosedError as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: ann.pool._waiting)
    ann.close()
    ann.close()
    thread.join(5.0)
    assert len(found) == 1
    with pytest.raises(ClientClosedError):
        ann.enter(CallHandle())
    other.check()
    bob.release(held[0], keep=True)
    assert (bob.size, bob.idle) == (2, 1)
    bob.close()
    bob.release(held[1], keep=True)
    assert (bob.size, bob.idle) == (0, 0)
    assert pools.join("k", CONFIG).pool is not bob.pool


def test_a_pool_that_was_let_go_unclosed_waits_for_the_next(serve: Serve) -> None:
    """As of a client made for each request; no more than eight of them are kept."""
    server, pools = serve(reply()), SharedPools()
    share = pools.join("k", CONFIG)
    pool = share.pool
    share.release(_get(share, server), keep=True)
    del share
    gc.collect()
    for number in range(7):
        pools.join(number, CONFIG)
    assert pools.join("k", CONFIG).pool is pool
    for number in range(20):
        pools.join(number, CONFIG)
    assert pools.join("k", CONFIG).pool is not pool
    assert (pool.size, len(pools._pools)) == (0, 9)


def test_a_forked_child_has_none_of_its_parents_sockets(serve: Serve) -> None:
    """From the beginning, whether or not it uses the pool; the parent's serve on."""
    server, pools = serve(reply()), SharedPools()
    share = pools.join("k", CONFIG)
    connection = _get(share, server)
    share.release(connection, keep=True)
    number = connection._socket.fileno()
    pid = os.fork()
    if pid == 0:
        fresh = pools.join("k", CONFIG)
        closed = connection._socket.fileno() == -1
        share.close()
        os._exit(0 if closed and fresh.pool is not share.pool else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert connection._socket.fileno() == number
    assert _get(share, server) is connection
    share.release(connection, keep=False)
    share.close()
