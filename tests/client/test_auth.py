"""Keys: found, checked, exchanged, never shown."""

from __future__ import annotations

import pickle

import pytest

from ppio_agent.client import AuthManager
from ppio_agent.exceptions import AuthenticationError

KEY = "sk-0123456789-abcdef"


def test_argument_wins_over_environment() -> None:
    """And both are stripped of what copying left around them."""
    environ = {"PPIO_API_KEY": " from-env \n", "PPIO_API_SECRET": "env-secret"}

    assert AuthManager(environ=environ).api_key == "from-env"
    assert AuthManager(f" {KEY}\n", environ=environ).api_key == KEY
    assert AuthManager(environ=environ).signs is True
    assert AuthManager(KEY, environ={}).signs is False


@pytest.mark.parametrize("key", [None, "", "  ", "schlüssel", "a\nb", "a\x00b"])
def test_what_cannot_be_a_key_is_refused(key: str | None) -> None:
    """The error says what to set and never shows what was given."""
    with pytest.raises(AuthenticationError) as caught:
        AuthManager(key, environ={})

    if key and key.strip():
        assert key not in str(caught.value)
    else:
        assert "PPIO_API_KEY" in str(caught.value)


def test_headers_of_each_plane() -> None:
    """Templates want a Bearer token, and the key header if that is refused."""
    auth = AuthManager(KEY, environ={})

    assert auth.platform_headers() == {"X-API-KEY": KEY}
    assert auth.template_headers() == {"Authorization": f"Bearer {KEY}"}
    assert auth.template_headers(refresh=True) == {"X-API-KEY": KEY}


def test_rotation_is_complete_or_not_at_all() -> None:
    """A bad new key leaves the old one in use; a good one hides both."""
    auth = AuthManager(KEY, "secret-of-old", environ={})
    with pytest.raises(AuthenticationError):
        auth.rotate(api_key="ü")
    kept = auth.api_key
    auth.rotate(api_key="sk-new-9876543210")

    assert kept == KEY
    assert auth.api_key == "sk-new-9876543210"
    assert auth.signs is True
    assert auth.redactor.text(f"{KEY} sk-new-9876543210") == "*** ***"


def test_repr_shows_four_characters_at_most() -> None:
    """Enough to tell keys apart."""
    shown = repr(AuthManager(KEY, "another-secret-value", environ={}))

    assert KEY[:-4] not in shown
    assert "another-secret" not in shown
    assert "cdef" in shown


def test_pickle_holds_only_what_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key of the environment is read again where the pickle is loaded."""
    monkeypatch.setenv("PPIO_API_KEY", "from-env-0123456789")
    of_environment = pickle.dumps(AuthManager())
    given = pickle.dumps(AuthManager(KEY))
    monkeypatch.setenv("PPIO_API_KEY", "from-another-env")

    assert b"from-env-0123456789" not in of_environment
    assert pickle.loads(of_environment).api_key == "from-another-env"
    assert pickle.loads(given).api_key == KEY
