"""Secrets stay out of what a person or a log may see."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from functools import partial
from urllib.parse import quote, quote_plus, urlencode

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ppio_agent._util.redact import SECRET_HEADERS, Redactor, mask
from tests.support import interrupt_everywhere

SECRETS = st.text(
    st.characters(codec="utf-8", exclude_characters="*"), min_size=6, max_size=20
)
AROUND = st.text(st.characters(codec="utf-8", exclude_characters="*"), max_size=20)
KEY = "sk-HUSH/123 a+b=c"

SPELLINGS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "percent": lambda s: quote(s, safe=""),
    "path": quote,
    "form": quote_plus,
    "lower-case percent": lambda s: quote(s, safe="").replace("%2F", "%2f"),
    "json": lambda s: json.dumps(s)[1:-1],
    "json, not ASCII": lambda s: json.dumps(s, ensure_ascii=False)[1:-1],
    "json, slashes": lambda s: json.dumps(s)[1:-1].replace("/", "\\/"),
    "repr": lambda s: repr(s)[1:-1],
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@settings(deadline=None, max_examples=60)
@example(secret=KEY, before="", after="")
@example(secret="p\"q'r\\s/t\nu", before="'", after="\\")
@given(secret=SECRETS, before=AROUND, after=AROUND)
def test_no_spelling_of_a_secret_survives(
    spelling: str, secret: str, before: str, after: str
) -> None:
    """Whoever echoes a key, and however, shows three stars."""
    spelt = SPELLINGS[spelling](secret)
    shown = Redactor([secret]).text(f"{before}|{spelt}|{after}")
    assert spelt not in shown
    assert "***" in shown


@settings(deadline=None, max_examples=60)
@given(secrets=st.lists(SECRETS, max_size=4), pieces=st.lists(AROUND, max_size=4))
def test_of_many_secrets_none_survives(secrets: list[str], pieces: list[str]) -> None:
    """One that holds another is hidden as a whole."""
    nested = [*secrets, *(f"{s}{s}" for s in secrets)]
    text = "".join(f"{p}{s}" for p, s in zip([*pieces, *pieces], nested, strict=False))
    shown = Redactor(nested).text(text)
    assert [s for s in nested if s in shown] == []


def test_text_without_a_secret_is_left_alone() -> None:
    """Redaction spoils nothing else, and one without secrets changes nothing."""
    text = "GET /sk-HUS?x=%20 took 3 ms"
    assert Redactor([KEY]).text(text) == text
    assert Redactor().text(text) == text


def test_what_is_too_short_to_be_a_secret_is_passed_over() -> None:
    """Three letters are found by chance everywhere."""
    redactor = Redactor(["abc", ""])
    redactor.add(None, "12345")
    assert redactor.text("abc 12345") == "abc 12345"
    assert repr(redactor) == "Redactor(0 values)"


def test_a_secret_may_be_added_later() -> None:
    """A rotated key is hidden beside the old one, and once is enough."""
    redactor = Redactor(["old-secret"])
    redactor.add("new-secret", None)
    redactor.add("new-secret")
    assert redactor.text("old-secret new-secret") == "*** ***"
    assert repr(redactor) == "Redactor(2 values)"


def test_secrets_that_change_do_not_pile_up() -> None:
    """New ones take the place of the old ones; what was added stays."""
    redactor = Redactor(["kept-secret"])
    redactor.replace("first-secret", "short")
    assert redactor.text("kept-secret first-secret short") == "*** *** short"
    redactor.replace("second-secret")
    redactor.add("kept-too")
    hidden = redactor.text("kept-secret kept-too first-secret second-secret")
    assert hidden == "*** *** first-secret ***"
    assert repr(redactor) == "Redactor(3 values)"
    redactor.replace()
    assert redactor.text("second-secret kept-secret") == "second-secret ***"


def test_no_secret_is_lost_when_threads_add_at_once() -> None:
    """Two rotations at one time hide both keys."""
    for _ in range(50):
        redactor = Redactor()
        together = threading.Barrier(4)
        secrets = [f"secret-{i}" for i in range(4)]

        def add(
            secret: str,
            redactor: Redactor = redactor,
            together: threading.Barrier = together,
        ) -> None:
            together.wait()
            redactor.add(secret)

        threads = [threading.Thread(target=add, args=(s,)) for s in secrets]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert redactor.text(" ".join(secrets)) == "*** *** *** ***"


def test_one_knows_what_its_parent_knows() -> None:
    """Also what that learns later; and tells it nothing."""
    parent = Redactor(["parents-secret"])
    child = Redactor(["childs-secret", None], parent=parent)
    text = "parents-secret childs-secret later-secret passing-secret"
    assert child.text(text) == "*** *** later-secret passing-secret"
    parent.add("later-secret")
    parent.replace("passing-secret")
    assert child.text(text) == "*** *** *** ***"
    assert parent.text(text) == "*** childs-secret *** ***"
    assert child.url("http://h/parents-secret") == "http://h/***"


def test_it_can_be_used_wherever_it_was_interrupted() -> None:
    """By a finaliser, or in a forked child: no lock is held at any of its steps."""

    def use(redactor: Redactor) -> None:
        redactor.add("another-secret")
        redactor.replace("passing-secret")
        redactor.text("text")

    def begin() -> tuple[Callable[[], None], Callable[[], None]]:
        redactor = Redactor(["first-secret"])
        return partial(use, redactor), partial(use, redactor)

    interrupt_everywhere(begin)


def test_a_text_is_cut_where_no_secret_is() -> None:
    """What is left of one would be enough to guess the rest."""
    redactor = Redactor([KEY])
    assert redactor.start(f"{'x' * 95} {KEY}", 100) == f"{'x' * 95} ***"
    assert redactor.start("a\n\n b" * 100, 5) == "a ba "


@pytest.mark.parametrize("name", sorted(SECRET_HEADERS))
def test_a_secret_header_is_hidden_by_its_name(name: str) -> None:
    """The value need not be known, and case does not matter."""
    shown = Redactor().headers({name.title(): "abc", "Accept": "*/*"})
    assert shown == {name.title(): "***", "Accept": "*/*"}


def test_a_known_secret_is_hidden_in_any_header() -> None:
    """A key under a harmless name is a key."""
    headers = {"X-Echo": f"got {KEY}", "X-My-Password": "x", "X-Count": "3"}
    assert Redactor([KEY]).headers(headers) == {
        "X-Echo": "got ***",
        "X-My-Password": "***",
        "X-Count": "3",
    }


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://h:1/p?q=1#top", "http://h:1/p?q=1#top"),
        ("http://user:pw@h:1/p", "http://***@h:1/p"),
        ("http://user:p@w@h/", "http://***@h/"),
        ("http://h/p?api_key=abc&q=1", "http://h/p?api_key=***&q=1"),
        ("http://h/p?%74oken=abc&q=1&e=", "http://h/p?token=***&q=1&e="),
        ("http://h/p?signature=abc", "http://h/p?signature=***"),
        ("http://h/p#access_token=abc", "http://h/p#access_token=***"),
        ("http://h/p?q=tokens", "http://h/p?q=tokens"),
        ("http://h/p#tokens", "http://h/p#tokens"),
        ("http://[::1/", "***"),
        (f"http://h/{quote(KEY)}?x={quote_plus(KEY)}", "http://h/***?x=***"),
        ("http://h/?x=%73%6b-HUSH/123%20a+b=c", "***"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    """User info, members named like secrets, and known values are hidden."""
    assert Redactor([KEY]).url(url) == shown


@settings(deadline=None, max_examples=60)
@given(secret=SECRETS, name=st.sampled_from(["q", "token"]))
def test_no_secret_survives_in_a_url(secret: str, name: str) -> None:
    """In the path, the query and the user info, encoded or not."""
    redactor = Redactor([secret])
    every_byte = "".join(f"%{byte:02x}" for byte in secret.encode())
    urls = [
        f"http://h/{quote(secret)}",
        f"http://h/x?{urlencode({name: secret, 'b': '1'})}",
        f"http://{quote(secret, safe='')}:x@h/",
        f"http://h/{every_byte}",
    ]
    for url in urls:
        shown = redactor.url(url)
        for spelling in (secret, quote(secret), quote_plus(secret), every_byte):
            assert spelling not in shown


def test_a_mask_shows_the_end_of_a_long_secret_only() -> None:
    """A person can tell two keys apart; nobody can use what is shown."""
    assert mask("sk-0123456789abcdef") == "***cdef"
    assert mask("0123456789a") == "***"
    assert mask("") == "***"
