"""Tests of the store of actors in a PostgreSQL server."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from ppio_agent._util.ids import new_id
from ppio_agent.exceptions import (
    ConfigurationError,
    ServiceUnavailableError,
    ValidationError,
)
from ppio_agent.storage.actors import open_actor_store, postgres_hints
from ppio_agent.storage.actors import postgres as postgres_module
from ppio_agent.storage.actors.postgres import PostgresActorStore
from ppio_agent.storage.actors.records import (
    Acceptance,
    Hint,
    HintKind,
    Limits,
    RequestRecord,
    SetValue,
)
from ppio_agent.storage.actors.sql_tables import Session
from ppio_agent.testing.actor_store import ActorStoreContract
from ppio_agent.wire.actors import ActorId, RequestStatus
from tests.support import SLOW, new_threads, wait_until
from tests.support_postgres import PostgresServer

from .support_worker import count_turn

ACTOR = ActorId("echo", "c-1")
LIMITS = Limits(mailbox=1000)

Open = Callable[[str], PostgresActorStore]


@pytest.fixture
def open_store() -> Iterator[Open]:
    """Open stores, which are closed after the test."""
    with ExitStack() as stores:

        def open_store(url: str) -> PostgresActorStore:
            store = PostgresActorStore(url)
            stores.callback(store.close)
            return store

        yield open_store


def request(number: int, actor_id: ActorId = ACTOR, method: str = "") -> RequestRecord:
    return RequestRecord(actor_id, f"m{number}", method=method)


# The contract.


@pytest.fixture(scope="module")
def pair(
    postgres: PostgresServer,
) -> Iterator[tuple[PostgresActorStore, PostgresActorStore, str]]:
    """Two stores of the same data, and what empties it."""
    url = postgres.url()
    one, other = PostgresActorStore(url), PostgresActorStore(url)
    schema = url.rpartition("=")[2]
    tables = postgres.execute(
        "SELECT tablename FROM pg_tables WHERE schemaname = %s"
        " AND tablename <> 'actor_meta'",
        (schema,),
    )
    yield one, other, ";".join(f"DELETE FROM {schema}.{name}" for (name,) in tables)
    one.close()
    other.close()


class TestContract(ActorStoreContract):
    """`PostgresActorStore` does what every store does."""

    @pytest.fixture
    def store(
        self,
        postgres: PostgresServer,
        pair: tuple[PostgresActorStore, PostgresActorStore, str],
    ) -> PostgresActorStore:
        postgres.execute(pair[2])
        return pair[0]

    @pytest.fixture
    def peer(
        self, pair: tuple[PostgresActorStore, PostgresActorStore, str]
    ) -> PostgresActorStore:
        return pair[1]

    def test_a_store_is_closed_any_number_of_times(
        self, postgres: PostgresServer
    ) -> None:
        """The second time nothing happens; nothing is done after the first one."""
        store = PostgresActorStore(postgres.url())
        store.close()
        store.close()
        with pytest.raises(ServiceUnavailableError, match="is closed"):
            store.pending()


# Two processes.


class Worker:
    """A process of `tests.storage.actors.support_worker`."""

    def __init__(self, url: str, name: str, ttl: float, *mode: str) -> None:
        module = "tests.storage.actors.support_worker"
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, url, name, str(ttl), *mode],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self.kill = self._process.kill
        self.signal = self._process.send_signal

    def line(self) -> str:
        return self._stdout.readline().strip()

    def end(self) -> str:
        """Let it end, and return what it said."""
        said, _ = self._process.communicate("\n", timeout=20 * SLOW)
        return said

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def test_a_worker_that_slept_past_its_lease_cannot_commit(
    postgres: PostgresServer, open_store: Open
) -> None:
    """Who took the actor over ends the request; what the sleeper did is not kept."""
    url = postgres.url()
    store = open_store(url)
    store.accept(request(1), LIMITS)
    with Worker(url, "sleeper", 0.3, "pause") as sleeper:
        assert sleeper.line() == "taken"
        sleeper.signal(signal.SIGSTOP)
        store.heartbeat("other", 30.0)
        wait_until(lambda: store.claim("other", ACTOR), what="the lease ends")
        lease = store.claim("other", ACTOR)
        assert lease is not None
        record = store.take(lease).record
        assert record is not None
        assert record.attempt == 2
        store.commit(lease, count_turn(store, record))
        sleeper.signal(signal.SIGCONT)
        assert sleeper.end() == "lost\n"
    ended = store.get_request(ACTOR, "m1")
    assert ended is not None
    assert ended.status is RequestStatus.COMPLETED
    assert store.read(ACTOR).values == {"count": b"1"}


def test_every_request_ends_once_without_a_wake_and_with_a_worker_killed(
    postgres: PostgresServer, open_store: Open
) -> None:
    """Workers that only look what is ready do all there is, each turn once."""
    url = postgres.url()
    store = open_store(url)
    sources = [ActorId("source", str(n)) for n in range(6)]
    sent = [(actor_id, n) for n in range(10) for actor_id in sources]
    with Worker(url, "a", 0.5) as first, Worker(url, "b", 0.5) as second:
        for actor_id, n in sent:
            method = "forward" if n % 2 else ""
            outcome = store.accept(request(n, actor_id, method), LIMITS).outcome
            assert outcome is Acceptance.NEW
            if len(sent) // 2 == n * len(sources):
                first.kill()
        wait_until(lambda: store.pending() == 0, timeout=20, what="all ends")
        sinks = [ActorId("sink", str(n)) for n in range(6)]
        wait_until(
            lambda: all(store.read(sink).values == {"count": b"5"} for sink in sinks),
            timeout=20, what="what was sent arrives, once",
        )  # fmt: skip
        assert second.end() == ""
    for actor_id, n in sent:
        record = store.get_request(actor_id, f"m{n}")
        assert record is not None
        assert record.status is RequestStatus.COMPLETED
    assert [store.read(a).values for a in sources] == [{"count": b"10"}] * 6


# Hints.


def test_hints_go_to_others_and_soon(
    postgres: PostgresServer, open_store: Open
) -> None:
    """Who subscribes is told of what other stores do, until it is closed."""
    url = postgres.url()
    ours, other = open_store(url), open_store(url)
    heard: list[Hint] = []
    own: list[Hint] = []
    ours.subscribe(own.append)
    subscription = other.subscribe(heard.append)
    wait_for_hint(ours, heard)
    heard.clear()
    ours.accept(request(1), LIMITS)
    ours.cancel(ACTOR, "m1")
    wait_until(lambda: len(heard) == 2)
    assert heard == [
        Hint(HintKind.READY, ACTOR, "m1"),
        Hint(HintKind.ENDED, ACTOR, "m1"),
    ]
    assert own == []
    subscription.close()
    subscription.close()
    ours.accept(request(2), LIMITS)
    more: list[Hint] = []
    other.subscribe(more.append)
    wait_for_hint(ours, more)
    assert len(heard) == 2


def wait_for_hint(store: PostgresActorStore, heard: list[Hint]) -> None:
    """Return when a hint was heard: listening begins at some time after `subscribe`."""

    def send() -> str:
        record = RequestRecord(ActorId("echo", "warm"), new_id())
        assert store.accept(record, LIMITS).outcome is Acceptance.NEW
        return record.message_id

    wait_until(lambda: send() and heard, what="a hint")
    last = send()
    wait_until(lambda: heard[-1].message_id == last, what="the last hint")


def test_hints_go_on_after_their_connection_was_lost(
    postgres: PostgresServer, open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was lost meanwhile stays lost; a subscriber that fails hinders nobody."""
    monkeypatch.setattr(postgres_hints, "_REST", 0.05)
    url = postgres.url()
    ours, other = open_store(url), open_store(url)
    heard: list[Hint] = []
    other.subscribe(lambda _: 1 / 0)
    other.subscribe(heard.append)
    wait_for_hint(ours, heard)
    postgres.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = 'ppio-agent'"
    )
    heard.clear()
    wait_for_hint(ours, heard)


def test_what_others_say_on_the_channel_is_no_hint(
    postgres: PostgresServer, open_store: Open
) -> None:
    """Foreign notifications are passed over."""
    url = postgres.url()
    schema = url.rpartition("=")[2]
    ours, other = open_store(url), open_store(url)
    heard: list[Hint] = []
    other.subscribe(heard.append)
    wait_for_hint(ours, heard)
    heard.clear()
    for text in ("", "hello", "ready\tm\tnothing", "none\tm\ta/b", "a\tb\tc\td"):
        postgres.execute("SELECT pg_notify(%s, %s)", (schema, text))
    ours.accept(request(1), LIMITS)
    wait_until(lambda: heard)
    assert heard == [Hint(HintKind.READY, ACTOR, "m1")]


def test_close_ends_threads_and_connections(postgres: PostgresServer) -> None:
    """A store that exchanged hints leaves nothing behind; closing twice is fine."""
    threads = new_threads("ppio-actor-hints")
    url = postgres.url() + "&application_name=closing"
    store = PostgresActorStore(url)
    store.accept(request(1), LIMITS)
    assert threads() == ["ppio-actor-hints-1"]
    store.close()
    store.close()
    assert threads() == []
    wait_until(
        lambda: (
            not postgres.execute(
                "SELECT 1 FROM pg_stat_activity WHERE application_name = 'closing'"
            )
        )
    )


# The server.


def test_a_server_that_was_started_anew_is_used_at_once(
    postgres: PostgresServer, open_store: Open
) -> None:
    """Connections that were lost while they were idle are not noticed by callers."""
    store = open_store(postgres.url())
    store.accept(request(1), LIMITS)
    postgres.stop()
    with pytest.raises(ServiceUnavailableError, match="does not answer"):
        store.accept(request(2), LIMITS)
    postgres.start()
    assert store.accept(request(2), LIMITS).outcome is Acceptance.NEW
    record = store.get_request(ACTOR, "m1")
    assert record is not None
    assert record.status is RequestStatus.PENDING


def test_no_server() -> None:
    """Opening says that nobody answers, and not the password."""
    url = "postgresql+psycopg://me:hidden@127.0.0.1:1/none"
    with pytest.raises(ServiceUnavailableError) as caught:
        PostgresActorStore(url)
    assert "hidden" not in str(caught.value)


def test_one_who_stops_amid_a_transaction_does_not_stop_others_for_ever(
    postgres: PostgresServer, open_store: Open
) -> None:
    """The server gives up on a transaction in which nothing comes any more."""
    url = postgres.url()
    option = "&options=-cidle_in_transaction_session_timeout%3D300ms"
    stuck, other = open_store(url + option), open_store(url)
    let_go = threading.Event()

    def stop_amid() -> None:
        def work(session: Session) -> None:
            session.run("LOCK TABLE actor", {})
            let_go.wait(10 * SLOW)
            session.run("SELECT 1", {})

        stuck._write(work)

    with ThreadPoolExecutor(1) as threads:
        ended = threads.submit(stop_amid)
        wait_until(
            lambda: postgres.execute(
                "SELECT 1 FROM pg_locks WHERE mode = 'AccessExclusiveLock'"
            )
        )
        assert other.accept(request(1), LIMITS).outcome is Acceptance.NEW
        let_go.set()
        ended.result()  # it was run again, as nothing of it was kept


def test_the_clock_is_the_servers(
    postgres: PostgresServer, open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine whose own clock is wrong tells the same time."""
    store = open_store(postgres.url())
    right, local = store.now(), time.time
    monkeypatch.setattr(time, "time", lambda: local() - 3600.0)
    store.heartbeat("w", 1.0)
    assert abs(store.now() - right) < 60.0


def test_a_full_disk_is_told_as_such(
    postgres: PostgresServer, open_store: Open
) -> None:
    """As a store in a file does; once there is room it goes on."""
    url = postgres.url()
    store = open_store(url)
    schema = url.rpartition("=")[2]
    postgres.execute(
        f"CREATE FUNCTION {schema}.fill() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE disk_full; END $$"
    )
    postgres.execute(
        f"CREATE TRIGGER fill BEFORE INSERT ON {schema}.actor_request"
        f" EXECUTE FUNCTION {schema}.fill()"
    )
    with pytest.raises(OSError, match="No space left") as caught:
        store.accept(request(1), LIMITS)
    assert caught.value.errno == errno.ENOSPC
    postgres.execute(f"DROP TRIGGER fill ON {schema}.actor_request")
    assert store.accept(request(1), LIMITS).outcome is Acceptance.NEW


def test_who_gets_no_connection_in_time_is_told_so(
    postgres: PostgresServer, open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool is bounded, and so is the wait for it."""
    monkeypatch.setattr(postgres_module, "_POOL_PATIENCE", 0.05)
    store = open_store(postgres.url() + "&pool_size=1")
    with store._engine.connect(), pytest.raises(ServiceUnavailableError, match="try"):
        store.pending()
    assert store.pending() == 0


# Races.


def test_a_mailbox_takes_no_more_than_its_limit_from_racing_processes(
    postgres: PostgresServer, open_store: Open
) -> None:
    """Its limit is exact, whoever sends."""
    url = postgres.url()
    stores = [open_store(url), open_store(url)]

    def send(number: int) -> Acceptance:
        store = stores[number % 2]
        return store.accept(request(number), Limits(mailbox=20)).outcome

    with ThreadPoolExecutor(8) as threads:
        outcomes = list(threads.map(send, range(60)))
    assert outcomes.count(Acceptance.NEW) == 20
    assert outcomes.count(Acceptance.FULL) == 40


def test_one_id_from_many_threads_is_accepted_once(
    postgres: PostgresServer, open_store: Open
) -> None:
    """Also when the actor is not known yet."""
    url = postgres.url()
    stores = [open_store(url), open_store(url)]
    with ThreadPoolExecutor(8) as threads:
        accepted = list(
            threads.map(lambda n: stores[n % 2].accept(request(1), LIMITS), range(24))
        )
    outcomes = [one.outcome for one in accepted]
    assert outcomes.count(Acceptance.NEW) == 1
    assert outcomes.count(Acceptance.DUPLICATE) == 23


def test_a_claim_that_waited_for_another_one_sees_who_lives_now(
    postgres: PostgresServer, open_store: Open
) -> None:
    """The other's worker began to live while it waited."""
    url = postgres.url()
    first, second = open_store(url), open_store(url)
    first.accept(request(1), LIMITS)
    is_held, go_on = threading.Event(), threading.Event()

    def claim_slowly(session: Session) -> None:
        session.run("UPDATE actor SET worker = 'first', token = token + 1", {})
        is_held.set()
        go_on.wait(10 * SLOW)

    with ThreadPoolExecutor(2) as threads:
        claimed = threads.submit(first._write, claim_slowly)
        is_held.wait(10 * SLOW)
        late = threads.submit(second.claim, "second", ACTOR)
        waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        wait_until(lambda: postgres.execute(waits), what="the second claim waits")
        first.heartbeat("first", 60.0)
        go_on.set()
        claimed.result()
        assert late.result() is None


def test_several_make_the_tables_at_once(
    postgres: PostgresServer, open_store: Open
) -> None:
    """Machines that start together do not stand in each other's way."""
    url = postgres.url()
    with ThreadPoolExecutor(4) as threads:
        stores = list(threads.map(open_store, [url] * 4))
    assert [store.pending() for store in stores] == [0] * 4


def test_transactions_that_cannot_both_be_are_run_again(
    postgres: PostgresServer, open_store: Open
) -> None:
    """Of two that wait for each other the server ends one; its caller sees nothing."""
    store = open_store(postgres.url())
    both = threading.Barrier(2)

    def change(first: str, second: str) -> int:
        def work(session: Session) -> int:
            nonlocal tries
            tries += 1
            statement = (
                "INSERT INTO actor_wait VALUES (:waiter, '') ON CONFLICT DO NOTHING"
            )
            session.run(statement, {"waiter": first})
            if tries <= 2:
                both.wait(10 * SLOW)
            return session.run(statement, {"waiter": second})

        return store._write(work)

    tries = 0
    with ThreadPoolExecutor(2) as threads:
        one = threads.submit(change, "a", "b")
        other = threads.submit(change, "b", "a")
        assert one.result() + other.result() == 1
    assert tries >= 3


# What cannot be.


def test_text_that_the_server_cannot_keep(
    postgres: PostgresServer, open_store: Open
) -> None:
    """A NUL in a name is refused, and what it was is not told."""
    store = open_store(postgres.url())
    with pytest.raises(ValidationError, match="cannot keep") as caught:
        store.write(ACTOR, [SetValue("secret\0key", b"1")])
    assert "secret" not in str(caught.value)
    with pytest.raises(ValidationError):
        store.accept(RequestRecord(ACTOR, "m1", method="\0"), LIMITS)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+asyncpg://h/db",
        "postgresql://h:port/db",
        "postgresql://me:hidden@h/db?schema=Tables; drop",
        "postgresql://me:hidden@h/db?schema=a&schema=b",
        "postgresql://h/db?pool_size=none",
        "postgresql://h/db?pool_size=0",
    ],
)
def test_urls_that_cannot_be_used(url: str) -> None:
    """The error says how one is written, and not the password."""
    with pytest.raises(ConfigurationError, match="cannot be used") as caught:
        open_actor_store(url)
    assert "hidden" not in str(caught.value)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install."""
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigurationError, match=r"ppio-agent\[postgres\]"):
        PostgresActorStore("postgresql://h/db")


def test_tables_of_a_newer_version(postgres: PostgresServer, open_store: Open) -> None:
    """They are not touched."""
    url = postgres.url()
    open_store(url).close()
    schema = url.rpartition("=")[2]
    postgres.execute(f"UPDATE {schema}.actor_meta SET value = value + 1")
    with pytest.raises(ConfigurationError, match="upgrade ppio-agent"):
        PostgresActorStore(url)


def test_an_account_that_may_not_make_tables(postgres: PostgresServer) -> None:
    """The error says what the server says."""
    postgres.execute("CREATE ROLE guest LOGIN")
    url = postgres.url().replace("ppio@", "guest@")
    with pytest.raises(ConfigurationError, match="permission denied"):
        PostgresActorStore(url)


def test_keys_are_in_the_order_of_code_points(
    postgres: PostgresServer, open_store: Open
) -> None:
    """Whatever the collation of the database is."""
    store = open_store(postgres.url())
    keys = ["B", "a", "é", "Z", "_", "\N{GRINNING FACE}", "\uffff"]
    store.write(ACTOR, [SetValue(key, b"1") for key in keys])
    assert list(store.read(ACTOR).values) == sorted(keys)
