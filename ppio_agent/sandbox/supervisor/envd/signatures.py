"""Signed URLs of files: who has one may read or write that file without a token. Pure.

Source: platform.md section 9, row "signature".
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping
from typing import Literal
from urllib.parse import parse_qsl

__all__ = ["Operation", "check_signature", "is_signed", "parse_query", "sign"]

Operation = Literal["read", "write"]

_OPERATIONS: dict[str, Operation] = {"GET": "read", "POST": "write"}
_MAX_PARAMETERS = 64


def parse_query(query: str) -> dict[str, str]:
    """Return the parameters of a URL, of a repeated one the last.

    Raises:
        ValueError: They are not UTF-8, or too many.
    """
    found = parse_qsl(
        query,
        keep_blank_values=True,
        errors="strict",
        max_num_fields=_MAX_PARAMETERS,
    )
    return dict(found)


def is_signed(method: str, path: str, query: str, *, token: str, now: float) -> bool:
    """Whether a request needs no token, for its URL has a signature that holds.

    Args:
        method: As sent.
        path: Of the URL.
        query: Of the URL.
        token: The access token of the sandbox.
        now: Unix time.
    """
    operation = _OPERATIONS.get(method)
    if path != "/files" or operation is None:
        return False
    try:
        refusal = check_signature(parse_query(query), operation, token, now=now)
    except ValueError:
        return False
    return refusal is None


def sign(
    path: str, operation: Operation, user: str, token: str, expiration: int | None
) -> str:
    """Return the signature of an operation on a file.

    Args:
        path: As it stands in the URL.
        operation: What may be done.
        user: The user named in the URL; empty without one.
        token: The access token of the sandbox.
        expiration: Unix time until which it holds; None for ever.
    """
    parts = [path, operation, user, token]
    if expiration is not None:
        parts.append(str(expiration))
    digest = hashlib.sha256(":".join(parts).encode()).digest()
    return "v1_" + binascii.b2a_base64(digest, newline=False).rstrip(b"=").decode()


def check_signature(
    query: Mapping[str, str], operation: Operation, token: str, *, now: float
) -> str | None:
    """Return why the parameters of a URL do not allow an operation, or None.

    Args:
        query: `path`, `username`, `signature`, `signature_expiration`.
        operation: What is asked for.
        token: The access token of the sandbox.
        now: Unix time.
    """
    until = query.get("signature_expiration")
    if until is not None and not re.fullmatch(r"-?[0-9]{1,15}", until):
        return "invalid signature expiration"
    expiration = None if until is None else int(until)
    right = sign(
        query.get("path", ""), operation, query.get("username", ""), token, expiration
    )
    given = query.get("signature", "").encode()
    if not hmac.compare_digest(given, right.encode()):
        return "invalid signature"
    if expiration is not None and expiration < now:
        return "signature is already expired"
    return None
