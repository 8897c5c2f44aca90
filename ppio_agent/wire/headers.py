"""Names and forms of the headers, ids and names that both sides agree on."""

from __future__ import annotations

import re
from functools import lru_cache

from attrs import frozen

__all__ = [
    "AGENT_VERSION",
    "ATTEMPT",
    "IDEMPOTENCY_KEY",
    "IDEMPOTENCY_REPLAYED",
    "INVOCATION_ID",
    "LAST_EVENT_ID",
    "REQUEST_ID",
    "RETRY_AFTER",
    "SANDBOX_ID",
    "SANDBOX_PORT",
    "SESSION_ID",
    "TIMEOUT",
    "TRAFFIC_TOKEN",
    "Accept",
    "list_items",
    "sandbox_key",
    "valid_entrypoint",
    "valid_id",
    "valid_idempotency_key",
    "valid_session_id",
]

REQUEST_ID = "X-Request-Id"
INVOCATION_ID = "X-Invocation-Id"
SESSION_ID = "X-PPIO-Session-Id"
TIMEOUT = "X-PPIO-Timeout"
ATTEMPT = "X-PPIO-Attempt"
AGENT_VERSION = "X-PPIO-Agent"
IDEMPOTENCY_KEY = "Idempotency-Key"
IDEMPOTENCY_REPLAYED = "Idempotency-Replayed"
LAST_EVENT_ID = "Last-Event-ID"
RETRY_AFTER = "Retry-After"
SANDBOX_ID = "PPIO-Sandbox-Id"
SANDBOX_PORT = "PPIO-Sandbox-Port"
TRAFFIC_TOKEN = "E2B-Traffic-Access-Token"  # noqa: S105 - a header's name

_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII)
_LONG_ID = re.compile(r"[A-Za-z0-9._:-]{1,256}", re.ASCII)
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
# No leading "/", nor a leading "-", which Python would take for an option.
_ENTRYPOINT = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_./-]*\.py", re.ASCII)
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
# RFC 9110, 12.4.2, and the ".2" that old clients send.
_QUALITY = re.compile(r"[01](?:\.[0-9]*)?|\.[0-9]+")
# Of longer lists the rest is not looked at.
_LONGEST_LIST = 1024


def valid_id(text: str) -> bool:
    """Whether `text` may be a request or invocation id."""
    return _ID.fullmatch(text) is not None


def valid_session_id(text: str) -> bool:
    """Whether `text` may be a session id."""
    return _LONG_ID.fullmatch(text) is not None


def valid_idempotency_key(text: str) -> bool:
    """Whether `text` may be an idempotency key: 1 to 255 visible ASCII characters."""
    return _KEY.fullmatch(text) is not None


def valid_entrypoint(text: str) -> bool:
    """Whether `text` may be an agent's script: relative, inside its folder, safe.

    Example:
        >>> valid_entrypoint("src/app.py"), valid_entrypoint("a.py; rm -rf x")
        (True, False)
    """
    return _ENTRYPOINT.fullmatch(text) is not None and ".." not in text.split("/")


def sandbox_key(sandbox_id: str) -> str:
    """Return what identifies a sandbox: its id up to the first `-`."""
    return sandbox_id.partition("-")[0]


def list_items(value: str) -> list[str]:
    """Return the items of a header that is a list, quoted strings in them emptied.

    Example:
        >>> list_items('a;b="1, 2", c')
        ['a;b=""', 'c']
    """
    plain = _QUOTED.sub('""', value[:_LONGEST_LIST])
    return [item.strip(" \t") for item in plain.split(",")]


@frozen
class Accept:
    """What an `Accept` header says of the media types that an agent can answer with.

    Attributes:
        sse: Quality of ``text/event-stream`` where it is named itself, else 0.
        json: Quality of ``application/json``, wildcards included.
        html: Quality of ``text/html`` where it is named itself, else 0.
    """

    sse: float
    json: float
    html: float

    @property
    def names_sse(self) -> bool:
        """Whether full event streams are wanted; a wildcard does not say so."""
        return self.sse > 0

    @property
    def envelope(self) -> bool:
        """Whether a plain value may be answered as one JSON envelope."""
        return not self.names_sse or (self.json > 0 and self.json >= self.sse)

    @property
    def prefers_html(self) -> bool:
        """Whether a person's browser asks."""
        return self.html > 0 and self.html >= self.json

    @classmethod
    def parse(cls, value: str | None) -> Accept:
        """Return what the header says; absent or unreadable accepts JSON."""
        return _parse_accept((value or "")[:_LONGEST_LIST])


@lru_cache(maxsize=256)
def _parse_accept(value: str) -> Accept:
    named: dict[str, float] = {}
    for item in list_items(value):
        media, *parameters = (piece.strip(" \t").lower() for piece in item.split(";"))
        if media:
            named[media] = max(_quality(parameters), named.get(media, 0.0))
    if not named:
        return Accept(sse=0.0, json=1.0, html=0.0)
    anything = named.get("*/*", 0.0)
    json = named.get("application/json", named.get("application/*", anything))
    return Accept(
        sse=named.get("text/event-stream", 0.0),
        json=json,
        html=named.get("text/html", 0.0),
    )


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip(" \t") == "q":
            known = _QUALITY.fullmatch(value.strip(" \t"))
            quality = float(value) if known else 0.0
            return quality if quality <= 1.0 else 0.0
    return 1.0
