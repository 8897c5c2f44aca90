"""What a recording holds: exchanges as lines of JSON, found again by what was asked.

Values in, values out; files, threads and the client are the recorder's.
"""

from __future__ import annotations

import base64
import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import urlsplit

from attrs import field, frozen

from ppio_agent import exceptions
from ppio_agent._util.redact import Redactor
from ppio_agent.exceptions import (
    ConfigurationError,
    PPIOAgentError,
    UnrecordedRequestError,
    WireError,
)
from ppio_agent.wire.json import Json, decode_json, encode_json

__all__ = ["Asked", "Cassette", "Exchange", "hide_named", "hide_pieces"]

_HEADER = {"ppio_cassette": 1}
_ID = re.compile(
    r"(?<![0-9a-f])(?:[0-9a-f]{32}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})(?![0-9a-f])"
)
_VERSION = re.compile(r"\bppio-agent/[0-9][\w.+-]*")
_SHOWN = 300


@frozen
class Asked:
    """What a request asks, without secrets.

    Attributes:
        method: Its method.
        path: Path and query; the address in front of it is nobody's business.
        body: As text.
    """

    method: str
    path: str
    body: str = ""

    @classmethod
    def of(
        cls, method: str, url: str, body: bytes, redactor: Redactor, *, named: bool
    ) -> Asked:
        """Return it for a request.

        Args:
            method: Its method.
            url: Its URL.
            body: Its body.
            redactor: Knows the secrets; learns those that the body names.
            named: Whether what is named like a secret is one, as in calls of the
                platform; an agent may be told of tokens that are words.
        """
        parts = urlsplit(redactor.url(url))
        path = f"{parts.path}?{parts.query}" if parts.query else parts.path
        text = _to_text(hide_named(body, redactor) if named else body)
        return cls(method, path, redactor.text(text))

    def key(self) -> str:
        """Return what it has in common with the same request in another run.

        Ids of 32 hexadecimal digits, UUIDs and the version of this package are not
        compared, nor are the order and spacing of a JSON body.
        """
        try:
            body = encode_json(_sorted(decode_json(self.body.encode()))).decode()
        except (WireError, UnicodeError):
            body = self.body
        text = f"{self.method} {self.path} {body}".rstrip()
        return _VERSION.sub("ppio-agent/<version>", _ID.sub("<id>", text))


def _sorted(value: Json) -> Json:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value


def _to_text(data: bytes) -> str:
    text = data.decode("utf-8", "replace")
    if text.encode() == data and not text.startswith("base64:"):
        return text
    return f"base64:{base64.b64encode(data).decode()}"


def _from_text(text: str) -> bytes:
    if text.startswith("base64:"):
        return base64.b64decode(text.removeprefix("base64:"), validate=True)
    return text.encode()


def hide_named(body: bytes, redactor: Redactor) -> bytes:
    """Return a JSON body without the texts that are named like secrets.

    What was hidden is known to `redactor` from then on. A body that names none, or is
    no JSON, is returned as it is.
    """
    try:
        value = decode_json(body)
    except WireError:
        return body
    hidden = _hidden(value, redactor)
    return body if hidden == value else encode_json(hidden)


def _hidden(value: Json, redactor: Redactor) -> Json:
    if isinstance(value, list):
        return [_hidden(item, redactor) for item in value]
    if not isinstance(value, dict):
        return value
    found = {}
    for name, member in value.items():
        found[name] = _hidden(member, redactor)
        if isinstance(member, str):
            found[name] = redactor.headers({name: member})[name]
            if found[name] == "***":
                redactor.add(member)
    return found


def hide_pieces(pieces: Iterable[bytes], redactor: Redactor) -> tuple[bytes, ...]:
    """Return the pieces of a body without known secrets.

    Where a secret lies in two pieces, all of them become one.
    """
    found = tuple(_hide_in(piece, redactor) for piece in pieces)
    whole = b"".join(found)
    hidden = _hide_in(whole, redactor)
    return found if hidden == whole else (hidden,)


def _hide_in(data: bytes, redactor: Redactor) -> bytes:
    # Latin-1 keeps every byte, and secrets of headers are ASCII.
    return redactor.text(data.decode("latin-1")).encode("latin-1")


@frozen(kw_only=True)
class Exchange:
    """A request and what came of it.

    Attributes:
        asked: The request.
        status: Status of the answer; None if there was none.
        headers: Its headers.
        pieces: Its body, as it came.
        left: Whether the client closed it before its end.
        error: What the call, or reading its answer, ended with.
    """

    asked: Asked
    status: int | None = None
    headers: Mapping[str, str] = field(factory=dict)
    pieces: tuple[bytes, ...] = ()
    left: bool = False
    error: PPIOAgentError | None = None

    @property
    def is_not_yet(self) -> bool:
        """Whether it is a ping that no healthy agent answered."""
        return self.asked.path == "/ping" and self.status != 200

    def to_line(self, hide: Callable[[str], str] = str) -> bytes:
        """Return it as a line of JSON; `hide` takes the secrets out of its texts."""
        asked = self.asked
        line: dict[str, Json] = {
            "request": {"method": asked.method, "path": asked.path, "body": asked.body}
        }
        if self.status is not None:
            line["answer"] = {
                "status": self.status,
                "headers": dict(self.headers),
                "pieces": [_to_text(piece) for piece in self.pieces],
            }
        if self.left:
            line["left"] = True
        if self.error is not None:
            line["error"] = _to_facts(self.error)
        return encode_json(_changed(line, hide)) + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Exchange:
        """Return the exchange of a line.

        Raises:
            ValueError: It is none.
        """
        value = decode_json(line)
        try:
            answer = value.get("answer") or {}
            return cls(
                asked=Asked(**value["request"]),
                status=answer.get("status"),
                headers=dict(answer.get("headers", {})),
                pieces=tuple(map(_from_text, answer.get("pieces", ()))),
                left=value.get("left", False),
                error=_from_facts(value["error"]) if "error" in value else None,
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error


def _changed(value: Json, change: Callable[[str], str]) -> Json:
    """Return a value with its texts changed; the keys are the format's, and stay."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_changed(item, change) for item in value]
    if isinstance(value, dict):
        return {key: _changed(member, change) for key, member in value.items()}
    return value


def _to_facts(error: PPIOAgentError) -> dict[str, Json]:
    plain = (str, int, float, bool, type(None))
    facts = {
        name: value for name, value in vars(error).items() if isinstance(value, plain)
    }
    return {"class": type(error).__name__, **facts}


def _from_facts(facts: Mapping[str, Json]) -> PPIOAgentError:
    cls = getattr(exceptions, facts["class"])
    if not issubclass(cls, PPIOAgentError):
        raise TypeError(f"{facts['class']} is no error of a call")
    found = {name: value for name, value in facts.items() if name != "class"}
    error: PPIOAgentError = cls(found.pop("message"))
    vars(error).update(found)
    return error


class Cassette:
    """The exchanges of a recording, given out again as they are asked for.

    Those of one request come in their order, each once. The last answer to a GET is
    given as often as it is asked for, and pings that found nobody are passed over if a
    later one did: how often a program looks is a matter of time.

    Args:
        exchanges: In the order of the recording.
        name: Of the recording, for messages.

    Thread safety: one thread at a time.
    """

    def __init__(self, exchanges: Iterable[Exchange], *, name: str) -> None:
        self._name = name
        self._left: dict[str, list[Exchange]] = {}
        for exchange in exchanges:
            self._left.setdefault(exchange.asked.key(), []).append(exchange)
        for same in self._left.values():
            well = [exchange for exchange in same if not exchange.is_not_yet]
            same[:] = reversed(well or same)

    @classmethod
    def parse(cls, data: bytes, *, name: str) -> Cassette:
        """Return the recording of a file.

        Raises:
            ConfigurationError: It is no recording; says in which line.
        """
        exchanges = []
        for number, line in enumerate(data.splitlines(), 1):
            try:
                if number > 1:
                    exchanges.append(Exchange.from_line(line))
                elif decode_json(line) != _HEADER:
                    raise ValueError("it does not begin as one")
            except ValueError as error:
                raise ConfigurationError(
                    f"{name} is no recording that can be replayed (line {number}:"
                    f" {error}); delete it to record anew"
                ) from error
        return cls(exchanges, name=name)

    @staticmethod
    def header() -> bytes:
        """Return the first line of a recording."""
        return encode_json(_HEADER) + b"\n"

    def find(self, asked: Asked) -> Exchange:
        """Return the next recorded exchange of a request.

        Raises:
            UnrecordedRequestError: There is none, or none is left.
        """
        same = self._left.get(asked.key())
        if not same:
            raise self._unrecorded(asked.key(), used_up=same is not None)
        keep = asked.method == "GET" and len(same) == 1
        return same[-1] if keep else same.pop()

    def _unrecorded(self, key: str, *, used_up: bool) -> UnrecordedRequestError:
        what = f"{_short(key)} was asked, and the recording {self._name}"
        if used_up:
            reason = "has no further answer to it"
        elif near := difflib.get_close_matches(key, self._left, n=1, cutoff=0.0):
            reason = f"does not have it; the nearest it has is {_short(near[0])}"
        else:
            reason = "is empty"
        return UnrecordedRequestError(f"{what} {reason}; delete it to record anew")


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
