"""What a create request may say, in the spellings of all clients. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, TypeVar

from attrs import field, frozen

from ppio_agent.exceptions import SandboxPlatformError, ValidationError, WireError
from ppio_agent.wire.json import Json
from ppio_agent.wire.model import CamelModel, structure

__all__ = ["CreateOptions", "not_supported", "parse_body", "parse_create"]

_T = TypeVar("_T")
_MAX_METADATA: Final = 64
_MAX_VARIABLES: Final = 128
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MAX_VARIABLE_BYTES: Final = 64 * 1024
_SHOWN: Final = 64
_IDLE_DIGITS: Final = 9


@frozen(kw_only=True)
class CreateOptions:
    """How a sandbox is to be made.

    Attributes:
        template: Reference of its template.
        timeout: Seconds it lives unless that is extended.
        metadata: Pairs to find it by.
        env: Environment of its processes, beyond its own.
        secure: Whether callers of envd need a token.
        pauses: Whether the end of its time pauses it; otherwise it is killed.
        auto_resume: Whether a data request resumes it.
        allow_internet: Whether it may reach the network.
        idle_timeout: Seconds without traffic after which it ends; 0 is no limit.
        public_traffic: Whether its ports are open to callers without a token.
    """

    template: str = "base"
    timeout: int = 300
    metadata: Mapping[str, str] = field(factory=dict)
    env: Mapping[str, str] = field(factory=dict, repr=False)
    secure: bool = True
    pauses: bool = False
    auto_resume: bool = False
    allow_internet: bool = True
    idle_timeout: float = 0.0
    public_traffic: bool = True


@frozen(kw_only=True)
class _AutoResume(CamelModel):
    enabled: bool = False


@frozen(kw_only=True)
class _Lifecycle(CamelModel):
    on_timeout: str | None = None
    auto_resume: bool | None = None


@frozen(kw_only=True)
class _Network(CamelModel):
    allow_public_traffic: bool | None = None


@frozen(kw_only=True)
class _Create(CamelModel):
    template_id: str | None = None
    timeout: int | None = None
    metadata: Mapping[str, str] | None = None
    env_vars: Mapping[str, str] | None = None
    secure: bool | None = None
    auto_pause: bool | None = None
    auto_resume: _AutoResume | None = None
    lifecycle: _Lifecycle | None = None
    network: _Network | None = None
    allow_internet_access: bool | None = None
    allow_internet_modern: bool | None = field(
        default=None, metadata={"wire": "allow_internet_access"}
    )


def not_supported(what: str) -> SandboxPlatformError:
    """Return the error for what the local platform does not have."""
    return SandboxPlatformError(
        f"{what} is not supported by the local platform",
        code="not_supported",
        http_status=501,
    )


def parse_body(cls: type[_T], body: Json) -> _T:
    """Return a request body as an instance of `cls`.

    Raises:
        ValidationError: A member has the wrong type; the message names its path.
    """
    try:
        return structure(cls, body)
    except WireError as error:
        raise ValidationError(str(error)) from None


def parse_create(
    body: Json, *, default_timeout: int, max_timeout: int
) -> CreateOptions:
    """Return the options that the body of a create request stands for.

    Raises:
        ValidationError: A member has the wrong type, is too large, or contradicts
            another.
        SandboxPlatformError: 501: it asks for what the platform does not have.
    """
    asked = parse_body(_Create, body)
    _refuse_unsupported(asked)
    timeout = default_timeout if asked.timeout is None else asked.timeout
    if not 1 <= timeout <= max_timeout:
        raise ValidationError(f"$.timeout: expected from 1 to {max_timeout} seconds")
    internet = {
        choice
        for choice in (asked.allow_internet_access, asked.allow_internet_modern)
        if choice is not None
    }
    if len(internet) > 1:
        raise ValidationError(
            "$.allow_internet_access: contradicts $.allowInternetAccess"
        )
    return CreateOptions(
        template=asked.template_id or "base",
        timeout=timeout,
        metadata=_checked_metadata(asked.metadata or {}),
        env=_checked_env(asked.env_vars or {}),
        secure=asked.secure is not False,
        pauses=_pauses(asked),
        auto_resume=_auto_resume(asked),
        allow_internet=False not in internet,
        idle_timeout=_idle_timeout(asked.metadata or {}),
        public_traffic=(
            asked.network is None or asked.network.allow_public_traffic is not False
        ),
    )


def _refuse_unsupported(asked: _Create) -> None:
    for name in ("volumeMounts", "secrets", "mcp"):
        if asked.extra.get(name):
            raise not_supported(name)
    if asked.network is None:
        return
    for name in ("allowOut", "denyOut", "maskRequestHost"):
        if asked.network.extra.get(name):
            raise not_supported(f"network.{name}")


def _pauses(asked: _Create) -> bool:
    rule = None if asked.lifecycle is None else asked.lifecycle.on_timeout
    if rule not in (None, "kill", "pause"):
        raise ValidationError("$.lifecycle.onTimeout: expected kill or pause")
    if asked.auto_pause and rule == "kill":
        raise ValidationError("$.lifecycle.onTimeout: contradicts $.autoPause")
    return rule == "pause" or bool(asked.auto_pause)


def _auto_resume(asked: _Create) -> bool:
    said = set()
    if asked.auto_resume is not None:
        said.add(asked.auto_resume.enabled)
    if asked.lifecycle is not None and asked.lifecycle.auto_resume is not None:
        said.add(asked.lifecycle.auto_resume)
    if len(said) > 1:
        raise ValidationError("$.lifecycle.autoResume: contradicts $.autoResume")
    return True in said


def _checked_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    if len(metadata) > _MAX_METADATA:
        raise ValidationError(f"$.metadata: expected at most {_MAX_METADATA} pairs")
    return dict(metadata)


def _idle_timeout(metadata: Mapping[str, str]) -> float:
    text = metadata.get("idle_timeout", "0")
    if not (text.isascii() and text.isdigit() and len(text) <= _IDLE_DIGITS):
        raise ValidationError("$.metadata.idle_timeout: expected seconds as text")
    return float(text)


def _checked_env(env: Mapping[str, str]) -> dict[str, str]:
    if len(env) > _MAX_VARIABLES:
        raise ValidationError(f"$.envVars: expected at most {_MAX_VARIABLES} pairs")
    size = 0
    for name, value in env.items():
        if not _VARIABLE.fullmatch(name):
            raise ValidationError(
                f"$.envVars: {name[:_SHOWN]!r} is not a name: expected letters, digits"
                " and underscores, no digit first"
            )
        if "\0" in value:
            raise ValidationError(f"$.envVars.{name[:_SHOWN]}: has a NUL character")
        size += len(name.encode()) + len(value.encode()) + 2
    if size > _MAX_VARIABLE_BYTES:
        raise ValidationError(f"$.envVars: larger than {_MAX_VARIABLE_BYTES} bytes")
    return dict(env)
