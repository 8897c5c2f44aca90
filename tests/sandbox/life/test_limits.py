"""Admission: the tenant's limit, the platform's, and when to come back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent.exceptions import SandboxLimitError, ServerBusyError
from ppio_agent.sandbox.life.limits import admit, extended_end, retry_after


def _admit(tenant: int, total: int, next_end: float | None = None) -> None:
    admit(tenant=tenant, total=total, tenant_limit=2, total_limit=3, next_end=next_end)


def test_one_below_both_limits_is_let_in() -> None:
    _admit(1, 2)


def test_a_full_tenant_is_refused_429_until_its_next_slot() -> None:
    with pytest.raises(SandboxLimitError, match="all 2 sandboxes of this key") as info:
        _admit(2, 2, next_end=3.2)

    assert (info.value.http_status, info.value.retry_after) == (429, 4.0)


def test_a_full_platform_is_refused_503() -> None:
    with pytest.raises(ServerBusyError) as info:
        _admit(1, 3)

    assert (info.value.http_status, info.value.retry_after) == (503, 60.0)


@given(seconds=st.none() | st.floats(-1e9, 1e9))
@settings(max_examples=50)
def test_the_hint_is_whole_seconds_from_1_to_60(seconds: float | None) -> None:
    hint = retry_after(seconds)

    assert 1 <= hint <= 60
    assert hint == int(hint)


@given(end=st.floats(0, 1e6), now=st.floats(0, 1e6), seconds=st.floats(0, 1e6))
@settings(max_examples=50)
def test_an_extension_never_shortens(end: float, now: float, seconds: float) -> None:
    assert extended_end(end, now, seconds) >= end
    assert extended_end(end, now, seconds) >= now + seconds
