"""One HTTP request, as routes and plug-ins see it; read lazily."""

from __future__ import annotations

import functools
import io
import re
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qs, quote

from ppio_agent.exceptions import ValidationError, WireError
from ppio_agent.wire.json import Json, decode_json
from ppio_agent.wire.models import Principal

from .kit import read_body

__all__ = ["Exchange", "check_media"]

_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")


@functools.lru_cache(maxsize=512)
def _header_name(key: str) -> str | None:
    if key.startswith("HTTP_"):
        key = key[5:]
    elif key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        return None
    return key.replace("_", "-").lower()


class Exchange:
    """One request.

    Args:
        environ: Its WSGI environ.
        max_body: Most bytes its body may have.

    Attributes:
        method: Upper case.
        path: Decoded, without query and trailing slash.
        principal: Who sent it, once that is known.
        hidden: Names of headers with verified credentials.

    Thread safety: one thread at a time.
    """

    __slots__ = (
        "_body", "_headers", "_max_body", "environ", "hidden", "method", "path",
        "principal",
    )  # fmt: skip

    def __init__(self, environ: dict[str, Any], *, max_body: int) -> None:
        path: str = environ.get("PATH_INFO") or "/"
        if len(path) > 1 and path[-1] == "/":
            path = path.rstrip("/") or "/"
        self.environ = environ
        self.method: str = environ["REQUEST_METHOD"]
        self.path = path
        self.principal: Principal | None = None
        self.hidden: frozenset[str] = frozenset()
        self._max_body = max_body
        self._headers: dict[str, str] | None = None
        self._body: bytes | None = None

    @property
    def request_id(self) -> str:
        """The id that the answer carries."""
        found: str = self.environ["ppio.request_id"]
        return found

    @property
    def arrived(self) -> float:
        """When it arrived, as an instant of `time.monotonic`."""
        found: float | None = self.environ.get("ppio.arrived")
        return time.monotonic() if found is None else found

    @property
    def has_lanes(self) -> bool:
        """Whether our own server is in front, which admits and watches by itself."""
        return "ppio.arrived" in self.environ

    @property
    def client_gone(self) -> Callable[[], bool] | None:
        """What tells whether the client has left, where the server can say so."""
        return self.environ.get("ppio.client_gone")

    @property
    def headers(self) -> Mapping[str, str]:
        """All headers, lower-case names."""
        if self._headers is None:
            self._headers = {
                name: value
                for key, value in self.environ.items()
                if (name := _header_name(key)) is not None
            }
        return self._headers

    @property
    def shown_headers(self) -> Mapping[str, str]:
        """The headers without verified credentials."""
        if not self.hidden:
            return self.headers
        return {k: v for k, v in self.headers.items() if k not in self.hidden}

    def query(self, name: str) -> str | None:
        """Return the first value of a query parameter, or None."""
        text = self.environ.get("QUERY_STRING")
        if not text or name not in text:
            return None
        values = parse_qs(text, keep_blank_values=True).get(name)
        return values[0] if values else None

    def place(self, path: str) -> str:
        """Return the URL path of a path of the app, wherever that is mounted."""
        path = self.environ.get("SCRIPT_NAME", "") + path
        return quote(path.encode("latin-1"), safe="/:@!$&'()*+,;=~-._")

    @property
    def target(self) -> str:
        """Path and query as they were sent, still encoded; bytes as Latin-1."""
        environ = self.environ
        raw: str | None = environ.get("REQUEST_URI") or environ.get("RAW_URI")
        if raw is None:
            query = environ.get("QUERY_STRING")
            raw = self.place(environ.get("PATH_INFO", ""))
            return f"{raw}?{query}" if query else raw
        return raw if raw.startswith("/") else _without_host(raw)

    @property
    def body(self) -> bytes:
        """The whole body; it can still be read from the environ afterwards.

        Raises:
            RequestTooLargeError: It is larger than the app takes.
        """
        if self._body is None:
            self._body = read_body(self.environ, self._max_body)
            self.environ["wsgi.input"] = io.BytesIO(self._body)
        return self._body

    def json(self, *, code: str | None = None) -> Json:
        """Return the body, decoded.

        Args:
            code: Of the error if it is no JSON.

        Raises:
            ValidationError: It is no JSON, or said to be something else (415).
            RequestTooLargeError: It is larger than the app takes.
        """
        environ = self.environ
        check_media(
            environ.get("CONTENT_TYPE", ""), environ.get("HTTP_CONTENT_ENCODING", "")
        )
        try:
            return decode_json(self.body)
        except WireError as error:
            raise ValidationError(str(error), code=code) from error


@functools.lru_cache(maxsize=64)
def check_media(content_type: str, content_encoding: str) -> None:
    """Return if a body of this type can be read as JSON.

    Raises:
        ValidationError: It is a form, or compressed (`unsupported_media_type`, 415).
    """
    media = content_type.partition(";")[0].strip().lower()
    if media in _FORMS:
        raise _unsupported(f"a body of type {media}; send JSON")
    if content_encoding.strip().lower() not in ("", "identity"):
        raise _unsupported("a compressed body; send it as it is")


def _unsupported(what: str) -> ValidationError:
    return ValidationError(
        f"the agent does not take {what}",
        code="unsupported_media_type",
        http_status=415,
    )


def _without_host(target: str) -> str:
    """Return path and query of a target in absolute form (RFC 9112, 3.2.2)."""
    _, found, rest = target.partition("://")
    if not found:
        return target
    start = re.search(r"[/?]", rest)
    if start is None:
        return "/"
    shown = rest[start.start() :]
    return shown if shown.startswith("/") else f"/{shown}"
