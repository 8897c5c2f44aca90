"""What the edge needs to speak TLS: a certificate, and a file for clients to trust.

The authority is made once and kept in the data directory, so that who trusts it does
so for years. Its certificate for the edge is made anew at each start and kept nowhere.
"""

from __future__ import annotations

import datetime as dt
import logging
import ssl
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attrs import frozen

from ppio_agent._util.files import UNFINISHED, replace_file
from ppio_agent.exceptions import TLSUnavailableError

if TYPE_CHECKING:
    from .authority import Authority

__all__ = ["TLS", "names_of", "open_tls"]

_log = logging.getLogger(__name__)

_AUTHORITY: Final = "authority.pem"
_BUNDLE: Final = "bundle.pem"
_LOCAL: Final = ("localhost", "127.0.0.1", "::1")
_EVERYWHERE: Final = frozenset({"", "0.0.0.0", "::"})


@frozen(kw_only=True)
class TLS:
    """What TLS needs, ready.

    Attributes:
        context: For the server's side of connections.
        bundle: File with the authorities of the system and our own, for clients.
    """

    context: ssl.SSLContext
    bundle: Path


def open_tls(
    folder: Path, *, domain: str, host: str, now: dt.datetime | None = None
) -> TLS:
    """Return what TLS needs, making what is not there yet.

    Args:
        folder: For the authority's key and the bundle; made with mode 0700.
        domain: Host names of sandboxes end so; a port at its end does not count.
        host: Address or name that the platform listens at.
        now: The time, aware; None asks the clock.

    Raises:
        TLSUnavailableError: The extra `tls` is not installed.
        OSError: The folder cannot be used.
    """
    try:
        from .authority import AUTHORITY_NAME, Authority
    except ImportError as exc:
        raise TLSUnavailableError(
            "TLS needs the package cryptography: pip install 'ppio-agent[tls]',"
            " or leave tls_port unset"
        ) from exc
    now = dt.datetime.now(dt.timezone.utc) if now is None else now
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    authority = _authority(Authority, folder / _AUTHORITY, now)
    certificate = authority.issue(names_of(domain, host), now)
    bundle = folder / _BUNDLE
    known = _known_authorities(without=AUTHORITY_NAME)
    replace_file(bundle, "".join(known).encode() + authority.certificate, mode=0o644)
    return TLS(context=_context(folder, certificate), bundle=bundle)


def names_of(domain: str, host: str) -> list[str]:
    """Return the host names and addresses that a certificate has to be for.

    Args:
        domain: As of `open_tls`.
        host: As of `open_tls`.

    Example:
        >>> names_of("sandbox.test", "0.0.0.0")
        ['*.sandbox.test', 'localhost', '127.0.0.1', '::1']
    """
    parent = domain.partition(":")[0].lower()
    names = dict.fromkeys([f"*.{parent}", *_LOCAL, host])
    return [name for name in names if name not in _EVERYWHERE]


def _authority(kind: type[Authority], path: Path, now: dt.datetime) -> Authority:
    try:
        return kind.load(path.read_bytes(), now)
    except FileNotFoundError:
        pass
    except ValueError as exc:
        _log.warning(
            "the certificate authority %s cannot be used and is made anew: %s",
            path,
            exc,
        )
    authority = kind.new(now)
    replace_file(path, authority.dump(), mode=0o600)
    return authority


def _known_authorities(*, without: str) -> Iterable[str]:
    """Yield the certificates that this machine trusts, PEM.

    `SSL_CERT_FILE` replaces them in whoever is given our bundle, so it has them, too.
    It may be our own bundle: what an earlier start put in is left `without`.
    """
    context = ssl.create_default_context()
    where = ssl.get_default_verify_paths().capath
    if where and not context.get_ca_certs():
        # A folder is only looked up by OpenSSL, certificate by certificate.
        for path in sorted(Path(where).glob("*.[0-9]")):
            try:
                context.load_verify_locations(path)
            except (OSError, ValueError):
                _log.debug("no certificate can be read from %s", path)
    for about, der in zip(
        context.get_ca_certs(), context.get_ca_certs(binary_form=True), strict=True
    ):
        # Each is a tuple of tuples of pairs.
        if (("commonName", without),) not in about.get("subject", ()):
            yield ssl.DER_cert_to_PEM_cert(der)


def _context(folder: Path, certificate: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    # OpenSSL reads it from a file only.
    with tempfile.NamedTemporaryFile(dir=folder, suffix=UNFINISHED) as file:
        file.write(certificate)
        file.flush()
        context.load_cert_chain(file.name)
    return context
