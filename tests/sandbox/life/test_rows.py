"""Rows of sandboxes: what is written is read again, and nothing else is."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent.exceptions import WireError
from ppio_agent.sandbox.backends.base import LineAddress
from ppio_agent.sandbox.life.machine import EndReason, State
from ppio_agent.sandbox.life.options import CreateOptions
from ppio_agent.sandbox.life.rows import SandboxRow
from ppio_agent.sandbox.life.values import Asked, Identity, Life
from ppio_agent.sandbox.supervisor.tree import Process
from ppio_agent.sandbox.templates.records import Build, TemplateFile
from ppio_agent.wire.json import decode_json, encode_json

_NOW = datetime(2030, 1, 1, tzinfo=timezone.utc)
_TEXT = st.text(max_size=8)
_TOKEN = st.none() | st.text("abc", min_size=1, max_size=8)

_identities = st.builds(
    Identity,
    id=st.just("s" * 20),
    tenant=_TEXT,
    alias=_TEXT,
    build=st.builds(
        Build,
        id=_TEXT,
        template_id=_TEXT,
        entrypoint=st.none() | _TEXT,
        cpus=st.floats(0.1, 8),
        files=st.just((TemplateFile(path="app.py", digest="d"),)),
        compiled=st.just({"app.pyc": "d"}),
    ),
    options=st.builds(
        CreateOptions,
        template=_TEXT,
        timeout=st.integers(1, 86400),
        metadata=st.dictionaries(_TEXT, _TEXT, max_size=3),
        env=st.dictionaries(_TEXT, st.just("s3cret"), max_size=2),
        idle_timeout=st.floats(0, 1e9),
        pauses=st.booleans(),
        public_traffic=st.booleans(),
    ),
    root=st.just(Path("/data/s")),
    line=st.builds(LineAddress, path=_TEXT, secret=_TEXT),
    access_token=_TOKEN,
    traffic_token=_TOKEN,
    asked=st.none() | st.builds(Asked, key=_TEXT, digest=_TEXT),
)
_lives = st.builds(
    Life,
    state=st.sampled_from(State),
    started_at=st.integers(0, 10**6).map(lambda ms: _NOW + timedelta(milliseconds=ms)),
    end_at=st.integers(0, 10**6).map(lambda ms: _NOW + timedelta(milliseconds=ms)),
    ends=st.just(0.0),
    pauses=st.booleans(),
    reason=st.none() | st.sampled_from(EndReason),
)


def _stored(identity: Identity, life: Life, supervisor: Process | None = None) -> Any:
    """Return a row as it comes back from a store."""
    row = SandboxRow.of(identity, life, supervisor)
    return decode_json(encode_json(row.to_body()))


@given(
    identity=_identities,
    life=_lives,
    supervisor=st.none()
    | st.builds(
        Process, st.integers(1, 2**22), st.integers(0, 2**53) | st.floats(0, 1e10)
    ),
)
@settings(max_examples=60)
def test_a_sandbox_comes_back_as_it_was_without_its_files_and_environment(
    identity: Identity, life: Life, supervisor: Process | None
) -> None:
    body = _stored(identity, life, supervisor)
    row = SandboxRow.parse(body)

    assert row.supervisor == supervisor
    assert "s3cret" not in str(body)
    assert row.identity(identity.id, identity.root) == attrs.evolve(
        identity,
        build=attrs.evolve(identity.build, files=(), compiled={}),
        options=attrs.evolve(identity.options, env={}),
    )
    later = _NOW + timedelta(seconds=50)
    ends = 700.0 + (life.end_at - later).total_seconds()
    expected = attrs.evolve(life, ends=pytest.approx(ends))
    assert row.life(now=later, monotonic=700.0) == expected


@given(identity=_identities, life=_lives, data=st.data())
@settings(max_examples=60)
def test_a_row_with_a_member_missing_or_wrong_is_refused(
    identity: Identity, life: Life, data: st.DataObject
) -> None:
    body = _stored(identity, life)
    name = data.draw(st.sampled_from(sorted(body)))
    if name != "asked" and data.draw(st.booleans()):
        del body[name]
    else:
        body[name] = [7]

    with pytest.raises(WireError, match=name):
        SandboxRow.parse(body)


def test_no_token_is_in_its_repr() -> None:
    row = SandboxRow(
        tenant="t",
        alias="a",
        build=Build(id="b", template_id="t"),
        options=CreateOptions(),
        line=LineAddress(path="p", secret="s3cret"),
        access_token="s3cret",
        traffic_token="s3cret",
        state=State.RUNNING,
        started_at=_NOW,
        end_at=_NOW,
        pauses=False,
        reason=None,
        pid=None,
        pid_started=None,
        asked=None,
    )

    assert "s3cret" not in repr(row)
