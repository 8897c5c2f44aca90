"""Addresses: who can reach them, and why one cannot be listened on."""

from __future__ import annotations

import errno
import ipaddress

__all__ = ["is_loopback", "listening_error"]


def is_loopback(host: str) -> bool:
    """Whether a host name or address leads to this machine and to no other.

    Example:
        >>> is_loopback("127.0.0.1"), is_loopback("[::1]"), is_loopback("0.0.0.0")
        (True, True, False)
    """
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def listening_error(error: OSError, host: str, port: int) -> OSError:
    """Return the error of a failed listen, with the address and what to do."""
    where = f"{host}:{port}"
    if error.errno == errno.EADDRINUSE:
        return OSError(
            error.errno, f"{where} is taken by another program; choose another port"
        )
    return OSError(error.errno, f"cannot listen on {where}: {error.strerror}")
