"""What names a session outside of its client."""

from __future__ import annotations

import json
import pickle

import attrs
import pytest

from ppio_agent.client import SessionRef
from ppio_agent.exceptions import ValidationError

REF = SessionRef(
    sandbox_id="sb1",
    template_id="tpl1",
    session_id="s",
    time_to_live=300.0,
    domain="sandbox.test",
    envd_token="envd-secret-token",
    traffic_token="traffic-secret-token",
)


def test_tokens_are_not_shown() -> None:
    """Neither by repr nor, unless wanted, as JSON."""
    told = f"{REF!r} {REF} {REF.to_json()}"

    assert "secret" not in told
    assert "sb1" in told


def test_json_there_and_back() -> None:
    """With tokens it is the same; without them all else is."""
    whole = SessionRef.from_json(REF.to_json(include_tokens=True))
    public = SessionRef.from_json(REF.to_json().encode())

    assert whole == REF
    assert public.traffic_token is None
    assert public.with_tokens_of(REF) == REF
    assert json.loads(REF.to_json())["session_id"] == "s"


def test_only_tokens_are_taken_from_another() -> None:
    """A changed text cannot send requests to another host."""
    forged = attrs.evolve(REF, domain="evil.test", edge_url="https://evil.test")

    assert REF.with_tokens_of(forged) == REF


def test_pickles_whole() -> None:
    """What is sent to a worker opens the sandbox there."""
    assert pickle.loads(pickle.dumps(REF)) == REF


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"sandbox_id": 5}', b"\xff", "null"]
)
def test_other_texts_are_refused(text: str | bytes) -> None:
    """The message says that it is no reference."""
    with pytest.raises(ValidationError, match="no reference of a session"):
        SessionRef.from_json(text)
