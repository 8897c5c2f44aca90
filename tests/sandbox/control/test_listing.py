"""Pages: what was there the whole time is seen exactly once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent.exceptions import ValidationError
from ppio_agent.sandbox.control.listing import page, whole_number

_items = st.sets(
    st.tuples(st.integers(0, 5), st.text("abc", min_size=1, max_size=3)), max_size=20
)


@given(
    stay=_items,
    come=_items,
    go=_items,
    limit=st.integers(1, 7),
    newest_first=st.booleans(),
)
@settings(max_examples=100)
def test_pages_of_a_changing_list_show_what_stays_once_and_in_order(
    stay: set[tuple[int, str]],
    come: set[tuple[int, str]],
    go: set[tuple[int, str]],
    limit: int,
    newest_first: bool,
) -> None:
    seen: list[tuple[int, str]] = []
    token: str | None = None
    held = stay | go
    while True:
        shown, token = page(
            held, key=lambda i: i, limit=limit, token=token, newest_first=newest_first
        )
        assert len(shown) <= limit
        seen += shown
        held = stay | come
        if token is None:
            break

    assert [i for i in seen if i in stay] == sorted(stay, reverse=newest_first)


@pytest.mark.parametrize("token", ["%", "YQ", "eA==", "\u00e4", "a" * 5])
def test_a_foreign_token_is_refused(token: str) -> None:
    with pytest.raises(ValidationError, match="nextToken"):
        page([], key=lambda i: (0, ""), limit=1, token=token)


@pytest.mark.parametrize("text", ["0", "101", "-1", "1.5", "x", "²", "1" * 400])
def test_a_number_out_of_range_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValidationError, match="limit: expected 1 to 100"):
        whole_number(text, "limit", default=7, low=1, high=100)


def test_an_absent_number_is_the_default() -> None:
    assert [
        whole_number(t, "limit", default=7, low=1, high=100) for t in (None, "", "100")
    ] == [7, 7, 100]
