"""The in-sandbox controller: what callers may do inside, over HTTP.

Source: platform.md section 9; the Connect protocol, JSON codec.
"""

from __future__ import annotations

import binascii
import hmac

from ppio_agent.wire.connect import HTTP_STATUS

from .http import Connection, Request
from .process_service import ProcessService

__all__ = ["Envd"]

_UNAUTHORIZED = (
    "unauthorized access, please provide a valid access token or method signing if"
    " supported"
)
_USERS = ("user", "root", "")


class Envd:
    """Routes requests to what answers them.

    Args:
        access_token: What requests must show; None is no check.
        processes: Answers the process service.

    Thread safety: one thread at a time.
    """

    def __init__(self, *, access_token: str | None, processes: ProcessService) -> None:
        self._access_token = access_token
        self._processes = processes

    def __call__(self, request: Request, connection: Connection) -> None:
        """Answer a request, or begin to."""
        if request.path == "/health" and request.method == "GET":
            connection.reply(204)
        elif not self._admits(request.headers.get("x-access-token")):
            # The one error whose code is a number: clients in the field read it so.
            connection.reply_json(401, {"code": 401, "message": _UNAUTHORIZED})
        elif _user(request.headers.get("authorization", "")) not in _USERS:
            _error(connection, "unauthenticated", "no such user in the sandbox")
        elif request.path == "/process.Process/Start" and request.method == "POST":
            self._processes.start(request, connection)
        else:
            what = f"{request.method} {request.path}"
            _error(
                connection,
                "unimplemented",
                f"{what} is not supported by the local platform",
            )

    def _admits(self, token: str | None) -> bool:
        if self._access_token is None:
            return True
        given = (token or "").encode("latin-1")
        return hmac.compare_digest(given, self._access_token.encode())


def _error(connection: Connection, code: str, message: str) -> None:
    connection.reply_json(HTTP_STATUS[code], {"code": code, "message": message})


def _user(authorization: str) -> str | None:
    """Return the user a Basic header names, `""` without one, None if unreadable."""
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        return binascii.a2b_base64(credentials.encode()).decode().partition(":")[0]
    except ValueError:
        return None
