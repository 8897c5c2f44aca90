"""Requests that have ended, as they are kept in memory."""

from __future__ import annotations

from attrs import asdict, evolve
from hypothesis import given
from hypothesis import strategies as st

from ppio_agent.storage.actors._ended import pack, unpack
from ppio_agent.storage.actors.records import Cancellation, RequestRecord
from ppio_agent.wire.actors import ActorId, RequestStatus

_ID = ActorId("kind", "one")
_instants = st.floats(min_value=0.0, max_value=1e11)
_records = st.builds(
    RequestRecord,
    st.just(_ID),
    st.just("m-1"),
    method=st.text(max_size=20),
    digest=st.binary(max_size=32),
    sender=st.text(max_size=20),
    chain=st.lists(st.text(max_size=5), max_size=3).map(tuple),
    traceparent=st.text(max_size=20),
    created_at=_instants,
    deadline=st.none() | _instants,
    status=st.sampled_from(RequestStatus),
    attempt=st.integers(0, 2**40),
    started_at=st.none() | _instants,
    finished_at=st.none() | _instants,
    data=st.binary(max_size=100),
    evicted=st.booleans(),
    position=st.integers(0, 2**40),
    cancel=st.none() | st.sampled_from(Cancellation),
)


@given(_records)
def test_nothing_is_lost_but_the_parameters(record: RequestRecord) -> None:
    """They are needed no more once it has ended."""
    found = unpack(_ID, "m-1", pack(record))
    assert asdict(found) == asdict(evolve(record, params=b""))


def test_a_usual_request_takes_few_bytes_beyond_its_result() -> None:
    """Those that are kept are most of what a store in memory takes."""
    usual = RequestRecord(_ID, "m-1", "ask", created_at=1.5e9, finished_at=1.5e9)
    usual.status, usual.data = RequestStatus.COMPLETED, b"x" * 100
    assert len(pack(usual)) < 170
