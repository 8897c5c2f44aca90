"""Which error an answer stands for."""

from __future__ import annotations

import copy
import json
import pickle
import ssl
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path

import pytest

from ppio_agent import exceptions as ex
from ppio_agent._util.redact import Redactor
from ppio_agent.testing import FaultServer, cut, reply, reset
from ppio_agent.transport import NO_RETRY, Headers, Kind, Request, Response, Transport
from ppio_agent.transport.errors import FailedAnswer, PastFailure, answer_error
from ppio_agent.wire.problem import Problem

Serve = Callable[..., FaultServer]


def _error(
    status: int,
    body: object = None,
    *,
    kind: Kind = "other",
    subject: str = "",
    method: str = "GET",
    date: str = "",
    now: datetime | None = None,
) -> ex.PPIOAgentError:
    data = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
    request = Request(method=method, url="http://h/", kind=kind, subject=subject)
    response = Response(
        status=status,
        headers=Headers([("Content-Type", "text/x"), ("Date", date)]),
        body=data,
        request_id="r-1",
        url="http://h/",
    )
    redactor = Redactor(["sk-SECRET123"])
    return answer_error(request, response, Problem.read(data), redactor, now=now)


def test_no_control_character_of_an_answer_is_repeated() -> None:
    """Neither in the message nor in the cause: nothing in a log is written by a peer."""
    said = _error(400, {"message": "a\r\nb\x1b[2J\x85\u2028\x7f"})
    ended = _error(502, {"sandboxId": "s\r\n1", "port": 8080, "exitCode": 1})
    assert said.message == r"the request was answered 400: a b\x1b[2J \x7f"
    assert ended.message.startswith(r"the agent in sandbox s\r\n1 has ended")
    for error in (said, ended):
        assert f"{error}{error.__cause__}".isprintable()


@pytest.mark.parametrize(
    ("status", "cls"),
    [
        (302, ex.ProtocolError),
        (400, ex.ValidationError),
        (401, ex.AuthenticationError),
        (402, ex.QuotaExceededError),
        (403, ex.PermissionDeniedError),
        (404, ex.NotFoundError),
        (405, ex.ValidationError),
        (408, ex.RequestTimeoutError),
        (409, ex.ConflictError),
        (413, ex.RequestTooLargeError),
        (422, ex.ValidationError),
        (425, ex.ServiceUnavailableError),
        (429, ex.RateLimitError),
        (500, ex.InternalServerError),
        (501, ex.InternalServerError),
        (502, ex.ServiceUnavailableError),
        (503, ex.ServiceUnavailableError),
        (504, ex.ServiceUnavailableError),
    ],
)
def test_the_status_names_the_class(status: int, cls: type[ex.PPIOAgentError]) -> None:
    """And is on the error, with the answer behind it."""
    error = _error(status)
    assert type(error) is cls
    assert (error.http_status, error.request_id) == (status, "r-1")
    assert error.code == cls.code
    assert isinstance(error.__cause__, FailedAnswer)
    assert str(error.__cause__) == f"HTTP {status}, text/x: ''"


def test_what_is_wrong_with_a_template_is_told_whole() -> None:
    """It may be what an installer printed; without secrets, and as lines."""
    said = "pip ended with 1; " + "x" * 300 + "\nsk-SECRET123\x1b[2J\nERROR: no"
    listed = [{"path": "requirements.txt", "line": 3, "message": said}, {}, "text"]
    error = _error(400, {"message": said, "problems": listed}, kind="template")

    assert isinstance(error, ex.TemplateManifestError)
    (first, second) = error.problems
    assert first[:2] == ("requirements.txt", 3)
    assert first[2].startswith("pip ended with 1; xxx")
    assert first[2].endswith("\nERROR: no")
    assert "SECRET" not in first[2]
    assert "\x1b" not in first[2]
    assert second == ("", 0, "")
    for body in ({"problems": "all"}, {"problems": []}):
        assert type(_error(400, body, kind="template")) is ex.ValidationError


@pytest.mark.parametrize(
    ("said", "more"),
    [
        ("", ""),
        ("sandbox x-1 was not found", ""),
        ("sandbox x-1 was not found: make it first", ": make it first"),
    ],
)
def test_what_the_message_says_is_not_said_twice(said: str, more: str) -> None:
    error = _error(404, {"message": said}, kind="sandbox", subject="x-1")
    assert error.message == f"sandbox 'x-1' was not found{more}"


@pytest.mark.parametrize(
    ("kind", "cls"),
    [
        ("template", ex.TemplateNotFoundError),
        ("sandbox", ex.SessionNotFoundError),
        ("envd", ex.NotFoundError),
    ],
)
def test_what_is_not_found_depends_on_what_was_asked(
    kind: Kind, cls: type[ex.PPIOAgentError]
) -> None:
    """The message names it."""
    for body in ({"message": "nope"}, {"code": "not_found", "message": "nope"}):
        error = _error(404, body, kind=kind, subject="x-1")
        assert type(error) is cls
        assert error.message == f"{kind} 'x-1' was not found: nope"


@pytest.mark.parametrize(
    ("status", "code", "cls"),
    [
        (503, "server_draining", ex.ServerDrainingError),
        (429, "quota_exceeded", ex.QuotaExceededError),
        (409, "idempotency_conflict", ex.IdempotencyConflictError),
        (410, "replay_gone", ex.ReplayGoneError),
        (504, "invocation_timeout", ex.InvocationTimeoutError),
        (503, "word_of_a_stranger", ex.ServiceUnavailableError),
    ],
)
def test_a_known_word_names_the_class(
    status: int, code: str, cls: type[ex.PPIOAgentError]
) -> None:
    """An unknown one does not, and is not passed on as if it were ours."""
    error = _error(status, {"code": code, "detail": "d", "retryable": False})
    assert type(error) is cls
    assert error.code == cls.code
    assert error.retryable is False
    if isinstance(error, ex.InvocationError):
        assert error.status == status


def test_the_edge_says_what_is_gone() -> None:
    """By the keys of its body, never by its text."""
    body = {"sandboxId": "s-1", "message": "The sandbox was not found", "code": 502}
    assert type(_error(502, body)) is ex.SessionNotFoundError
    error = _error(502, {**body, "port": 8080, "exitCode": 3})
    assert isinstance(error, ex.AgentUnreachableError)
    assert (error.sandbox_id, error.port, error.exit_code) == ("s-1", 8080, 3)


@pytest.mark.parametrize(
    ("how", "code", "words"),
    [
        ({"exitCode": 7, "signal": None}, 7, "with exit status 7"),
        ({"exitCode": 0}, 0, "with exit status 0"),
        ({"exitCode": None, "signal": 9}, -9, "by signal 9"),
    ],
)
def test_an_agent_that_ended_is_said_to_have(
    how: dict[str, object], code: int, words: str
) -> None:
    """Not that its port is closed; and no later attempt finds it alive."""
    body = {"sandboxId": "s-1", "message": "port is not open", "port": 8080, **how}
    error = _error(502, body, kind="agent", subject="s-1")
    assert isinstance(error, ex.AgentUnreachableError)
    assert (error.exit_code, error.retryable) == (code, False)
    assert error.message.startswith(f"the agent in sandbox s-1 has ended {words};")


@pytest.mark.parametrize(
    ("kind", "method", "status", "what"),
    [
        ("agent", "POST", 429, "the call of the agent in sandbox 'x-1'"),
        ("agent", "GET", 404, "the call of the agent in sandbox 'x-1'"),
        ("template", "POST", 429, "creating a sandbox from template 'x-1'"),
        ("sandbox", "GET", 429, "the request for sandbox 'x-1'"),
    ],
)
def test_a_failure_is_that_of_the_call(
    kind: Kind, method: str, status: int, what: str
) -> None:
    """The template did not answer 429; creating a sandbox of it was answered so."""
    body = {"message": "no"}
    error = _error(status, body, kind=kind, subject="x-1", method=method)
    assert error.message == f"{what} was answered {status}: no"


@pytest.mark.parametrize("code", ["not_supported", 501])
def test_a_sandbox_that_the_platform_cannot_make(code: object) -> None:
    """A 501 to its creation is no fault inside the platform; its sentence says why."""
    body = {"message": "it cannot block network access", "code": code}
    error = _error(501, body, kind="template", subject="t-1", method="POST")
    assert isinstance(error, ex.SandboxCreationError)
    assert (error.stage, error.http_status) == ("create", 501)
    assert "it cannot block network access" in error.message


def test_what_is_quoted_is_short_and_without_secrets() -> None:
    """A page of HTML is no message."""
    error = _error(502, b"<html>\n" + b"key=sk-SECRET123 " * 100)
    assert len(error.message) < 300
    assert "SECRET" not in f"{error} {error.__cause__}"
    assert "key=***" in error.message


@pytest.mark.parametrize("form", ["json", "text"])
def test_no_part_of_a_secret_is_quoted(form: str) -> None:
    """Where the quotation ends inside one."""
    for before in (*range(185, 200), *range(485, 500)):
        space = " " * max(0, before - 195)  # which is not quoted
        said = f"{'x' * (before - len(space))}{space}sk-SECRET123"
        error = _error(502, {"message": said} if form == "json" else said.encode())
        assert "sk-" not in f"{error} {error.__cause__}"


# Acceptance 20


def _refused(serve: Serve) -> str:
    server = serve(reply())
    server.close()
    return server.url


@pytest.mark.parametrize(
    ("fault", "cls"),
    [
        (_refused, ex.NetworkError),
        (lambda serve: serve(reset()).url, ex.NetworkError),
        (lambda serve: serve(reset(b"HTTP/1.1 200")).url, ex.NetworkError),
        (lambda serve: serve(cut()).url, ex.NetworkError),
        (lambda serve: serve(cut(b"SMTP ready\r\n\r\n")).url, ex.ProtocolError),
        (lambda serve: serve(reply()).url.replace("http", "https"), ex.NetworkError),
        (lambda serve: serve(reply(502, b"<html>bad")).url, ex.ServiceUnavailableError),
        (lambda serve: serve(reply(401)).url, ex.AuthenticationError),
        (lambda serve: serve(reply(400, b'{"a":1}')).url, ex.ValidationError),
    ],
    ids=[
        "refused", "reset", "reset in head", "closed", "not http", "tls",
        "html 502", "empty 401", "json without code",
    ],
)  # fmt: skip
def test_every_fault_is_one_class_with_its_cause(
    serve: Serve,
    transport: Transport,
    fault: Callable[[Serve], str],
    cls: type[ex.PPIOAgentError],
) -> None:
    """And survives being pickled and copied, with equal attributes."""
    url = fault(serve)
    request = Request(method="POST", url=url, body=b"{}", retry=NO_RETRY)
    with pytest.raises(ex.PPIOAgentError) as caught:
        transport.send(request)
    error = caught.value
    assert type(error) is cls
    assert isinstance(error, ex.PPIOAgentRuntimeError)
    assert error.__cause__ is not None
    assert (error.method, error.attempts) == ("POST", 1)
    assert error.request_id
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is cls
        assert (twin.args, twin.__dict__) == (error.args, error.__dict__)


def test_an_untrusted_certificate_is_a_network_error(
    serve: Serve, transport: Transport, tls: tuple[ssl.SSLContext, Path]
) -> None:
    """With TLS's own error behind it."""
    server = serve(reply(), tls=tls[0])
    with pytest.raises(ex.NetworkError) as caught:
        transport.send(Request(method="GET", url=server.url))
    assert isinstance(caught.value.__cause__, ssl.SSLError)


def test_history_survives_being_pickled() -> None:
    """It is part of the error."""
    error = ex.NetworkError("x")
    error.history = (PastFailure(ex.NetworkError, None, 0.5),)
    assert pickle.loads(pickle.dumps(error)).history == error.history


@pytest.mark.parametrize(
    ("ahead", "told"),
    [
        (400, "400 s ahead of the peer's"),
        (-301, "301 s behind the peer's"),
        (300, None),
        (-299, None),
    ],
)
def test_a_refusal_names_clocks_that_differ(ahead: int, told: str | None) -> None:
    """By more than signatures may be away, and only where it may be the reason."""
    here = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    date = format_datetime(here - timedelta(seconds=ahead), usegmt=True)

    refused = str(_error(401, {"detail": "no"}, date=date, now=here))

    assert ("clock" in refused) is (told is not None)
    assert told is None or told in refused
    assert "clock" not in str(_error(403, {"detail": "no"}, date=date, now=here))
    assert "clock" not in str(_error(401, {"detail": "no"}, date="soon", now=here))
