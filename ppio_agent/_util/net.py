"""Addresses: who can reach them, and why one cannot be listened on."""

from __future__ import annotations

import errno
import ipaddress

__all__ = ["authority_of", "is_loopback", "listening_error"]


def authority_of(host: str, port: int) -> str:
    """Return host and port, as in a URL, at which this machine reaches a listener.

    Example:
        >>> authority_of("0.0.0.0", 80), authority_of("::", 80)
        ('127.0.0.1:80', '[::1]:80')
    """
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


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
