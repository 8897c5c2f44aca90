"""What is written down in Redis is read again as it was."""

from __future__ import annotations

from attrs import asdict
from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent.storage.actors.records import Outgoing, RequestRecord, SetReminder
from ppio_agent.storage.actors.redis_records import (
    EVERY_ACTOR,
    INDEXES,
    actor_of,
    dead_mark,
    format_letter,
    format_outgoing,
    format_reminder,
    key_of,
    keys_of,
    letter_id,
    parse_letter,
    parse_outgoing,
    parse_reminder,
)
from ppio_agent.wire.actors import ActorId, RequestStatus

TIMES = st.floats(0.0, 1e10)
INSTANCES = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1)
ACTORS = INSTANCES.filter(lambda text: not text.isspace()).map(
    lambda text: ActorId("echo", text)
)
REQUESTS = st.builds(
    RequestRecord,
    ACTORS,
    st.just("m-1"),
    method=st.text(st.characters(exclude_categories=["Cs"])),
    params=st.binary(),
    digest=st.binary(max_size=32),
    sender=ACTORS.map(str),
    chain=st.lists(ACTORS.map(str), max_size=3).map(tuple),
    traceparent=st.just("00-a-b-01"),
    created_at=TIMES,
    deadline=st.none() | TIMES,
    position=st.just(0),
)


def _fields(record: RequestRecord) -> dict[str, object]:
    return asdict(record, recurse=False)


@given(REQUESTS, TIMES, TIMES, st.integers(1, 10**6))
@settings(max_examples=100)
def test_what_leaves_is_read_as_it_was(
    request: RequestRecord, not_before: float, now: float, mailbox: int
) -> None:
    """To the last bit; it is due when it was to leave, but not before it did."""
    text = format_outgoing(Outgoing(request, not_before, mailbox), now)
    read = parse_outgoing(text)
    assert _fields(read.request) == _fields(request)
    assert (read.not_before, read.mailbox) == (max(not_before, now), mailbox)


@given(
    st.builds(
        SetReminder,
        st.text(st.characters(exclude_categories=["Cs"])),
        TIMES,
        st.text(st.characters(exclude_categories=["Cs"])),
        params=st.binary(),
        period=st.none() | TIMES,
        count=st.none() | st.integers(1, 100),
    )
)
@settings(max_examples=100)
def test_a_reminder_is_read_as_it_was(reminder: SetReminder) -> None:
    """With the request that it made last."""
    assert parse_reminder(format_reminder(reminder, "r-1")) == (reminder, "r-1")


@given(REQUESTS)
@settings(max_examples=50)
def test_a_letter_says_whose_it_is(request: RequestRecord) -> None:
    """By its text, and by the end of its id."""
    actor = str(request.actor_id)
    id = letter_id(actor, 12.5, 7)
    text = format_letter(request, id, "mailbox_full", 12.5)
    letter = parse_letter(actor.encode() + b"\n" + text)
    assert (letter.id, letter.reason, letter.at) == (id, "mailbox_full", 12.5)
    assert letter.request.actor_id == request.actor_id
    assert letter.request.params == request.params
    assert letter.request.status is RequestStatus.REJECTED
    assert id.endswith(dead_mark(actor))


def test_later_letters_have_greater_ids() -> None:
    """By their time, then by their number."""
    ids = [
        letter_id("a/b", at, number)
        for at in (1.0, 999.5, 1.7e9, 4e9)
        for number in (2, 10)
    ]
    assert ids == sorted(ids)


@given(ACTORS, ACTORS)
@settings(max_examples=100)
def test_an_actor_has_keys_of_its_own_with_one_tag(
    one: ActorId, other: ActorId
) -> None:
    """Whatever it is named, braces included."""
    keys = keys_of(str(one))
    tags = {key.partition("{")[2].partition("}")[0] for key in keys}
    assert len(tags) == 1
    assert tags != {"actors"}
    assert not set(keys) & set(INDEXES.values())
    assert one == other or not set(keys) & set(keys_of(str(other)))
    assert actor_of(key_of(str(one), "actor").encode()) == str(one)
    assert EVERY_ACTOR.replace("*", str(one)) == keys[0]
