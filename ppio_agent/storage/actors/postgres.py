"""Actors in a PostgreSQL server, for any number of machines. Needs the extra `postgres`.

Transactions of different actors run beside each other; two that change the same actor
queue for its row. Clocks of machines may differ: the server's is the one that counts.
"""

from __future__ import annotations

import errno
import os
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ppio_agent.exceptions import (
    ConfigurationError,
    ServiceUnavailableError,
    ValidationError,
)
from ppio_agent.wire.actors import ActorId

from . import sql_turns as turns
from .postgres_hints import PostgresHints
from .records import Hint, HintKind, Lease, Subscription
from .sql import SqlActorStore
from .sql_tables import Session, hold, prepare

if TYPE_CHECKING:
    import psycopg
    import sqlalchemy as sa

__all__ = ["PostgresActorStore"]

_T = TypeVar("_T")

_WORDS = {
    "text": 'TEXT COLLATE "C"',  # in the order of code points, whatever the database's
    "bytes": "BYTEA",
    "serial": "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
    "lasting_serial": "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
    "rowless": "",
}
_SCHEMA = re.compile("[a-z_][a-z0-9_]{0,62}")
_CONNECT = {
    "application_name": "ppio-agent",
    "connect_timeout": 5,
    # A server that is gone without a word is noticed in half a minute.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}
# A process that was stopped amid a transaction keeps others waiting for so long only.
_SETTINGS = "-cidle_in_transaction_session_timeout=10s -clock_timeout=20s"
_POOL_SIZE = 8
_POOL_PATIENCE = 10.0
_MOST_TRIES = 10
_LONGEST_PAUSE = 0.02
_CLOCK = "SELECT CAST(extract(epoch FROM clock_timestamp()) AS DOUBLE PRECISION)"
# Only one process at a time makes tables: IF NOT EXISTS alone fails in a race.
_ALONE = "SELECT pg_advisory_xact_lock(hashtext('ppio_agent.actors'))"
_FIND_SCHEMA = "SELECT to_regnamespace(:schema) IS NOT NULL"

_COLLISIONS = {"40001", "40P01"}  # two transactions that cannot both be; one may again
_IS_FULL = "53100"


class _Session:
    """A transaction, and what is told of it once it is committed."""

    def __init__(self) -> None:
        self.connection: Any = None  # none was to be had
        self.hints: list[Hint] = []
        self.is_done = False  # all but the commit

    def run_in(self, engine: sa.Engine, work: Callable[[Session], _T]) -> _T:
        """Run `work` on this, commit, and return what it returned."""
        with engine.begin() as self.connection:
            result = work(self)
            self.is_done = True
        return result

    def one(self, statement: str, values: Mapping[str, Any]) -> Any:
        """Run a statement and return its first row, or None."""
        return self.connection.execute(_statement(statement), values).first()

    def all(self, statement: str, values: Mapping[str, Any]) -> list[Any]:
        """Run a statement and return its rows."""
        rows: list[Any] = self.connection.execute(_statement(statement), values).all()
        return rows

    def run(self, statement: str, values: Mapping[str, Any]) -> int:
        """Run a statement and return how many rows it changed."""
        count: int = self.connection.execute(_statement(statement), values).rowcount
        return count

    def hint(self, kind: HintKind, actor_id: ActorId, message_id: str = "") -> None:
        """Tell others so, once the transaction is committed."""
        self.hints.append(Hint(kind, actor_id, message_id))


class PostgresActorStore(SqlActorStore):
    """Keeps actors in the server at `url`; its tables are made when absent.

    Args:
        url: ``postgresql+psycopg://[user[:password]@][host[:port]]/database``, with the
            options of libpq (``?sslmode=verify-full``) and two of ours: ``schema``,
            where the tables are (`ppio_actors`), and ``pool_size``, how many
            connections are open at most (8), besides one for hints.

    Raises:
        ConfigurationError: The extra `postgres` is missing, the URL cannot be used, the
            account may not do what is needed, or a newer version of this package made
            the tables.
        ServiceUnavailableError: The server does not answer.

    Thread safety: thread-safe. A forked child must not use its parent's store.
    """

    def __init__(self, url: str) -> None:
        super().__init__()
        try:
            import psycopg  # noqa: F401 - found missing here, not at the first use
            import sqlalchemy as sa
        except ImportError as error:
            raise ConfigurationError(
                "actors in PostgreSQL need its client: pip install"
                " 'ppio-agent[postgres]'"
            ) from error
        self._sa = sa
        self._engine, self._schema = _engine(sa, url)
        # Reads see the data of one moment, however many statements they are.
        self._snapshots = self._engine.execution_options(
            isolation_level="REPEATABLE READ"
        )
        self._hints = PostgresHints(self._connect, self._schema)
        self._ahead = 0.0  # of our clock, the server's
        self._closed = threading.Event()
        try:
            self._write(self._prepare)
            self._set_clock()
        except BaseException:
            self.close()
            raise

    def _prepare(self, session: Session) -> None:
        session.run(_ALONE, {})
        # Who may use a schema need not be one who may make it.
        if not session.one(_FIND_SCHEMA, {"schema": self._schema})[0]:
            session.run(f"CREATE SCHEMA {self._schema}", {})
        prepare(session, _WORDS, f"{self._engine.url.database}.{self._schema}")

    def _connect(self) -> psycopg.Connection:
        """Open a connection that is not the pool's."""
        pooled = self._engine.raw_connection()
        connection = cast("psycopg.Connection", pooled.driver_connection)
        pooled.detach()
        connection.autocommit = True
        return connection

    def now(self) -> float:
        """Return the time by the server's clock, as far as it is known here."""
        return time.time() + self._ahead

    def _set_clock(self) -> None:
        before = time.time()
        (theirs,) = self._read(lambda session: session.one(_CLOCK, {}))
        self._ahead = theirs - (before + time.time()) / 2

    def heartbeat(self, worker: str, ttl: float) -> bool:
        """Keep all leases of a worker; see `IActorStore.heartbeat`."""
        self._set_clock()
        return super().heartbeat(worker, ttl)

    def claim(self, worker: str, actor_id: ActorId) -> Lease | None:
        """Take the lease of an actor; see `IActorStore.claim`."""

        def work(session: Session) -> Lease | None:
            # A statement sees which workers live as it begins. Held first, so that it
            # does not begin before another claim that it then waits for has ended.
            hold(session, str(actor_id), self.now())
            return turns.claim(session, self.now(), worker, actor_id)

        return self._write(work)

    def _write(self, work: Callable[[Session], _T]) -> _T:
        session, result = self._transact(self._engine, work)
        if session.hints:
            self._hints.tell(session.hints)
        return result

    def _read(self, work: Callable[[Session], _T]) -> _T:
        return self._transact(self._snapshots, work)[1]

    def _transact(
        self, engine: sa.Engine, work: Callable[[Session], _T]
    ) -> tuple[_Session, _T]:
        tries = 0
        while not self._closed.is_set():
            tries += 1
            session = _Session()
            try:
                return session, session.run_in(engine, work)
            except self._sa.exc.SQLAlchemyError as error:
                if tries == _MOST_TRIES or not _may_repeat(error, session):
                    raise self._failure(error) from error
            # Let the other one pass: both at once would collide again.
            self._closed.wait(random.uniform(0.0, _LONGEST_PAUSE))  # noqa: S311
        raise ServiceUnavailableError("the store of actors in PostgreSQL is closed")

    def _failure(self, error: sa.exc.SQLAlchemyError) -> Exception:
        """Return what is told of an error of the driver, without any parameters."""
        cause = getattr(error, "orig", None)
        about = str(cause or error).partition("\n")[0]
        errors = self._sa.exc
        if isinstance(error, errors.DataError):
            return ValidationError(f"PostgreSQL cannot keep this of an actor: {about}")
        if isinstance(error, errors.ProgrammingError):
            return ConfigurationError(
                f"actors cannot be kept in the schema {self._schema}: {about}"
            )
        if _state_of(error) == _IS_FULL:
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "PostgreSQL")
        return ServiceUnavailableError(
            f"the PostgreSQL server of actors does not answer ({about}): try it again"
        )

    def subscribe(self, callback: Callable[[Hint], object]) -> Subscription:
        """Tell of what other processes do; see `IActorStore.subscribe`."""
        return self._hints.subscribe(callback)

    def close(self) -> None:
        """Close the connections. Idempotent."""
        self._closed.set()
        self._hints.close()
        self._engine.dispose()


@lru_cache(maxsize=512)
def _statement(text: str) -> sa.TextClause:
    import sqlalchemy as sa

    return sa.text(text.replace("/*for update*/", "FOR UPDATE"))


def _engine(sa: Any, text: str) -> tuple[sa.Engine, str]:
    """Return what opens connections, and the schema that the tables are in."""
    try:
        url = sa.make_url(text)
        schema = url.query.get("schema", "ppio_actors")
        pool_size = int(url.query.get("pool_size", _POOL_SIZE))
        is_ours = url.drivername in {"postgresql", "postgresql+psycopg"}
        if not (is_ours and _SCHEMA.fullmatch(schema) and pool_size > 0):
            raise ValueError(text)
    except (ValueError, TypeError, sa.exc.ArgumentError):  # may tell of the password
        raise ConfigurationError(
            "the URL of actors in PostgreSQL cannot be used: write"
            " postgresql+psycopg://user:password@host:port/database, with schema as"
            " a-z 0-9 _ and pool_size from 1 on, if they are given"
        ) from None
    given = url.query.get("options", "")
    options = f"{_SETTINGS} {given} -csearch_path={schema}"
    url = url.set(drivername="postgresql+psycopg")
    url = url.difference_update_query(["schema", "pool_size", "options"])
    wanted = {name: value for name, value in _CONNECT.items() if name not in url.query}
    engine = sa.create_engine(
        url,
        connect_args={**wanted, "options": options},
        hide_parameters=True,
        isolation_level="READ COMMITTED",
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=_POOL_PATIENCE,
        pool_use_lifo=True,
    )
    return engine, schema


def _state_of(error: sa.exc.SQLAlchemyError) -> str | None:
    """Return the SQLSTATE of an error; None if the server told none."""
    return getattr(getattr(error, "orig", None), "sqlstate", None)


def _may_repeat(error: sa.exc.SQLAlchemyError, session: _Session) -> bool:
    """Whether nothing was done, for a reason that is gone the next time."""
    if _state_of(error) in _COLLISIONS:
        return True
    # The server was started anew since the connection was used last.
    was_lost = session.connection is not None and not session.is_done
    return was_lost and bool(getattr(error, "connection_invalidated", False))
