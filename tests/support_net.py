"""Addresses and certificates that tests of connections need."""

from __future__ import annotations

import contextlib
import random
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

__all__ = ["certificate", "deaf_address", "free_port"]

# Below those that kernels give away: a port of theirs that is free now may be that of
# any connection a moment later, of a neighbour's test, too.
_PORTS = range(10_000, 20_000)


@contextlib.contextmanager
def deaf_address() -> Iterator[tuple[str, int]]:
    """Give an address whose host neither takes a connection nor refuses it."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        # Linux drops what comes once the line of those that wait is full.
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(address)
        yield address


def free_port() -> int:
    """Return a port of loopback that nobody has, and hardly anybody will take."""
    while True:
        port = random.SystemRandom().choice(_PORTS)  # properties seed the other one
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def certificate(folder: Path, *names: str) -> tuple[ssl.SSLContext, Path] | None:
    """Make a throw-away certificate.

    Args:
        folder: Where its files are put.
        names: Of the hosts it is for; none means localhost, not its address.

    Returns:
        A server's context and the certificate's file; None without `openssl`.
    """
    openssl = shutil.which("openssl")
    if openssl is None:
        return None
    key, cert = folder / "key.pem", folder / "cert.pem"
    names = names or ("localhost",)
    command = [
        openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
        "-keyout", key, "-out", cert, "-subj", "/CN=localhost",
        "-addext", "subjectAltName=" + ",".join(f"DNS:{n}" for n in names),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context, cert
