"""The life of an invocation, as a pure state machine."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent.agent.states import Happening, InvocationState, Life

S, H = InvocationState, Happening
ENDS = (H.RETURNED, H.FAILED, H.STOPPED)


def live(*happenings: Happening) -> Life:
    life = Life()
    for happening in happenings:
        life = life.after(happening)
    return life


@pytest.mark.parametrize(
    ("happenings", "expected"),
    [
        ((), Life(S.PENDING)),
        ((H.ENTERED,), Life(S.RUNNING)),
        ((H.ENTERED, H.RETURNED), Life(S.SUCCEEDED, confirmed=True)),
        ((H.ENTERED, H.FAILED), Life(S.FAILED, confirmed=True)),
        ((H.ENTERED, H.STOPPED), Life(S.FAILED, confirmed=True)),
        ((H.CANCEL_ASKED,), Life(S.CANCELLED, confirmed=True)),
        ((H.REFUSED,), Life(S.CANCELLED, confirmed=True)),
        ((H.DEADLINE,), Life(S.TIMED_OUT, confirmed=True)),
        ((H.ENTERED, H.CANCEL_ASKED), Life(S.CANCELLING)),
        ((H.ENTERED, H.CANCEL_ASKED, H.STOPPED), Life(S.CANCELLED, confirmed=True)),
        ((H.ENTERED, H.CANCEL_ASKED, H.RETURNED), Life(S.SUCCEEDED, confirmed=True)),
        ((H.ENTERED, H.CANCEL_ASKED, H.FAILED), Life(S.FAILED, confirmed=True)),
        ((H.ENTERED, H.CANCEL_ASKED, H.GRACE_OVER), Life(S.CANCELLED)),
        ((H.ENTERED, H.DEADLINE), Life(S.TIMED_OUT)),
        ((H.ENTERED, H.CANCEL_ASKED, H.DEADLINE), Life(S.TIMED_OUT)),
        (
            (H.ENTERED, H.DEADLINE, H.RETURNED),
            Life(S.TIMED_OUT, confirmed=True, late=True),
        ),
        ((H.ENTERED, H.DEADLINE, H.STOPPED), Life(S.TIMED_OUT, confirmed=True)),
    ],
)
def test_each_story_has_one_end(
    happenings: tuple[Happening, ...], expected: Life
) -> None:
    """The table of the spec, told as stories."""
    assert live(*happenings) == expected


@settings(max_examples=100)
@given(st.lists(st.sampled_from(Happening), max_size=12))
def test_a_terminal_state_is_final_and_confirmed_never_goes_back(
    happenings: list[Happening],
) -> None:
    """Whatever happens, in whatever order."""
    life = Life()
    for happening in happenings:
        after = life.after(happening)
        if life.state.terminal:
            assert life.state is after.state
        assert after.confirmed >= life.confirmed
        assert after.late >= life.late
        assert after.state.terminal or not after.confirmed
        life = after


@settings(max_examples=100)
@given(st.lists(st.sampled_from(Happening), max_size=12))
def test_what_changes_nothing_gives_the_very_same_life(
    happenings: list[Happening],
) -> None:
    """Callers take identity for "nothing happened"."""
    life = live(*happenings)
    for happening in Happening:
        after = life.after(happening)
        assert (after is life) == (after == life)


@pytest.mark.parametrize("end", ENDS)
def test_user_code_cannot_end_before_it_began(end: Happening) -> None:
    """A pending invocation stays so."""
    assert live(end) == Life(S.PENDING)
