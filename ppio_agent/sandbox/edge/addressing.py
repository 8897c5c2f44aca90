"""Where a request goes: the control plane or a port of a sandbox.

Pure. The order is that of the platform's specification, section 8: the left-most
label of the host name, or of a Basic user name; the routing headers; the envd token;
else the control plane.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TypeAlias

from attrs import frozen

from ppio_agent.sandbox.keys import basic_user, bearer
from ppio_agent.sandbox.supervisor.ports import ENVD_PORT

__all__ = [
    "BadRoute",
    "ControlPlane",
    "SandboxPort",
    "Target",
    "is_own_host",
    "route",
]

_SANDBOX_ID = re.compile(r"[a-z0-9]{20}")
# The client's part is whatever a composite id carries; only its characters count.
_ID_AND_CLIENT = re.compile(r"([^-]*)(?:-[A-Za-z0-9-]*)?")
_LABEL = re.compile(r"([0-9]+)-(.*)")
_PORT = re.compile(r"[0-9]{1,5}")
_CONTROL_PATH = re.compile(
    r"/(?:v[0-9]+/)?(?:sandboxes|templates|volumes|secrets)(?:/|$)|/platform/v1(?:/|$)"
)
_CONTROL_USER = "api"
_ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")


@frozen
class ControlPlane:
    """The platform's own API."""


@frozen
class SandboxPort:
    """A logical port of one sandbox.

    Attributes:
        sandbox_id: Without a client's suffix.
        port: 8080 is the agent's, 49983 envd's.
    """

    sandbox_id: str
    port: int


@frozen
class BadRoute:
    """The request names no possible target; it is answered 400.

    Attributes:
        message: Why, for the caller.
    """

    message: str


Target: TypeAlias = ControlPlane | SandboxPort


@frozen
class _Claim:
    """What one part of a request says about its target; None leaves it open."""

    sandbox_id: str | None = None
    port: int | None = None


class _Unroutable(ValueError):  # noqa: N818 - carried to `route`, never seen outside
    pass


def route(
    headers: Iterable[tuple[bytes, bytes]],
    target: bytes,
    *,
    domain: str,
    sandbox_of: Callable[[str], str | None],
    is_short_key: Callable[[str], bool],
) -> Target | BadRoute:
    """Return where a request goes.

    Args:
        headers: Names in lower case, and values, `host` among them.
        target: The request target, as received.
        domain: Host names of sandboxes are `{port}-{id}[-{client}].{domain}`; a port
            at its end does not count.
        sandbox_of: The sandbox an envd token belongs to, or None.
        is_short_key: Whether a text is the short form of a key. Clients put
            `{port}-{id}[-{client}].{short}` or `api.{short}` before the `@` of their
            URLs where no host name leads here.
    """
    fields: dict[str, list[str]] = {}
    for name, value in headers:
        fields.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))
    try:
        label = _from_host(fields.get("host", [""])[0], domain)
        user = "" if label else _user(fields, is_short_key)
        label = label or _from_label(user)
        for_control = user == _CONTROL_USER or _is_control_call(fields, target)
        if label is None and for_control:
            return ControlPlane()
        named = _from_headers(fields)
        if label is not None:
            return _agreed(label, named)
    except _Unroutable as exc:
        return BadRoute(str(exc))
    if named.sandbox_id is not None:
        port = ENVD_PORT if named.port is None else named.port
        return SandboxPort(named.sandbox_id, port)
    for token in fields.get("x-access-token", ()):
        owner = sandbox_of(token)
        if owner is not None:
            return SandboxPort(owner, ENVD_PORT)
    return ControlPlane()


def is_own_host(authority: str, *, domain: str, own: str | None) -> bool:
    """Whether an authority, as of CONNECT, is one that TLS is ended for here.

    Args:
        authority: Host and port, as received.
        domain: As of `route`; its names have the port 443 unless it ends with one.
        own: Host and port of the platform's own TLS listener; None: there is none.
    """
    if authority == own:
        return True
    host, _, port = authority.rpartition(":")
    label, _, rest = _host_name(host).partition(".")
    name, _, domain_port = domain.partition(":")
    try:
        named = label == _CONTROL_USER or _from_label(label) is not None
    except _Unroutable:
        return False
    return named and rest == _host_name(name) and port == (domain_port or "443")


def _from_host(host: str, domain: str) -> SandboxPort | None:
    label, _, rest = _host_name(host).partition(".")
    return _from_label(label) if rest == _host_name(domain) else None


def _user(fields: dict[str, list[str]], is_short_key: Callable[[str], bool]) -> str:
    """Return the part of a Basic user name before a short key; empty: there is none."""
    for value in fields.get("authorization", ()):
        label, _, short = (basic_user(value) or "").partition(".")
        if short and is_short_key(short):
            return label
    return ""


def _from_label(label: str) -> SandboxPort | None:
    match = _LABEL.fullmatch(label)
    if match is None:
        return None
    return SandboxPort(_sandbox_id(match[2]), _port(match[1]))


def _host_name(authority: str) -> str:
    return re.sub(r":[0-9]*$", "", authority).lower().rstrip(".")


def _from_headers(fields: dict[str, list[str]]) -> _Claim:
    ids = {_sandbox_id(value) for value in _values(fields, "sandbox-id")}
    ports = {_port(value) for value in _values(fields, "sandbox-port")}
    if len(ids) > 1 or len(ports) > 1:
        raise _Unroutable("the sandbox routing headers contradict one another")
    return _Claim(next(iter(ids), None), next(iter(ports), None))


def _values(fields: dict[str, list[str]], name: str) -> list[str]:
    return fields.get(f"ppio-{name}", []) + fields.get(f"e2b-{name}", [])


def _agreed(label: SandboxPort, named: _Claim) -> SandboxPort:
    if named.sandbox_id not in {None, label.sandbox_id} or named.port not in {
        None,
        label.port,
    }:
        raise _Unroutable("the host name and the routing headers name two targets")
    return label


def _sandbox_id(text: str) -> str:
    match = _ID_AND_CLIENT.fullmatch(text)
    if match is None or _SANDBOX_ID.fullmatch(match[1]) is None:
        raise _Unroutable("a sandbox id is 20 lower-case letters and digits")
    return match[1]


def _port(text: str) -> int:
    if _PORT.fullmatch(text) is None or not 1 <= int(text) <= 65535:
        raise _Unroutable("a sandbox port is a number from 1 to 65535")
    return int(text)


def _is_control_call(fields: dict[str, list[str]], target: bytes) -> bool:
    """Whether a key and the path say control plane, whatever routing headers say.

    SDKs send the routing headers on calls of the control plane, too.
    """
    keyed = "x-api-key" in fields or any(
        bearer(value) is not None for value in fields.get("authorization", ())
    )
    path = _ORIGIN.sub("", target.decode("latin-1"), count=1)
    path = re.split(r"[?#]", path, maxsplit=1)[0]
    return keyed and _CONTROL_PATH.match(path) is not None
