"""What every request gets, whatever the server; in process, as gunicorn would call it."""

from __future__ import annotations

import contextvars
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ppio_agent.exceptions import (
    PPIOAgentError,
    RequestTooLargeError,
    ServerBusyError,
    ValidationError,
)
from ppio_agent.web import (
    Reply,
    RequestKit,
    current_request_id,
    problem,
    read_body,
)

colour: contextvars.ContextVar[str] = contextvars.ContextVar("colour", default="none")


class Call:
    """One call of an application, as a server makes it."""

    def __init__(self, app: Callable[..., Any], *, kit: Any = None, **environ: Any):
        self.environ: dict[str, Any] = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": "/",
            **environ,
        }
        self.status = 0
        self.headers: dict[str, str] = {}
        self._body = (kit or RequestKit(app))(self.environ, self._start)
        self.body = b"".join(self._body)
        close = getattr(self._body, "close", None)
        if close is not None:
            close()

    def _start(self, status: str, headers: Any, exc_info: Any = None) -> None:
        assert exc_info is not None or not self.status, "started twice"
        self.status = int(status[:3])
        self.headers = dict(headers)

    def json(self) -> Any:
        return json.loads(self.body)


def hello(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


def test_a_valid_request_id_is_kept() -> None:
    """It is on the answer and in the environ."""
    call = Call(hello, HTTP_X_REQUEST_ID="abc-1.2:3_4")
    assert call.headers["X-Request-Id"] == "abc-1.2:3_4"
    assert call.environ["ppio.request_id"] == "abc-1.2:3_4"


@pytest.mark.parametrize("wrong", ["", "a b", "ä", "x" * 129, "a\nb"])
def test_any_other_request_id_is_replaced(wrong: str) -> None:
    """By 32 hex digits."""
    call = Call(hello, HTTP_X_REQUEST_ID=wrong)
    assert len(call.headers["X-Request-Id"]) == 32


def test_the_kit_sets_the_request_id_not_the_application() -> None:
    """One header, ours."""

    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("X-Request-Id", "theirs")])
        return []

    assert Call(app, HTTP_X_REQUEST_ID="ours").headers == {"X-Request-Id": "ours"}


def test_fixed_headers_are_on_every_answer_unless_set() -> None:
    """Errors included."""

    def app(environ: Any, start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"] == "/own":
            start_response("200 OK", [("x-ppio-agent", "mine")])
            return []
        raise ValueError("boom")

    kit = RequestKit(app, headers=[("X-PPIO-Agent", "1.0")])
    assert Call(app, kit=kit).headers["X-PPIO-Agent"] == "1.0"
    own = Call(app, kit=kit, PATH_INFO="/own").headers
    assert own["x-ppio-agent"] == "mine"
    assert "X-PPIO-Agent" not in own


@pytest.mark.parametrize(
    "name",
    ["Connection", "keep-alive", "Proxy-Authenticate", "TE", "Trailer", "Upgrade",
     "Transfer-Encoding"],
)  # fmt: skip
def test_headers_of_the_connection_are_dropped(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """They are the server's; the answer is otherwise as it was."""

    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [(name, "x"), ("X-Kept", "1")])
        return [b"ok"]

    call = Call(app, HTTP_X_REQUEST_ID="r")
    assert (call.status, call.body) == (200, b"ok")
    assert call.headers == {"X-Kept": "1", "X-Request-Id": "r"}
    assert name in caplog.text


@pytest.mark.parametrize(
    ("name", "value"),
    [("X-A", "1\r\nX-B: 2"), ("X-A", "1\n"), ("X-A", "\0"), ("X-A", "\u20ac"),
     ("X A", "1"), ("X-A:", "1"), ("", "1"), ("X-A\r\nX-B", "1")],
)  # fmt: skip
def test_headers_that_would_break_the_answer_are_an_error(
    name: str, value: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing of them reaches the client."""

    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [(name, value)])
        return [b"ok"]

    call = Call(app)
    assert call.status == 500
    assert call.json()["code"] == "internal_error"
    assert set(call.headers) == {"Content-Type", "Content-Length", "X-Request-Id"}


def test_a_status_line_that_would_break_the_answer_is_an_error() -> None:
    """The same for the first line."""

    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK\r\nX-A: 1", [])
        return [b"ok"]

    assert Call(app).status == 500


def test_an_unexpected_exception_tells_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The traceback is in the log, with the id; the answer has the id only."""

    def app(environ: Any, start_response: Any) -> list[bytes]:
        raise ValueError("the password is hunter2")

    call = Call(app, HTTP_X_REQUEST_ID="r1")
    assert call.json() == {
        "type": "about:blank",
        "title": "Internal Server Error",
        "status": 500,
        "detail": "internal error",
        "code": "internal_error",
        "retryable": False,
        "request_id": "r1",
        "error": "internal error",
    }
    assert call.headers["Content-Type"] == "application/problem+json"
    record = next(r for r in caplog.records if r.exc_info)
    assert record.__dict__["ppio_request_id"] == "r1"
    assert "hunter2" in caplog.text


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_user_code_cannot_end_the_server(kind: type[BaseException]) -> None:
    """`sys.exit()` in a handler is a failed request."""

    def app(environ: Any, start_response: Any) -> list[bytes]:
        raise kind

    assert Call(app).status == 500


def test_our_own_errors_are_their_problem(caplog: pytest.LogCaptureFixture) -> None:
    """Status, code and text; without a traceback in the log."""

    def app(environ: Any, start_response: Any) -> list[bytes]:
        raise ValidationError("the prompt is missing")

    call = Call(app)
    assert call.status == 400
    assert call.json()["detail"] == "the prompt is missing"
    assert call.json()["code"] == "validation_error"
    assert caplog.records == []


def test_problems_of_a_busy_server_say_when_to_come_back() -> None:
    """Rounded up to whole seconds; 1 where the error does not say."""
    reply = problem(ServerBusyError("busy", retry_after=2.1), "r")
    assert ("Retry-After", "3") in reply.headers
    assert ("Retry-After", "1") in problem(ServerBusyError("busy"), None).headers


def test_problems_have_a_title_for_every_status() -> None:
    """499 is not in the standard library."""
    error = PPIOAgentError("gone", http_status=499)
    started: list[str] = []
    problem(error, None).respond(lambda status, headers: started.append(status))
    assert started == ["499 Client Closed Request"]


class Probe:
    """A body that records the context each of its steps runs in."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __iter__(self) -> Iterator[bytes]:
        self.seen.append(colour.get())
        colour.set("green")
        return self

    def __next__(self) -> bytes:
        self.seen.append(colour.get())
        if len(self.seen) > 3:
            raise StopIteration
        return b"x"

    def close(self) -> None:
        self.seen.append(colour.get())


def test_one_context_for_the_call_and_every_step() -> None:
    """What the application sets is there in the body and in its close."""
    probe = Probe()

    def app(environ: Any, start_response: Any) -> Probe:
        colour.set("red")
        start_response("200 OK", [])
        return probe

    call = Call(app)
    assert call.body == b"xx"
    assert probe.seen == ["red", "green", "green", "green", "green"]


def test_the_next_request_sees_nothing_of_it() -> None:
    """Server threads are reused; their contexts are not."""
    seen: list[str] = []

    def app(environ: Any, start_response: Any) -> list[bytes]:
        seen.append(colour.get())
        colour.set("of the first user")
        start_response("200 OK", [])
        return []

    for _ in range(3):
        Call(app)
    assert seen == ["none"] * 3
    assert current_request_id.get() is None


def test_a_body_that_fails_before_its_first_piece_is_a_problem() -> None:
    """Nothing was sent yet, so the answer can still be an error."""

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("X-Early", "1")])
        raise ValidationError("too late to check, but not to say")
        yield b""

    call = Call(app)
    assert call.status == 400
    assert "X-Early" not in call.headers


def test_a_body_that_fails_later_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    """The server must see the exception, or the client would take it for the end."""
    environ: dict[str, Any] = {"REQUEST_METHOD": "GET", "PATH_INFO": "/"}

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"first"
        raise ValueError("boom")

    body = iter(RequestKit(app)(environ, lambda *_: None))
    assert next(body) == b"first"
    with pytest.raises(ValueError, match="boom"):
        next(body)
    assert environ["ppio.failed"] is True
    assert "boom" in caplog.text


def test_a_close_that_fails_is_logged_only(caplog: pytest.LogCaptureFixture) -> None:
    """The answer is out; there is nobody to tell."""

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            return iter([b"ok"])

        def close(self) -> None:
            raise ValueError("boom in close")

    def app(environ: Any, start_response: Any) -> Body:
        start_response("200 OK", [])
        return Body()

    assert Call(app).body == b"ok"
    assert "boom in close" in caplog.text


def _body(data: bytes, **environ: Any) -> dict[str, Any]:
    return {"wsgi.input": io.BytesIO(data), **environ}


@pytest.mark.parametrize("size", [0, 1, 10])
def test_a_body_up_to_the_limit_is_read(size: int) -> None:
    """Exactly the limit passes, with a length and without."""
    data = b"x" * size
    assert read_body(_body(data, CONTENT_LENGTH=str(size)), 10) == data
    chunked = _body(data, **{"wsgi.input_terminated": True})
    assert read_body(chunked, 10) == data


def test_a_larger_body_is_left_unread() -> None:
    """Where the length tells."""
    environ = _body(b"x" * 11, CONTENT_LENGTH="11")
    with pytest.raises(RequestTooLargeError) as caught:
        read_body(environ, 10)
    assert caught.value.limit == 10
    assert environ["wsgi.input"].tell() == 0


def test_a_larger_chunked_body_is_read_no_further_than_needed() -> None:
    """Counted while it comes."""
    environ = _body(b"x" * 1000, **{"wsgi.input_terminated": True})
    with pytest.raises(RequestTooLargeError):
        read_body(environ, 10)
    assert environ["wsgi.input"].tell() == 11


def test_no_more_than_the_length_is_read() -> None:
    """What follows on the connection is the next request."""
    assert read_body(_body(b"abcdef", CONTENT_LENGTH="3"), None) == b"abc"


def test_without_length_or_end_mark_there_is_no_body() -> None:
    """Reading would wait for ever."""
    assert read_body(_body(b"abc"), 10) == b""


def test_without_a_limit_all_is_read() -> None:
    """Of a chunked body, too."""
    environ = _body(b"x" * 200_000, **{"wsgi.input_terminated": True})
    assert len(read_body(environ, None)) == 200_000


def test_a_body_that_breaks_off_is_refused() -> None:
    """Half a document must not pass for a whole one."""
    with pytest.raises(ValidationError, match="shorter"):
        read_body(_body(b"ab", CONTENT_LENGTH="3"), 10)


@pytest.mark.parametrize("error", [ValueError, OSError])
def test_a_body_that_the_host_cannot_read_is_the_callers_fault(
    error: type[Exception],
) -> None:
    """A chunk of a negative size, for instance; our own errors stay what they are."""

    class Broken:
        def __init__(self, error: Exception) -> None:
            self._error = error

        def read(self, size: int) -> bytes:
            raise self._error

    name = error.__name__
    broken = {"wsgi.input": Broken(error("b'-7'")), "wsgi.input_terminated": True}
    with pytest.raises(ValidationError, match=f"cannot be read .{name}.$"):
        read_body(broken, 10)
    broken["wsgi.input"] = Broken(RequestTooLargeError("more", limit=1))
    with pytest.raises(RequestTooLargeError):
        read_body(broken, 10)


@pytest.mark.parametrize("wrong", ["+3", "3.0", "x", "\u0663"])
def test_a_length_that_is_no_number_is_refused(wrong: str) -> None:
    """Servers differ in what they let through."""
    with pytest.raises(ValidationError, match="Content-Length"):
        read_body(_body(b"abc", CONTENT_LENGTH=wrong), 10)


def test_a_reply_of_pieces_has_no_length() -> None:
    """The server frames it."""
    started: list[Any] = []
    reply = Reply(200, [("X-A", "1")], iter([b"a", b"b"]))
    body = reply.respond(lambda status, headers: started.append((status, headers)))
    assert list(body) == [b"a", b"b"]
    assert started == [("200 OK", [("X-A", "1")])]
