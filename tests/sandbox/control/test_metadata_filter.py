"""The doubly encoded filter of sandbox lists."""

from __future__ import annotations

from urllib.parse import quote, unquote, urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent.exceptions import ValidationError
from ppio_agent.sandbox.control.metadata_filter import matches, parse_filter


def test_the_given_example() -> None:
    assert parse_filter(unquote("k%3Dv%252520w")) == {"k": "v w"}


@given(pairs=st.dictionaries(st.text(min_size=1, max_size=9), st.text(max_size=9)))
@settings(max_examples=100)
def test_what_clients_encode_is_read_back(pairs: dict[str, str]) -> None:
    """Each key and value quoted, then a query string of them."""
    sent = urlencode({quote(k, safe=""): quote(v, safe="") for k, v in pairs.items()})

    assert parse_filter(sent) == pairs


@pytest.mark.parametrize("text", ["novalue", "a=1&&b", "&".join(["a=1"] * 65)])
def test_what_is_no_query_string_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="metadata: expected key=value"):
        parse_filter(text)


def test_all_pairs_must_be_equal() -> None:
    metadata = {"a": "1", "b": "2"}

    assert matches({}, metadata)
    assert matches({"a": "1", "b": "2"}, metadata)
    assert not matches({"a": "1", "b": "3"}, metadata)
    assert not matches({"c": "1"}, metadata)


def test_no_filter_wants_everything() -> None:
    assert parse_filter(None) == {} == parse_filter("")
