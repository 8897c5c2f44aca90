"""The platform's own certificate authority: made once, kept, and made anew if need be."""

from __future__ import annotations

import datetime as dt
import logging
import ssl
import sys
from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent.exceptions import TLSUnavailableError
from ppio_agent.sandbox.edge.authority import AUTHORITY_NAME, Authority
from ppio_agent.sandbox.edge.tls import TLS, names_of, open_tls

NOW = dt.datetime(2030, 1, 1, tzinfo=dt.timezone.utc)
YEAR = dt.timedelta(days=365)


def opened(folder: Path, now: dt.datetime = NOW, **more: str) -> TLS:
    return open_tls(
        folder, **{"domain": "sandbox.test", "host": "127.0.0.1", **more}, now=now
    )


def own(bundle: Path) -> list[str]:
    """Return those certificates of a bundle that platforms made."""
    pems = bundle.read_text().split("-----END CERTIFICATE-----\n")
    certificates = [f"{pem}-----END CERTIFICATE-----\n" for pem in pems if pem.strip()]
    # Not by cryptography, which warns of odd ones that systems trust.
    return [pem for pem in certificates if AUTHORITY_NAME.encode() in _der(pem)]


def _der(pem: str) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pem)


def test_the_authority_is_kept_between_starts(tmp_path: Path) -> None:
    """Who trusts it does so for years."""
    first = own(opened(tmp_path).bundle)
    again = own(opened(tmp_path, NOW + YEAR).bundle)

    assert len(first) == 1
    assert again == first


def test_only_its_owner_can_read_the_key(tmp_path: Path) -> None:
    """The rest of the folder is nobody's business either; no key is left elsewhere."""
    bundle = opened(tmp_path / "tls").bundle

    modes = {p.name: p.stat().st_mode & 0o777 for p in bundle.parent.iterdir()}
    assert modes == {"authority.pem": 0o600, "bundle.pem": 0o644}
    assert bundle.parent.stat().st_mode & 0o777 == 0o700
    assert "PRIVATE" not in bundle.read_text()


def test_the_bundle_also_has_what_the_system_trusts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once each, though SSL_CERT_FILE may be the bundle of an earlier start."""
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    first = opened(tmp_path / "one").bundle
    known = ssl.create_default_context(cafile=str(first)).cert_store_stats()["x509_ca"]
    assert known >= 1 + len(ssl.create_default_context().get_ca_certs())

    monkeypatch.setenv("SSL_CERT_FILE", str(first))
    second = opened(tmp_path / "two").bundle
    text = second.read_text()
    assert text.count("BEGIN CERTIFICATE") == known
    assert len(own(second)) == 1
    assert own(second) != own(first)


def test_a_system_that_has_only_a_folder_is_read_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever else lies in it."""
    folder = tmp_path / "certs"
    folder.mkdir()
    other = Authority.new(NOW).certificate
    (folder / "00000000.0").write_bytes(other)
    (folder / "11111111.0").write_text("not a certificate")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "absent"))
    monkeypatch.setenv("SSL_CERT_DIR", str(folder))
    monkeypatch.setattr("ppio_agent.sandbox.edge.authority.AUTHORITY_NAME", "another")

    bundle = opened(tmp_path / "tls").bundle.read_text()

    assert bundle.startswith(other.decode())
    assert bundle.count("BEGIN CERTIFICATE") == 2


@pytest.mark.parametrize("damage", [b"", b"x", b"-----BEGIN CERTIFICATE-----\n"])
def test_a_damaged_authority_is_made_anew(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """And said to be, since clients must be given the new bundle."""
    first = own(opened(tmp_path).bundle)
    (tmp_path / "authority.pem").write_bytes(damage)
    caplog.set_level(logging.WARNING)

    assert own(opened(tmp_path).bundle) != first
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "PRIVATE" not in caplog.text


def test_key_and_certificate_must_belong_together(tmp_path: Path) -> None:
    """As they do not if two were mixed up."""
    one, other = Authority.new(NOW), Authority.new(NOW)
    key = one.dump().removesuffix(one.certificate)

    with pytest.raises(ValueError, match="not that of the certificate"):
        Authority.load(key + other.certificate, NOW)


@settings(max_examples=60)
@given(st.integers(0, 840), st.binary(min_size=1, max_size=4))
def test_no_damage_passes_or_is_fatal(place: int, junk: bytes) -> None:
    """It is whole, or a ValueError."""
    text = SOUND.dump()
    damaged = text[:place] + junk + text[place + len(junk) :]
    try:
        found = Authority.load(damaged, NOW)
    except ValueError:
        return
    assert found.issue(["localhost"], NOW)


SOUND = Authority.new(NOW)


def test_an_authority_is_replaced_before_it_expires(tmp_path: Path) -> None:
    """While its newest certificate is still good."""
    first = own(opened(tmp_path).bundle)

    assert own(opened(tmp_path, NOW + 7 * YEAR).bundle) == first
    assert own(opened(tmp_path, NOW + 9 * YEAR).bundle) != first


@pytest.mark.parametrize(
    ("host", "names"),
    [
        ("127.0.0.1", {"*.sandbox.test", "localhost"}),
        ("0.0.0.0", {"*.sandbox.test", "localhost"}),
        ("::", {"*.sandbox.test", "localhost"}),
        ("box.example", {"*.sandbox.test", "localhost", "box.example"}),
    ],
)
def test_a_certificate_is_for_the_platforms_names(host: str, names: set[str]) -> None:
    """A wildcard address is no name of it; strict clients take it."""
    found = x509.load_pem_x509_certificate(_issued(host))
    alternatives = found.extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    ).value

    assert set(alternatives.get_values_for_type(x509.DNSName)) == names
    addresses = {str(a) for a in alternatives.get_values_for_type(x509.IPAddress)}
    assert addresses == {"127.0.0.1", "::1"}
    assert found.not_valid_after_utc - NOW < dt.timedelta(days=825)


def _issued(host: str) -> bytes:
    return SOUND.issue(names_of("Sandbox.test:3443", host), NOW)


def test_strict_clients_accept_the_chain(tmp_path: Path) -> None:
    """Newer versions of Python check more of it by default."""
    # The clock of OpenSSL cannot be set.
    now = dt.datetime.now(dt.timezone.utc)
    tls = opened(tmp_path, now)
    context = ssl.create_default_context(cafile=str(tls.bundle))
    context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(back, there, server_hostname="8080-x.sandbox.test")
    server = tls.context.wrap_bio(there, back, server_side=True)
    for _ in range(3):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert client.version() in {"TLSv1.2", "TLSv1.3"}


def test_without_the_extra_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And makes nothing."""
    monkeypatch.setitem(sys.modules, "ppio_agent.sandbox.edge.authority", None)

    with pytest.raises(TLSUnavailableError, match=r"ppio-agent\[tls\]"):
        opened(tmp_path / "tls")
    assert not (tmp_path / "tls").exists()
