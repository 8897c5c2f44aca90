"""Who sent a request: what plug-ins are shown of it, and how they are asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ppio_agent.exceptions import AuthenticationError
from ppio_agent.hooks import Hooks, hookimpl
from ppio_agent.wire.models import Principal

from .exchange import Exchange

__all__ = ["AuthRequest", "Authenticator"]

# Taken out of what a handler sees when a plug-in does not say which header it verified.
_CREDENTIALS = ("authorization", "x-api-key")


class AuthRequest:
    """What an authentication plug-in is shown of a request.

    Attributes:
        method: Upper case.
        path: Decoded, without the query.
        headers: Lower-case names.

    Thread safety: one thread at a time.
    """

    __slots__ = ("_exchange", "headers", "method", "path", "verified")

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self.method = exchange.method
        self.path = exchange.path
        self.headers: Mapping[str, str] = exchange.headers
        self.verified: list[str] = []

    @property
    def target(self) -> str:
        """The request target as it was sent: path and query, still encoded."""
        return self._exchange.target

    @property
    def body(self) -> bytes:
        """The whole body."""
        return self._exchange.body

    def hide(self, *names: str) -> None:
        """Take headers whose credentials were verified out of what handlers see."""
        self.verified.extend(name.lower() for name in names)


class _CallablePlugin:
    """A plain function, as the plug-in it stands for."""

    def __init__(self, function: Callable[[AuthRequest], Principal | None]) -> None:
        self._function = function

    @hookimpl
    def ppio_authenticate(self, request: AuthRequest) -> Principal | None:
        principal = self._function(request)
        _check(principal, self._function)
        return principal


def _check(principal: object, *asked: object) -> None:
    """Refuse a result that says nothing clear: nobody is admitted by mistake."""
    if principal is not None and not isinstance(principal, Principal):
        names = " or ".join(repr(one) for one in asked)
        raise TypeError(
            f"the authentication by {names} gave a {type(principal).__name__}: return"
            " a Principal, or None for a request whose sender it does not know"
        )


class Authenticator:
    """Asks the plug-ins who sent a request.

    Args:
        hooks: The app's plug-ins; those in `auth` are registered with them.
        auth: Plug-ins or functions ``(request) -> Principal | None``, in the order in
            which they are asked, before all others.

    Attributes:
        active: Whether anything authenticates.
        quick: Whether all plug-ins say, by an attribute `quick` that is True, that
            they answer from memory: only those may be asked on the express lane.
    """

    def __init__(self, hooks: Hooks, auth: Sequence[Any]) -> None:
        # The plug-in registered last is asked first.
        for item in reversed(auth):
            is_plugin = hasattr(item, "ppio_authenticate")
            if isinstance(item, type):
                raise TypeError(f"auth takes no class: call it, {item.__name__}(…)")
            if not is_plugin and not callable(item):
                raise TypeError(
                    f"auth takes plug-ins or functions, not a {type(item).__name__}"
                )
            hooks.register(item if is_plugin else _CallablePlugin(item))
        self._hooks = hooks
        self.active = hooks.implemented("ppio_authenticate")
        self._plugins = hooks.plugins_with("ppio_authenticate")
        self.quick = all(getattr(one, "quick", None) is True for one in self._plugins)

    @property
    def security_schemes(self) -> dict[str, Any]:
        """How callers say who they are: what plug-ins tell by their `security_schemes`.

        It maps names to Security Scheme Objects of OpenAPI, each enough alone.
        """
        schemes: dict[str, Any] = {}
        for plugin in self._plugins:
            schemes.update(getattr(plugin, "security_schemes", {}))
        return schemes

    def admit(self, exchange: Exchange) -> None:
        """Note on the exchange who sent it, and what handlers must not see.

        Raises:
            AuthenticationError: Nobody knows the sender, or a plug-in refuses.
        """
        request = AuthRequest(exchange)
        principal = self._hooks.authenticate(request)
        _check(principal, *self._plugins)
        if principal is None:
            raise AuthenticationError(
                "authentication is required", code="authentication_required"
            )
        exchange.principal = principal
        exchange.hidden = frozenset(request.verified or _CREDENTIALS)
