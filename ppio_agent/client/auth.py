"""The keys of a client: checked once, shown to nobody, exchanged as a pair."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from ppio_agent._util.redact import Redactor, mask
from ppio_agent.exceptions import AuthenticationError

__all__ = ["KEY_VARIABLE", "SECRET_VARIABLE", "AuthManager"]

KEY_VARIABLE = "PPIO_API_KEY"
SECRET_VARIABLE = "PPIO_API_SECRET"  # noqa: S105 - a variable's name


@frozen
class _Keys:
    api_key: str = field(repr=mask)
    api_secret: str | None = field(repr=lambda secret: repr(secret and mask(secret)))


class AuthManager:
    """Holds the API key, and the secret if there is one, and makes headers of them.

    Args:
        api_key: Key of the platform; None reads `PPIO_API_KEY`.
        api_secret: Secret for signed requests; None reads `PPIO_API_SECRET`, and
            none there means Bearer authentication.
        environ: What to read instead of the process's environment.

    Raises:
        AuthenticationError: The key is missing, or cannot stand in a header.

    A pickle holds only what was given as an argument; the rest is read again from
    the environment where it is loaded.

    Thread safety: thread-safe.
    """

    def __init__(
        self,
        api_key: str | None = None,
        api_secret: str | None = None,
        *,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        environ = os.environ if environ is None else environ
        self.redactor = Redactor()
        self._given = (api_key, api_secret)
        self._keys = self._checked(
            environ.get(KEY_VARIABLE) if api_key is None else api_key,
            environ.get(SECRET_VARIABLE) if api_secret is None else api_secret,
        )

    def _checked(self, api_key: str | None, api_secret: str | None) -> _Keys:
        key = (api_key or "").strip()
        if not key:
            raise AuthenticationError(
                f"no API key: pass api_key=… or set {KEY_VARIABLE}"
            )
        secret = (api_secret or "").strip() or None
        for name, value in (("API key", key), ("API secret", secret or "x")):
            if not value.isascii() or not value.isprintable():
                raise AuthenticationError(
                    f"the {name} has characters that cannot stand in a header;"
                    " check that it was copied whole"
                )
        self.redactor.add(key, secret)
        return _Keys(key, secret)

    @property
    def api_key(self) -> str:
        """The key in use."""
        return self._keys.api_key

    @property
    def signs(self) -> bool:
        """Whether there is a secret to sign with."""
        return self._keys.api_secret is not None

    def rotate(
        self, *, api_key: str | None = None, api_secret: str | None = None
    ) -> None:
        """Use another key, secret or both from the next request on.

        What is left out stays as it is. Both are exchanged in one step.

        Raises:
            AuthenticationError: The new one cannot be used; the old one stays.
        """
        old = self._keys
        self._keys = self._checked(
            old.api_key if api_key is None else api_key,
            old.api_secret if api_secret is None else api_secret,
        )
        given_key, given_secret = self._given
        self._given = (
            given_key if api_key is None else api_key,
            given_secret if api_secret is None else api_secret,
        )

    def platform_headers(self) -> dict[str, str]:
        """Return the headers of a call to the sandboxes API."""
        return {"X-API-KEY": self._keys.api_key}

    def template_headers(self, *, refresh: bool = False) -> dict[str, str]:
        """Return the headers of a call to the templates API.

        Args:
            refresh: Whether the first form was answered 401: some platforms want
                the key in the header of the sandboxes API there, too.
        """
        if refresh:
            return self.platform_headers()
        return self.bearer_headers()

    def bearer_headers(self) -> dict[str, str]:
        """Return the key as a Bearer token."""
        return {"Authorization": f"Bearer {self._keys.api_key}"}

    def __repr__(self) -> str:
        return f"AuthManager({self._keys!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._given
