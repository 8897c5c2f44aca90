"""What the calls of envd share: messages as protojson, errors, the frames around them.

The fields of all requests in use have names of one word, so that the two spellings of
protojson are one here. Unknown fields are ignored, null is absent.

Source: the Connect protocol; the JSON form of protocol buffers.
"""

from __future__ import annotations

import binascii
import errno
import json
import logging
import re
from collections.abc import Mapping, Sized
from typing import Any

from ppio_agent.exceptions import WireError
from ppio_agent.wire.connect import FrameReader, encode_frame

__all__ = [
    "Message",
    "RpcError",
    "as_rpc_error",
    "end_frame",
    "only_frame",
    "parse_message",
]

_log = logging.getLogger(__name__)

# Items of a list or pairs of a mapping: more than any program can be started with, and
# few enough to be looked at while all else waits.
_MAX_ITEMS = 65_536
_FROM_URL = bytes.maketrans(b"-_", b"+/")
# Of the flags of a frame.
_COMPRESSED = 0b01

_CODES = {
    errno.ENOENT: "not_found",
    errno.EEXIST: "already_exists",
    errno.ENOTEMPTY: "already_exists",
    errno.EACCES: "permission_denied",
    errno.EPERM: "permission_denied",
    errno.EROFS: "permission_denied",
    errno.EBUSY: "permission_denied",
    errno.ENOTDIR: "not_found",
    errno.EISDIR: "invalid_argument",
    errno.EINVAL: "invalid_argument",
    errno.ELOOP: "invalid_argument",
    errno.ENAMETOOLONG: "invalid_argument",
    errno.ENOEXEC: "invalid_argument",
    errno.ENXIO: "invalid_argument",
    errno.E2BIG: "invalid_argument",
    errno.ECANCELED: "unavailable",
    errno.ETXTBSY: "unavailable",
    errno.EAGAIN: "resource_exhausted",
    errno.ENOMEM: "resource_exhausted",
    errno.EMFILE: "resource_exhausted",
    errno.ENFILE: "resource_exhausted",
    errno.ENOSPC: "resource_exhausted",
    errno.EFBIG: "resource_exhausted",
    errno.EDQUOT: "resource_exhausted",
}


class RpcError(Exception):
    """A call fails with this Connect code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def as_rpc_error(error: Exception, what: str = "the call") -> RpcError:
    """Return how a caller is told of `error`.

    Args:
        error: What was raised; logged if nothing of the kind was to be expected.
        what: What failed, for the message.
    """
    if isinstance(error, RpcError):
        return error
    if isinstance(error, OSError):
        code = _CODES.get(error.errno or 0, "internal")
        return RpcError(code, f"{what}: {(error.strerror or 'failed').lower()}")
    _log.error("a call of envd failed", exc_info=error)
    return RpcError("internal", f"{what} failed inside the sandbox")


class Message:
    """One object of a request, read field by field.

    Every reader raises `RpcError` `invalid_argument`, with the path of the field, when
    its value is of another kind.

    Args:
        value: The decoded JSON.
        path: Where it stands, as in `$.process`.
    """

    def __init__(self, value: object, path: str = "$") -> None:
        if not isinstance(value, dict):
            raise _expected(path, "an object")
        self._value: dict[str, Any] = value
        self._path = path

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self._value.get(name) is not None

    def text(self, name: str, default: str = "") -> str:
        """Return a text without zero bytes."""
        return _text(self._get(name, default), self._at(name))

    def flag(self, name: str, *, default: bool = False) -> bool:
        """Return a truth."""
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise _expected(self._at(name), "a boolean")
        return value

    def number(self, name: str, default: int = 0) -> int:
        """Return a number of 32 bits that is not negative; text of digits is one."""
        value = self._get(name, default)
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,10}", value):
            value = int(value)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise _expected(self._at(name), "a whole number")
        if not 0 <= value < 2**32:
            raise _expected(self._at(name), "a number of 32 bits")
        return value

    def data(self, name: str) -> bytes:
        """Return bytes: base64, in either alphabet, padded or not."""
        text = self.text(name).rstrip("=").encode()
        if b"-" in text or b"_" in text:
            text = text.translate(_FROM_URL)
        try:
            data = binascii.a2b_base64(text + b"=" * (-len(text) % 4))
            # Else it has skipped some; its strict mode is of a later Python.
            if len(text) % 4 == 1 or len(data) != len(text) * 3 // 4:
                raise ValueError("another character")
        except ValueError as exc:
            raise _expected(self._at(name), "base64") from exc
        return data

    def texts(self, name: str) -> list[str]:
        """Return a list of texts."""
        value = self._get(name, [])
        if not isinstance(value, list):
            raise _expected(self._at(name), "a list")
        self._refuse_many(name, value)
        return [_text(item, self._at(name)) for item in value]

    def mapping(self, name: str) -> dict[str, str]:
        """Return a mapping of text to text."""
        value = self._get(name, {})
        if not isinstance(value, dict):
            raise _expected(self._at(name), "an object")
        self._refuse_many(name, value)
        at = self._at(name)
        return {_text(key, at): _text(item, at) for key, item in value.items()}

    def one_of(self, name: str, values: Mapping[str, int]) -> int:
        """Return the number of an enum, which is given by name or by number."""
        value = self._get(name, 0)
        if isinstance(value, str):
            value = values.get(value, -1)
        if isinstance(value, bool) or value not in values.values():
            raise _expected(self._at(name), f"one of {', '.join(values)}")
        number: int = value
        return number

    def child(self, name: str) -> Message:
        """Return the object in a field."""
        return Message(self._get(name, {}), self._at(name))

    def _refuse_many(self, name: str, items: Sized) -> None:
        if len(items) > _MAX_ITEMS:
            raise _expected(self._at(name), f"at most {_MAX_ITEMS} items")

    def _get(self, name: str, default: object) -> Any:
        value = self._value.get(name)
        return default if value is None else value

    def _at(self, name: str) -> str:
        return f"{self._path}.{name}"


def parse_message(payload: bytes) -> Message:
    """Read a message. Pure.

    Raises:
        RpcError: It is not a JSON object.
    """
    try:
        value = json.loads(payload)
    except (ValueError, RecursionError) as exc:
        raise RpcError("invalid_argument", "the message is not JSON") from exc
    return Message(value)


def only_frame(body: bytes) -> bytes:
    """Return the payload of the one frame that is the body of a request. Pure.

    Raises:
        RpcError: It is not one frame, or a compressed one.
    """
    flags = body[0] if body else 0
    if flags & _COMPRESSED:
        raise RpcError("unimplemented", "compressed messages are not supported")
    if flags:
        raise RpcError("invalid_argument", f"no message has the flags {flags}")
    reader = FrameReader()
    try:
        frames = reader.feed(body)
    except WireError as exc:
        raise RpcError("invalid_argument", str(exc)) from exc
    if len(frames) != 1 or reader.pending:
        raise RpcError("invalid_argument", "expected one message")
    return frames[0].payload


def end_frame(error: RpcError | None = None) -> bytes:
    """Return the last frame of a stream. Pure."""
    end: dict[str, object] = {}
    if error is not None:
        end["error"] = {"code": error.code, "message": error.message}
    return encode_frame(json.dumps(end, separators=(",", ":")).encode(), end=True)


def _expected(path: str, what: str) -> RpcError:
    return RpcError("invalid_argument", f"{path}: expected {what}")


def _text(value: object, path: str) -> str:
    if not isinstance(value, str):
        raise _expected(path, "a text")
    if "\0" in value:
        raise RpcError("invalid_argument", f"{path}: holds a zero byte")
    try:
        value.encode()
    except UnicodeEncodeError as exc:
        raise _expected(path, "text that can be encoded") from exc
    return value
