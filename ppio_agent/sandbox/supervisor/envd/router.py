"""The in-sandbox controller: what callers may do inside, over HTTP.

Source: platform.md section 9; the Connect protocol, JSON codec.
"""

from __future__ import annotations

import binascii
import hmac
import math
import os
import time
from collections.abc import Callable, Generator, Mapping
from typing import Any

from ppio_agent.sandbox.supervisor.boot import Boot
from ppio_agent.sandbox.supervisor.loop import Loop
from ppio_agent.sandbox.supervisor.tree import Load
from ppio_agent.wire.connect import HTTP_STATUS, STREAM_CONTENT_TYPE

from .event_stream import fail_stream
from .files import Files
from .filesystem_service import FilesystemService
from .http import Connection, Request
from .process_service import ProcessService
from .roots import Roots
from .rpc import Message, RpcError, as_rpc_error, parse_message
from .signatures import Operation, check_signature, parse_query
from .slices import run_in_slices

__all__ = ["Envd"]

_JSON = "application/json"
_SEND_INPUT = "/process.Process/SendInput"
_UNAUTHORIZED = (
    "unauthorized access, please provide a valid access token or method signing if"
    " supported"
)
_USERS = ("user", "root", "")


class Envd:
    """Routes requests to what answers them.

    Args:
        loop: Where it waits.
        boot: What the sandbox is.
        access_token: What callers must show; None is no check.
        processes: Answers the process service.
        roots: The files of the sandbox.
        usage: Measures its processes.

    Thread safety: one thread at a time.
    """

    def __init__(
        self,
        loop: Loop,
        boot: Boot,
        *,
        access_token: str | None,
        processes: ProcessService,
        roots: Roots,
        usage: Callable[[], Load],
    ) -> None:
        self._loop = loop
        self._boot = boot
        self._access_token = access_token
        self._usage = usage
        self._measured = (loop.now(), usage().cpu_seconds)
        self._processes = processes
        self._files = Files(loop, roots)
        files = FilesystemService(roots)
        self._streams = {
            "/process.Process/Start": processes.start,
            "/process.Process/Connect": processes.connect,
        }
        self._calls: dict[str, Callable[[Message], Any]] = {
            "/process.Process/List": processes.list_live,
            "/process.Process/SendSignal": processes.send_signal,
            "/process.Process/CloseStdin": processes.close_stdin,
            "/filesystem.Filesystem/Stat": files.stat,
            "/filesystem.Filesystem/MakeDir": files.make_dir,
            "/filesystem.Filesystem/Move": files.move,
            "/filesystem.Filesystem/ListDir": files.list_dir,
            "/filesystem.Filesystem/Remove": files.remove,
        }

    def __call__(self, request: Request, connection: Connection) -> None:
        """Answer a request, or begin to."""
        if request.path == "/health" and request.method == "GET":
            connection.reply(204)
            return
        try:
            query = parse_query(request.query)
        except ValueError:
            what = "the query is not UTF-8, or too long"
            _fail(connection, RpcError("invalid_argument", what))
            return
        refusal = self._refusal(request, query)
        if refusal is not None:
            # The one error whose code is a number: clients in the field read it so.
            connection.reply_json(401, {"code": 401, "message": refusal})
            return
        users = (_user(request.headers.get("authorization", "")), query.get("username"))
        if any(user is not None and user not in _USERS for user in users):
            _fail(
                connection, RpcError("unauthenticated", "no such user in the sandbox")
            )
            return
        self._route(request, query, connection)

    def _refusal(self, request: Request, query: Mapping[str, str]) -> str | None:
        """Return why a request is not let in, or None."""
        token = self._access_token
        if token is None:
            return None
        given = request.headers.get("x-access-token", "").encode("latin-1")
        if hmac.compare_digest(given, token.encode()):
            return None
        if request.path == "/files" and "signature" in query:
            operation: Operation = "read" if request.method == "GET" else "write"
            return check_signature(query, operation, token, now=time.time())
        return _UNAUTHORIZED

    def _route(
        self, request: Request, query: Mapping[str, str], connection: Connection
    ) -> None:
        route = (request.method, request.path)
        if route == ("GET", "/files"):
            self._files.get(request, query, connection)
        elif route == ("POST", "/files"):
            self._files.post(request, query, connection)
        elif route == ("GET", "/metrics"):
            connection.reply_json(200, self._metrics())
        elif route == ("GET", "/envs"):
            connection.reply_json(200, dict(self._boot.env))
        elif route == ("POST", "/init"):
            what = "a sandbox is set up by its platform alone"
            _fail(connection, RpcError("permission_denied", what))
        elif request.method == "POST" and request.path in self._streams:
            if _has_type(request, connection, STREAM_CONTENT_TYPE):
                answer = self._streams[request.path]
                connection.collect(lambda body: answer(request, body, connection))
        elif request.method == "POST" and request.path in (*self._calls, _SEND_INPUT):
            if _has_type(request, connection, _JSON):
                connection.collect(
                    lambda body: self._call(request.path, body, connection)
                )
        else:
            _unsupported(request, connection)

    def _call(self, path: str, body: bytes, connection: Connection) -> None:
        """Answer a unary call, now or when it is done."""
        what = "the call"

        def failed(error: Exception) -> None:
            _fail(connection, as_rpc_error(error, what))

        def answer(value: object) -> None:
            if isinstance(value, Exception):
                failed(value)
            elif isinstance(value, bytes):  # JSON already
                connection.reply(200, value, {"content-type": _JSON})
            else:
                connection.reply_json(200, value)

        try:
            message = parse_message(body)
            what = message.text("path") or message.text("source") or what
            if path == _SEND_INPUT:  # answered when the process has taken it
                self._processes.send_input(message, answer)
                return
            result = self._calls[path](message)
        except Exception as exc:  # noqa: BLE001 - told to the caller
            failed(exc)
            return
        if isinstance(result, Generator):
            run_in_slices(self._loop, result, done=answer, failed=failed)
        else:
            answer(result)

    def _metrics(self) -> dict[str, float]:
        """Measure the sandbox; its CPU time is that since the last measurement."""
        load, now, boot = self._usage(), self._loop.now(), self._boot
        (before, used), self._measured = self._measured, (now, load.cpu_seconds)
        percent = 100 * (load.cpu_seconds - used) / max(now - before, 0.001)
        disk = os.statvfs(boot.home)
        return {
            "ts": int(time.time()),
            "cpu_count": math.ceil(boot.cpus),
            "cpu_used_pct": round(max(0.0, percent), 2),
            "mem_total": boot.memory_bytes,
            "mem_used": load.rss_bytes,
            "disk_total": disk.f_blocks * disk.f_frsize,
            "disk_used": (disk.f_blocks - disk.f_bfree) * disk.f_frsize,
        }


def _has_type(request: Request, connection: Connection, wanted: str) -> bool:
    """Whether the body is of a type; if not, the caller is told which one is taken."""
    content_type = request.headers.get("content-type", "").partition(";")[0]
    if content_type.strip().lower() != wanted:
        connection.reply(415, headers={"accept-post": wanted})
        return False
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        what = f"the encoding {encoding} is not supported"
        _fail(connection, RpcError("unimplemented", what))
        return False
    return True


def _unsupported(request: Request, connection: Connection) -> None:
    what = f"{request.method} {request.path} is not supported by the local platform"
    error = RpcError("unimplemented", what)
    if request.headers.get("content-type", "").startswith(STREAM_CONTENT_TYPE):
        fail_stream(connection, error)
    else:
        _fail(connection, error)


def _fail(connection: Connection, error: RpcError) -> None:
    status = HTTP_STATUS.get(error.code, 500)
    connection.reply_json(status, {"code": error.code, "message": error.message})


def _user(authorization: str) -> str | None:
    """Return the user a Basic header names, None without one; unreadable is `?`."""
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        return binascii.a2b_base64(credentials.encode()).decode().partition(":")[0]
    except ValueError:
        return "?"
