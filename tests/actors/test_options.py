"""Settings: those that make no sense are told where they are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import ppio_agent.actors
from ppio_agent.actors import (
    ActorOptions,
    InProcessActorRuntime,
    Retention,
    RuntimeOptions,
    Supervision,
)
from ppio_agent.exceptions import ConfigurationError


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Supervision(strategy="x"), "strategy .* restart, resume, stop: .*'x'"),
        (lambda: Supervision(max_restarts=-1), "max_restarts .* whole number from 0"),
        (lambda: Supervision(max_restarts=True), "max_restarts .* whole number"),
        (lambda: Supervision(window=0.0), "window .* above 0"),
        (lambda: Supervision(backoff_factor=float("nan")), "backoff_factor .* nan"),
        (lambda: Supervision(quarantine="60"), "quarantine .* seconds .*'60'"),
        (lambda: ActorOptions(mailbox_limit=2**31), "mailbox_limit .* 2147483647"),
        (lambda: ActorOptions(state_ttl=-1.0), "state_ttl .* or None"),
        (lambda: ActorOptions(supervision={}), "supervision .* Supervision"),
        (lambda: ActorOptions(idle_timeout=1e12), "idle_timeout .* 315360000"),
        (lambda: RuntimeOptions(actor=5), "actor has to be ActorOptions"),
        (lambda: RuntimeOptions(retention=None), "retention"),
        (lambda: RuntimeOptions(debug="no"), "debug .* True or False"),
        (lambda: Retention(ids=1.5), r"Retention\.ids"),
        (lambda: InProcessActorRuntime(5), "int cannot keep actors"),
        (lambda: InProcessActorRuntime(options=5), "options"),
        (lambda: InProcessActorRuntime(telemetry=5), "telemetry"),
        (lambda: InProcessActorRuntime(placement=5), "placement"),
    ],
)
def test_a_setting_that_makes_no_sense_is_told(
    make: Callable[[], Any], why: str
) -> None:
    """In one line that says which it is, and what it has to be."""
    with pytest.raises(ConfigurationError, match=why) as caught:
        make()
    text = str(caught.value)
    assert "\n" not in text
    assert "Attribute(" not in text


def test_all_settings_are_named_by_the_package() -> None:
    """Whoever gives one needs no module behind it."""
    for cls in (ActorOptions, Retention, RuntimeOptions, Supervision):
        assert getattr(ppio_agent.actors, cls.__name__) is cls
    assert RuntimeOptions(retention=Retention(seconds=0)).retention.seconds == 0
