"""Which platform a client talks to, and what it takes to do so."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Hashable

from attrs import frozen

from ppio_agent.exceptions import AuthenticationError
from ppio_agent.hooks import Hooks
from ppio_agent.transport import RetryPolicy, Transport, TransportConfig

from .auth import KEY_VARIABLE, Authenticator, AuthManager, PluginAuth
from .config import ClientConfig
from .control import ControlPlane
from .endpoint import Endpoint, choose_endpoint
from .launch import Launcher

__all__ = ["Backend", "NamedPlatform", "connect", "named_platform"]

_log = logging.getLogger(__name__)

NamedPlatform = tuple[Endpoint, Authenticator | None]


@frozen
class Backend:
    """What a client has once its platform is known."""

    control: ControlPlane
    launcher: Launcher


def named_platform(
    config: ClientConfig, hooks: Hooks, api_key: str | None, api_secret: str | None
) -> NamedPlatform | None:
    """Return the platform that was named; None means the embedded one.

    There may be no keys if a plug-in can stand in for them. Where nothing else names a
    platform it is asked now, since its answer does; else at the first request.

    Raises:
        AuthenticationError: One was, but there is no key that can be used.
    """
    has_key = bool(api_key or os.environ.get(KEY_VARIABLE))
    plugin = not has_key and hooks.implemented("ppio_client_auth")
    endpoint = choose_endpoint(config, has_key=has_key)
    if endpoint is not None:
        return endpoint, None if plugin else _keys(config, api_key, api_secret)
    if not plugin or config.base_url is not None:
        return None
    found = hooks.client_auth(config)
    if found is None:
        return None
    endpoint = choose_endpoint(config, has_key=True)
    return None if endpoint is None else (endpoint, PluginAuth(found))


def _keys(
    config: ClientConfig, api_key: str | None, api_secret: str | None
) -> AuthManager:
    return AuthManager(
        api_key,
        api_secret,
        key_id=config.key_id,
        forward_api_key=config.forward_api_key,
    )


def connect(
    config: ClientConfig,
    hooks: Hooks,
    *,
    named: NamedPlatform | None,
    api_secret: str | None,
    on_leftover: Callable[[str], None],
) -> Backend:
    """Return what is needed to talk to the platform; starts the embedded one.

    Args:
        config: The client's settings.
        hooks: The client's plug-ins.
        named: The platform, if one was named.
        api_secret: As given to the client; signs what the embedded one is sent.
        on_leftover: Is told the id of a sandbox that could not be killed.

    Raises:
        AuthenticationError: None was named and there is no embedded one.
    """
    if named is None:
        endpoint, auth = _local_platform(config, hooks, api_secret)
    else:
        endpoint, auth = named[0], _authenticator(config, hooks, named[1])
    settings = TransportConfig(
        max_connections=config.max_connections,
        max_keepalive_connections=config.max_keepalive_connections,
        connect_timeout=config.connect_timeout,
        max_response_bytes=config.max_response_bytes,
        proxy=config.proxy,
        ca_bundle=config.ca_bundle,
        headers=config.headers,
        retry=RetryPolicy(max_retries=config.max_retries),
    )
    transport = Transport(
        settings,
        hooks=hooks.for_client(),
        redactor=auth.redactor,
        shared_as=_common(settings, endpoint, auth),
    )
    control = ControlPlane(
        transport=transport,
        endpoint=endpoint,
        auth=auth,
        request_timeout=config.request_timeout,
    )
    return Backend(control, Launcher(control, config, on_leftover))


def _common(
    settings: TransportConfig, endpoint: Endpoint, auth: Authenticator
) -> Hashable:
    """Return what is equal for clients that use the same connections.

    None for those of a plug-in, which may prove at any time to be somebody else.
    """
    if not isinstance(auth, AuthManager):
        return None
    return (
        endpoint.url,
        auth.api_key,
        auth.signs,
        settings.max_connections,
        settings.max_keepalive_connections,
        settings.connect_timeout,
        settings.proxy,
        settings.ca_bundle,
    )


def _authenticator(
    config: ClientConfig, hooks: Hooks, keys: Authenticator | None
) -> Authenticator:
    """Return what a plug-in says of itself, else the keys."""
    if isinstance(keys, PluginAuth):
        return keys  # it was asked already
    found = hooks.client_auth(config)
    if found is not None:
        return PluginAuth(found)
    if keys is None:
        raise AuthenticationError(
            "no API key, and no plug-in stands in for it: pass api_key=… or set"
            f" {KEY_VARIABLE}"
        )
    return keys


def _local_platform(
    config: ClientConfig, hooks: Hooks, api_secret: str | None
) -> tuple[Endpoint, Authenticator]:
    """Return the embedded platform, which knows its own key and no plug-in."""
    found = hooks.default_platform(config)
    if found is None:
        raise AuthenticationError(
            "no API key and no platform on this machine: pass api_key=… or set"
            f" {KEY_VARIABLE}"
        )
    url, api_key = found
    _log.info("no platform was named, using the local one at %s", url)
    endpoint = Endpoint(
        url=url.rstrip("/"),
        domain=config.domain,
        sandbox_url=config.sandbox_url,
        where="the local platform",
    )
    return endpoint, _keys(config, api_key, api_secret)
