"""What refusals mean for a batch: how long it waits, how many sandboxes it has."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent.client.batch.admission import Admission


def _refused(
    admission: Admission,
    *,
    creating: bool = False,
    retry_after: float | None = None,
    now: float = 100.0,
    jitter: float = 0.0,
) -> Admission | None:
    return admission.refused(
        creating=creating, retry_after=retry_after, now=now, random=lambda: jitter
    )


class TestPause:
    def test_lasts_as_long_as_the_platform_asks(self) -> None:
        """A little longer at most, so that not all come back at once."""
        plain = _refused(Admission(most=4), retry_after=2.0)
        late = _refused(Admission(most=4), retry_after=2.0, jitter=1.0)

        assert plain is not None
        assert plain.pause(100.0) == 2.0
        assert plain.pause(102.0) == 0.0
        assert late is not None
        assert 2.0 < late.pause(100.0) <= 2.2001

    def test_is_extended_by_a_later_refusal_but_counted_once(self) -> None:
        """All workers may be refused at the same time."""
        admission = Admission(most=64)
        for retry_after in (1.0, 3.0, 2.0):
            told = _refused(admission, retry_after=retry_after)
            assert told is not None
            admission = told

        assert admission.pause(100.0) == 3.0
        assert admission.rounds == 1

    def test_grows_where_the_platform_names_no_time(self) -> None:
        """Doubling, up to eight seconds."""
        first = _refused(Admission(most=4), jitter=0.99)
        later = _refused(Admission(most=4, rounds=9), jitter=0.99)

        assert first is not None
        assert first.pause(100.0) < 0.5
        assert later is not None
        assert 7.0 < later.pause(100.0) < 8.0

    def test_is_not_entered_for_a_time_beyond_reason(self) -> None:
        """The refused item fails with what the platform said."""
        assert _refused(Admission(most=4), retry_after=121.0) is None

    def test_is_given_up_after_ten_rounds_in_vain(self) -> None:
        """One success begins the count anew."""
        assert _refused(Admission(most=4, rounds=10), retry_after=1.0) is None
        again = Admission(most=4, rounds=10).succeeded()
        assert _refused(again, retry_after=1.0) is not None


class TestLimit:
    def test_is_what_is_alive_when_one_more_is_refused(self) -> None:
        """Nobody waits meanwhile: one that ends makes room."""
        told = _refused(Admission(most=16, live=5), creating=True)

        assert told is not None
        assert told.limit == 5
        assert not told.may_open
        assert told.ended().may_open
        assert told.pause(100.0) == 0.0

    def test_is_at_least_one_after_a_pause(self) -> None:
        """With none alive there is nobody to wait for but time."""
        told = _refused(Admission(most=16), creating=True, jitter=0.5)

        assert told is not None
        assert told.limit == 1
        assert told.pause(100.0) > 0

    def test_grows_by_one_after_ten_successes(self) -> None:
        """Until it is what the batch wants."""
        admission = Admission(most=4, limit=2)
        limits = []
        for _ in range(40):
            admission = admission.succeeded()
            limits.append(admission.limit)

        assert limits == [2] * 9 + [3] * 10 + [4] * 21

    def test_is_left_alone_by_a_refused_invocation(self) -> None:
        """That says nothing of sandboxes."""
        told = _refused(Admission(most=4, live=3), retry_after=1.0)

        assert told is not None
        assert told.limit == 4


_STEP = st.one_of(
    st.just("open"),
    st.just("end"),
    st.just("succeed"),
    st.tuples(st.booleans(), st.none() | st.floats(0.001, 200)),
)


@settings(max_examples=100)
@given(st.integers(1, 8), st.lists(_STEP, max_size=80), st.floats(0, 0.999))
def test_never_more_than_wanted_never_stuck(
    most: int, steps: list[object], jitter: float
) -> None:
    """Whatever comes: 1 <= limit <= most, the limit is kept, pauses are bounded."""
    admission, now = Admission(most=most), 0.0
    for step in steps:
        now += 0.1
        if step == "open":
            if admission.may_open:
                admission = admission.opened()
        elif step == "end":
            admission = admission.ended() if admission.live else admission
        elif step == "succeed":
            admission = admission.succeeded()
        else:
            assert isinstance(step, tuple)
            creating = step[0] and admission.live > 0
            before = admission.ended() if creating else admission
            told = _refused(
                before, creating=creating, retry_after=step[1], now=now, jitter=jitter
            )
            admission = before if told is None else told
            if creating and told is not None:
                assert admission.limit == max(1, admission.live)

        assert 1 <= admission.limit <= most
        assert 0 <= admission.live <= admission.limit
        assert admission.pause(now) <= 132.0
        if not admission.live:
            assert admission.may_open
