"""The platform's own certificate authority, and the certificates it signs.

The one home of `cryptography`, from the extra `tls`; loaded only when TLS is on. No
file is opened here.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Iterable
from typing import Final

from attrs import frozen
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

__all__ = ["AUTHORITY_NAME", "Authority"]

AUTHORITY_NAME: Final = "ppio_agent local platform"
"""Common name of every authority that a platform makes for itself."""

_AUTHORITY_LIFE: Final = dt.timedelta(days=3652)
# The longest that all clients accept.
_CERTIFICATE_LIFE: Final = dt.timedelta(days=820)
# For clients whose clock is behind.
_BEFORE: Final = dt.timedelta(days=1)


@frozen
class Authority:
    """A key and the self-signed certificate that makes it an authority.

    Thread safety: immutable.
    """

    _key: ec.EllipticCurvePrivateKey
    _certificate: x509.Certificate

    @classmethod
    def new(cls, now: dt.datetime) -> Authority:
        """Make one that is good for ten years.

        Args:
            now: The time, aware.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name(AUTHORITY_NAME)
        builder = (
            _builder(key.public_key(), now, _AUTHORITY_LIFE)
            .subject_name(name)
            .issuer_name(name)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
        )
        return cls(key, builder.sign(key, hashes.SHA256()))

    @classmethod
    def load(cls, text: bytes, now: dt.datetime) -> Authority:
        """Read what `dump` wrote.

        Args:
            text: Key and certificate, PEM.
            now: The time, aware.

        Raises:
            ValueError: It is damaged, or ends before a certificate that is signed now
                would.
        """
        try:
            key = serialization.load_pem_private_key(text, None)
            certificate = x509.load_pem_x509_certificate(text)
            # Its signature is over all of it, and so tells any damage.
            certificate.verify_directly_issued_by(certificate)
        except (TypeError, UnsupportedAlgorithm, InvalidSignature) as exc:
            raise ValueError(f"it cannot be read: {exc}") from exc
        if (
            not isinstance(key, ec.EllipticCurvePrivateKey)
            or certificate.public_key() != key.public_key()
        ):
            raise ValueError("the key is not that of the certificate")
        if certificate.not_valid_after_utc < now + _CERTIFICATE_LIFE:
            raise ValueError("it is about to expire")
        return cls(key, certificate)

    @property
    def certificate(self) -> bytes:
        """What clients have to trust, PEM."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def dump(self) -> bytes:
        """Return key and certificate as `load` reads them. A secret."""
        return _pem(self._key) + self.certificate

    def issue(self, names: Iterable[str], now: dt.datetime) -> bytes:
        """Return a new key and a certificate for it, PEM. A secret.

        Args:
            names: Host names and addresses that it is for, all of them.
            now: The time, aware.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = self._certificate.extensions.get_extension_for_class(
            x509.SubjectKeyIdentifier
        ).value
        server = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
        known_by = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
            issuer
        )
        certificate = (
            _builder(key.public_key(), now, _CERTIFICATE_LIFE)
            .subject_name(_name("ppio_agent local sandboxes"))
            .issuer_name(self._certificate.subject)
            .add_extension(
                x509.BasicConstraints(ca=False, path_length=None), critical=True
            )
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(server, critical=False)
            .add_extension(known_by, critical=False)
            .add_extension(
                x509.SubjectAlternativeName([_general_name(name) for name in names]),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        return _pem(key) + certificate.public_bytes(serialization.Encoding.PEM)


def _builder(
    key: ec.EllipticCurvePublicKey, now: dt.datetime, life: dt.timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BEFORE)
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
