"""The attempts of one call, one after another, until one succeeds or none may follow."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Iterable, Mapping
from typing import Generic, Protocol, TypeVar
from urllib.parse import urljoin

from attrs import evolve, field, frozen

from ppio_agent._util.clock import Deadline, utc_now
from ppio_agent._util.ids import new_id
from ppio_agent._util.redact import SECRET_HEADERS, Redactor, is_secret_header
from ppio_agent._version import __version__
from ppio_agent.exceptions import (
    AgentUnreachableError,
    ConfigurationError,
    PPIOAgentError,
    SessionNotFoundError,
    ValidationError,
)
from ppio_agent.hooks import ClientHooks
from ppio_agent.wire.headers import (
    AGENT_VERSION,
    ATTEMPT,
    IDEMPOTENCY_KEY,
    REQUEST_ID,
    RETRY_AFTER,
    SANDBOX_ID,
    TIMEOUT,
)
from ppio_agent.wire.problem import Problem
from ppio_agent.wire.signing import SIGNATURE_HEADERS

from .calls import CallHandle
from .content import ACCEPT_ENCODING
from .errors import PastFailure, answer_error
from .exchange import BrokenError, Exchange, connect_error
from .http1 import FramingError, encode_head
from .messages import Request, Response, TransportConfig
from .observe import Observer
from .retry import Outcome, decide, parse_retry_after
from .route import split_url
from .sharing import PoolShare

__all__ = ["Attempts", "Body", "Setup"]

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

_USER_AGENT = f"ppio-agent/{__version__} python/{platform.python_version()}"
# They say where a message ends or who it is for, which is the transport's to say.
_FRAMING = frozenset({
    "connection", "content-length", "expect", "host", "keep-alive",
    "proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding",
    "upgrade",
})  # fmt: skip
# Others each time, though the same key proves who asks.
_OF_ONE_ATTEMPT = frozenset(name.lower() for name in SIGNATURE_HEADERS[1:])
_MAX_REDIRECTS = 3
_MAX_PEERS = 4096

_Pairs = dict[str, tuple[str, str]]


class Body(Protocol):
    """Where the body of an answer comes from."""

    def read(self) -> bytes:
        """Return the next piece; nothing at the end."""

    def read_all(self, limit: int) -> bytes:
        """Return what is left, at most `limit` bytes."""

    def release(self) -> None:
        """Let go of the connection."""


class _ReadBody:
    """The body of a failure's answer, which had to be read to know what it says."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def read(self) -> bytes:
        body, self._body = self._body, b""
        return body

    def read_all(self, limit: int) -> bytes:  # noqa: ARG002 - it is read already
        return self.read()

    def release(self) -> None:
        pass


@frozen(kw_only=True)
class Setup:
    """What all calls of a transport have in common.

    Attributes:
        config: The settings.
        redactor: Applied to whatever a person may see.
        random: Gives a float in [0, 1).
        hooks: What plug-ins take part in.

    Thread safety: thread-safe; nothing but `peers` changes, in atomic steps.
    """

    config: TransportConfig
    redactor: Redactor
    random: Callable[[], float]
    hooks: ClientHooks = field(factory=ClientHooks)
    # Peers known to run an Idempotency-Key once: (origin, sandbox).
    peers: dict[tuple[object, str], None] = field(factory=dict, repr=False)
    _base: _Pairs = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        base: _Pairs = {}
        own = {"User-Agent": _USER_AGENT, "Accept-Encoding": ACCEPT_ENCODING}
        for source in (own, self.config.headers):
            _merge(base, source)
        object.__setattr__(self, "_base", base)

    def headers(
        self, request: Request, auth: Mapping[str, str], more: Mapping[str, str]
    ) -> _Pairs:
        """Return the headers of an attempt by their names in lower case.

        Raises:
            ValidationError: One of them is the transport's own.
            ConfigurationError: A plug-in adds one that proves who asks.
        """
        merged = dict(self._base)
        if self.hooks.headers is not None:
            added = self.hooks.headers(request)
            refused = SECRET_HEADERS.intersection(map(str.lower, added))
            if refused:
                raise ConfigurationError(
                    f"a plug-in must not add the headers {sorted(refused)}"
                )
            _merge(merged, added)
            _merge(merged, self.config.headers)  # what the program says wins
        for source in (request.headers, auth, more):
            _merge(merged, source)
        if not _FRAMING.isdisjoint(merged):
            names = ", ".join(sorted(_FRAMING & merged.keys()))
            raise ValidationError(f"the transport itself sets the headers {names}")
        return merged

    def sent_from(self, url: str, request: Request) -> Setup:
        """Return what holds for a request that was one to `url` before plug-ins came.

        Another origin gets none of the configured headers that look like secrets.
        """
        if split_url(url)[0] == split_url(request.url)[0]:
            return self
        headers = {
            name: value
            for name, value in self.config.headers.items()
            if not is_secret_header(name)
        }
        return evolve(self, config=evolve(self.config, headers=headers))

    def is_run_once(self, url: str, sandbox_id: str) -> bool:
        """Whether an earlier answer of this peer said that it runs a key once."""
        return (split_url(url)[0], sandbox_id) in self.peers

    def note_peer(self, url: str, sandbox_id: str) -> None:
        """Remember that this peer runs a key once."""
        if len(self.peers) >= _MAX_PEERS:
            self.peers.clear()  # their next answers say it again
        self.peers[split_url(url)[0], sandbox_id] = None


def _merge(into: _Pairs, headers: Mapping[str, str]) -> None:
    for name, value in headers.items():
        into[name.lower()] = (name, value)


class Attempts(Generic[_T]):
    """One call on its way.

    Args:
        setup: What all calls have in common.
        pool: Where connections come from.
        call: How other threads end it.
        request: What is asked.
        deliver: Makes the result of an answer whose head was read.

    Thread safety: one thread at a time.
    """

    def __init__(
        self,
        setup: Setup,
        pool: PoolShare,
        call: CallHandle,
        request: Request,
        deliver: Callable[[Body, Response], _T],
    ) -> None:
        self._setup = setup
        self._pool = pool
        self._call = call
        self._request = request
        self._deliver = deliver
        self._policy = request.retry or setup.config.retry
        self._request_id = _given(request.headers, REQUEST_ID) or new_id()
        self._number = 0
        self._redirects = 0
        self._fresh = False
        self._refreshed = False
        self._auth: Mapping[str, str] = {}
        self._offered: Mapping[str, str] | None = None  # after a 401, for the next
        self._headers: _Pairs = {}
        self._history: list[PastFailure] = []
        self._observer: Observer | None = None
        if setup.hooks.observed:
            self._observer = Observer(setup.hooks, setup.redactor, self._request_id)

    def result(self) -> _T:
        """Return what `deliver` makes of the answer.

        Raises:
            PPIOAgentError: By the table of errors, or what the call was aborted with.
        """
        while True:
            try:
                found = self._attempt()
            except PPIOAgentError as error:
                self.describe(error)
                raise
            if found is not None:
                return found
            self._tell_time()

    def _tell_time(self) -> None:
        """Let the peer know how much time the next attempt has, if it is to know."""
        left = self._request.deadline.left()
        headers = self._request.headers
        if left is not None and TIMEOUT in headers:
            headers = {**headers, TIMEOUT: f"{left:.3f}"}
            self._request = evolve(self._request, headers=headers)

    def describe(self, error: PPIOAgentError) -> PPIOAgentError:
        """Write into an error what was asked, and how often."""
        request_id = error.request_id or self._request_id
        error.request_id = self._setup.redactor.text(request_id)
        error.method = self._request.method
        error.url = self._setup.redactor.url(self._request.url)
        error.attempts = self._number
        error.history = tuple(self._history)
        return error

    def _attempt(self) -> _T | None:
        """Return the result, or None if another attempt has to follow."""
        request = self._request
        self._number += 1
        exchange: Exchange | None = None
        if self._observer is not None:
            self._observer.began(request, self._number)
        try:
            exchange = self._open()
            answer = self._start(exchange)
            if request.succeeds(answer.status):
                result = self._deliver(exchange, answer)
                self._note_answer(answer.status, result)
                return result
            body = exchange.read_all(self._setup.config.max_response_bytes)
        except BrokenError as broken:
            self._give_up(exchange, broken.error)
            outcome = evolve(
                self._outcome(),
                failure=broken.failure,
                reused=exchange is not None and exchange.reused,
            )
            if not self._goes_on(outcome, type(broken.error)):
                raise broken.error from broken.__cause__
            return None
        except BaseException as ended:
            self._give_up(exchange, ended)
            raise
        answer = evolve(answer, body=body)
        self._note_answer(answer.status, answer)
        if self._redirected(answer) or self._reauthenticated(answer):
            return None
        error, outcome = self._judge(answer)
        if self._goes_on(outcome, type(error)):
            return None
        if request.raise_for_status:
            raise error
        return self._deliver(_ReadBody(body), answer)

    def _note_answer(self, status: int, result: object) -> None:
        if self._observer is not None:
            self._observer.answered(status, result)

    def _give_up(self, exchange: Exchange | None, error: BaseException) -> None:
        if exchange is not None:
            exchange.release()
        if self._observer is not None:
            self._observer.failed(error)

    def _open(self) -> Exchange:
        request = self._request
        if request.auth is not None:
            offered, self._offered = self._offered, None
            self._auth = offered or request.auth(request, False)  # noqa: FBT003 - the form of Auth
        more = {REQUEST_ID: self._request_id}
        if self._number > 1:
            more[ATTEMPT] = str(self._number)
        self._headers = self._setup.headers(request, self._auth, more)
        origin, _ = split_url(request.url)
        try:
            connection = self._pool.acquire(
                origin, self._call, request.deadline, fresh=self._fresh
            )
        except PPIOAgentError:
            raise
        except OSError as error:
            self._call.check()
            raise connect_error(error, origin) from error
        return Exchange(
            connection, self._pool, self._call, request.deadline, request.idle_timeout
        )

    def _start(self, exchange: Exchange) -> Response:
        """Send the request; return the answer without its body."""
        request = self._request
        origin, target = split_url(request.url)
        pairs = [("Host", origin.authority), *self._headers.values()]
        if request.body is not None:
            pairs.append(("Content-Length", str(len(request.body))))
        elif request.method in {"POST", "PUT", "PATCH"}:
            pairs.append(("Content-Length", "0"))
        proxy = exchange.proxy
        if proxy is not None:
            target = f"http://{origin.authority}{target}"
            if proxy.authorization is not None:
                pairs.append(("Proxy-Authorization", proxy.authorization))
                # Whoever is behind the proxy may tell it in an answer.
                self._setup.redactor.add(proxy.password, proxy.authorization)
        try:
            head = encode_head(request.method, target, pairs)
        except FramingError as error:
            raise ValidationError(f"the request cannot be sent: {error}") from error
        exchange.start(request.method, head, request.body)
        found = exchange.head
        if AGENT_VERSION in found.headers:
            self._setup.note_peer(request.url, self._sandbox())
        if _log.isEnabledFor(logging.DEBUG):
            self._log_answer(found.status)
        return Response(
            status=found.status,
            headers=found.headers,
            body=b"",
            request_id=self._named_by(found.headers.get(REQUEST_ID)),
            attempts=self._number,
            url=request.url,
            redactor=self._setup.redactor,
        )

    def _named_by(self, peer: str | None) -> str:
        """Return the request's id as the peer says it, who may say anything."""
        if not peer or peer == self._request_id:
            return self._request_id
        return self._setup.redactor.text(peer)

    def _log_answer(self, status: int) -> None:
        request = self._request
        _log.debug(
            "%s %s answered %d, %d bytes sent, attempt %d",
            request.method,
            self._setup.redactor.url(request.url),
            status,
            len(request.body or b""),
            self._number,
            extra={"ppio_request_id": self._request_id},
        )

    def _sandbox(self) -> str:
        return self._headers.get(SANDBOX_ID.lower(), ("", ""))[1]

    def _outcome(self) -> Outcome:
        """Return what the table needs of the request; how it ended is to be added."""
        request = self._request
        known = self._setup.is_run_once(request.url, self._sandbox())
        return Outcome(
            number=self._number,
            method=request.method,
            keyed=IDEMPOTENCY_KEY.lower() in self._headers,
            run_once=request.run_once or known,
        )

    def _judge(self, answer: Response) -> tuple[PPIOAgentError, Outcome]:
        """Return the error that an answer stands for, and what the table needs."""
        problem = Problem.read(answer.body)
        headers = answer.headers
        retry_after = parse_retry_after(
            headers.get(RETRY_AFTER), date=headers.get("Date"), now=utc_now()
        )
        error = answer_error(self._request, answer, problem, self._setup.redactor)
        error.retry_after = retry_after
        # An envelope is the end of a run, whatever its status; a sandbox that is gone
        # stays gone, and an agent that ended stays ended, though by a 502.
        gone = isinstance(error, SessionNotFoundError)
        ended = isinstance(error, AgentUnreachableError) and error.exit_code is not None
        final = problem.envelope or gone or ended
        outcome = evolve(
            self._outcome(),
            status=answer.status,
            retry_after=retry_after,
            retryable=False if final else problem.retryable,
            nothing_ran="sandboxId" in problem.body and "port" in problem.body,
        )
        return error, outcome

    def _goes_on(self, outcome: Outcome, error: type[PPIOAgentError]) -> bool:
        """Whether there is to be another attempt; if so, wait for its time."""
        retry = decide(
            self._policy,
            outcome,
            left=self._request.deadline.left(),
            random=self._setup.random,
        )
        if retry is None:
            return False
        if outcome.may_have_run:
            self._call.may_have_run = True
        if self._observer is not None:
            self._observer.retries(error, outcome.status, retry.delay)
        _log.info(
            "attempt %d failed (%s), the next one in %.2f s",
            self._number,
            error.__name__,
            retry.delay,
            extra={"ppio_request_id": self._request_id},
        )
        if retry.counted:
            self._history.append(PastFailure(error, outcome.status, retry.delay))
        else:
            # Others that were kept as long may be closed, too.
            self._fresh = True
            self._number -= 1
        pause = Deadline.after(retry.delay)
        while not pause.expired:
            self._call.wait(pause.left())
        return True

    def _redirected(self, answer: Response) -> bool:
        """Follow a redirect that keeps the method and stays with the same origin."""
        location = answer.headers.get("Location")
        if answer.status not in {307, 308} or not location:
            return False
        url = urljoin(self._request.url, location)
        try:
            same = split_url(url)[0] == split_url(self._request.url)[0]
        except ValidationError:
            return False
        if not same or self._redirects == _MAX_REDIRECTS:
            return False
        self._redirects += 1
        self._number -= 1
        self._request = evolve(self._request, url=url)
        return True

    def _reauthenticated(self, answer: Response) -> bool:
        """Ask once for other headers after a 401, and go on if there are any."""
        auth = self._request.auth
        if answer.status != 401 or auth is None or self._refreshed:
            return False
        self._refreshed = True
        offered = auth(self._request, True)  # noqa: FBT003 - the form of Auth
        if _lasting(offered) == _lasting(self._auth):
            return False
        self._offered = offered
        self._number -= 1
        return True


def _lasting(auth: Mapping[str, str]) -> dict[str, str]:
    """Return what does not differ in each attempt anyway."""
    return {k: v for k, v in auth.items() if k.lower() not in _OF_ONE_ATTEMPT}


def _given(headers: Mapping[str, str], wanted: str) -> str | None:
    wanted = wanted.lower()
    pairs: Iterable[tuple[str, str]] = headers.items()
    return next((value for name, value in pairs if name.lower() == wanted), None)
