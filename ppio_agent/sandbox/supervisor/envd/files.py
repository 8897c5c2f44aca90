"""`/files` of envd: whole files to and from callers, as they come.

Source: platform.md section 9.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from urllib.parse import quote

from ppio_agent.sandbox.supervisor.loop import Loop
from ppio_agent.wire.connect import HTTP_STATUS

from .http import Connection, Request
from .ranges import parse_range
from .roots import Roots
from .rpc import RpcError, as_rpc_error
from .slices import run_in_slices
from .upload import MAX_UPLOAD, Upload
from .walk import find

__all__ = ["Files"]

_PIECE = 256 * 1024
_SMALL_PIECE = 16 * 1024
_STATUS = {errno.EFBIG: 413, errno.ENOSPC: 507, errno.EDQUOT: 507}


class Files:
    """Sends and takes the files of the sandbox.

    Args:
        loop: Where long work is cut.
        roots: Which files those are.

    Thread safety: one thread at a time.
    """

    def __init__(self, loop: Loop, roots: Roots) -> None:
        self._loop = loop
        self._roots = roots

    def get(
        self, request: Request, query: Mapping[str, str], connection: Connection
    ) -> None:
        """Answer `GET /files`: the file, or the part of it that is asked for."""
        path = query.get("path", "")
        try:
            fd, size, name = self._open(path)
        except (RpcError, OSError) as exc:
            _fail(connection, exc, path)
            return
        headers = {
            "content-type": "application/octet-stream",
            "accept-ranges": "bytes",
            # Never shown by a browser as a page of its own.
            "content-disposition": f"attachment; filename*=UTF-8''{quote(name)}",
        }
        try:
            wanted = parse_range(request.headers.get("range"), size)
        except ValueError as exc:
            os.close(fd)
            headers = {"content-range": f"bytes */{size}"}
            error = {"code": "out_of_range", "message": str(exc)}
            connection.reply_json(416, error, headers)
            return
        sent = wanted or range(size)
        headers["content-length"] = str(len(sent))
        if wanted is not None:
            last = wanted.stop - 1
            headers["content-range"] = f"bytes {wanted.start}-{last}/{size}"
        status = 200 if wanted is None else 206
        _Download(connection, fd, sent).begin(status, headers)

    def post(
        self, request: Request, query: Mapping[str, str], connection: Connection
    ) -> None:
        """Answer `POST /files`: which files were written."""
        path = query.get("path", "")
        length = request.headers.get("content-length", "")
        try:
            if length.isdecimal() and int(length) > MAX_UPLOAD + _PIECE:
                raise OSError(errno.EFBIG, f"more than {MAX_UPLOAD} bytes")
            upload = Upload(
                self._roots,
                path,
                content_type=request.headers.get("content-type", ""),
                encoding=request.headers.get("content-encoding", ""),
            )
        except (RpcError, OSError) as exc:
            _fail(connection, exc, path)
            return

        def failed(error: Exception) -> None:
            upload.abandon()
            connection.release()
            _fail(connection, error, path)

        def on_data(data: bytes) -> None:
            connection.hold()
            run_in_slices(
                self._loop,
                upload.feed(data),
                done=lambda _: connection.release(),
                failed=failed,
            )

        def on_end() -> None:
            try:
                written = upload.finish()
            except Exception as exc:  # noqa: BLE001 - told to the caller
                failed(exc)
            else:
                connection.reply_json(200, written)

        connection.on_gone = upload.abandon
        connection.receive(on_data, on_end)

    def _open(self, path: str) -> tuple[int, int, str]:
        """Return handle, size and name of a file that is to be read."""
        place = self._roots.locate(path)
        with find(self._roots, place, follow=True) as spot:
            # Opening a pipe would wait for its other end, a terminal could become ours.
            fd = spot.open(os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        # Files that the kernel makes up have no size and are sent as nothing: those
        # below `/proc/self` would be of this process, whose memory holds the token.
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise RpcError("invalid_argument", f"{place.path} is not a file")
        return fd, status.st_size, (place.parts or ("",))[-1]


class _Download:
    """A file on its way: as fast as the client takes it, never all in memory."""

    def __init__(self, connection: Connection, fd: int, sent: range) -> None:
        self._connection = connection
        self._fd = fd
        self._at = sent.start
        self._stop = sent.stop

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        self._connection.on_gone = self._close
        self._connection.source = self._more
        self._connection.begin(status, headers)
        if self._fd >= 0:  # else the client has left meanwhile
            self._more()

    def _more(self) -> None:
        piece = _SMALL_PIECE if self._connection.strained else _PIECE
        size = min(piece, self._stop - self._at)
        data = os.pread(self._fd, size, self._at) if size else b""
        if size and not data:  # cut meanwhile: the client must not take it for whole
            self._connection.close()
            return
        self._at += len(data)
        if data:
            self._connection.write(data)
        if self._at == self._stop:
            self._connection.end()
            self._close()

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _fail(connection: Connection, error: Exception, path: str) -> None:
    told = as_rpc_error(error, path or "the upload")
    number = error.errno if isinstance(error, OSError) else None
    status = _STATUS.get(number or 0, HTTP_STATUS.get(told.code, 500))
    connection.reply_json(status, {"code": told.code, "message": told.message})
