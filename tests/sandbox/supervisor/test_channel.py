"""The line between platform and supervisor: whole messages, descriptors, no trust."""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent.sandbox.supervisor.channel import (
    MAX_MESSAGE,
    Channel,
    ChannelError,
    MessageReader,
    encode_message,
    receive,
    receive_one,
)
from ppio_agent.sandbox.supervisor.loop import Loop

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=100)
@given(
    messages=st.lists(st.dictionaries(st.text(), json_values, max_size=3), max_size=4),
    size=st.integers(1, 40),
)
def test_messages_arrive_whole_and_in_order_however_they_are_cut(
    messages: list[dict[str, object]], size: int
) -> None:
    """The reader gives what was encoded."""
    data = b"".join(map(encode_message, messages))
    reader = MessageReader()

    found = [
        message
        for start in range(0, len(data), size)
        for message in reader.feed(data[start : start + size])
    ]

    assert messages == found


@given(st.binary(max_size=200))
def test_any_bytes_are_messages_or_refused(data: bytes) -> None:
    """No input makes the reader fail otherwise."""
    try:
        found = MessageReader().feed(data)
    except ChannelError:
        return
    assert all(type(message) is dict for message in found)


@pytest.mark.parametrize(
    "body", [b"", b"[1]", b"{", b"\xff", b"null", b"[" * 100_000], ids=repr
)
def test_what_is_no_object_is_refused(body: bytes) -> None:
    """A message is a JSON object and nothing else."""
    with pytest.raises(ChannelError):
        MessageReader().feed(struct.pack(">I", len(body)) + body)


def test_a_message_over_the_limit_is_refused_at_both_ends() -> None:
    """The reader does not wait for the rest of it; the writer does not begin."""
    with pytest.raises(ChannelError, match="larger than"):
        MessageReader().feed(struct.pack(">I", MAX_MESSAGE + 1))
    with pytest.raises(ChannelError, match="larger than"):
        encode_message({"x": "y" * MAX_MESSAGE})


class Ends:
    """A channel on a loop and the platform's end of its line."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.platform, line = socket.socketpair()
        self.messages: list[object] = []
        self.ends = 0
        self.channel = Channel(
            self.loop, line, on_message=self.messages.append, on_end=self._on_end
        )

    def _on_end(self) -> None:
        self.ends += 1

    def run(self, seconds: float = 0.0) -> None:
        """Let the loop do what is to be done now."""
        self.loop.call_later(seconds, self.loop.stop)
        self.loop.run()


@pytest.fixture
def ends() -> Iterator[Ends]:
    """Both ends, closed after the test."""
    both = Ends()
    yield both
    both.channel.close()
    both.platform.close()


def test_a_descriptor_arrives_with_its_message(ends: Ends) -> None:
    """The received descriptor is the sent one, closed here and not inheritable there."""
    reader, writer = os.pipe()
    ends.channel.send({"reply": 1})
    ends.channel.send({"reply": 2}, writer)

    data, fds = receive(ends.platform)
    if not fds:
        more, fds = receive(ends.platform)
        data += more

    assert MessageReader().feed(data) == [{"reply": 1}, {"reply": 2, "fd": True}]
    assert len(fds) == 1
    assert not os.get_inheritable(fds[0])
    os.write(fds[0], b"x")
    os.close(fds[0])
    assert os.read(reader, 9) == b"x"
    assert os.read(reader, 9) == b"", "the sender's copy is still open"
    os.close(reader)


def test_messages_reach_the_callback(ends: Ends) -> None:
    """What the platform sends is told in order."""
    ends.platform.sendall(encode_message({"a": 1}) + encode_message({"b": 2}))
    ends.run()

    assert ends.messages == [{"a": 1}, {"b": 2}]
    assert ends.ends == 0


def test_the_end_of_the_platform_is_told_once(ends: Ends) -> None:
    """End of file, then sends into nothing, are one end."""
    ends.platform.close()
    ends.run()
    ends.channel.send({"too": "late"})

    assert ends.ends == 1


def test_nonsense_of_the_platform_ends_the_line(ends: Ends) -> None:
    """There is no way back from a broken frame."""
    ends.platform.sendall(b"\xff" * 8)
    ends.run()

    assert ends.ends == 1


def test_a_platform_that_does_not_read_blocks_nothing(ends: Ends) -> None:
    """Messages wait for it in order, up to a bound; past it the line ends."""
    text = "x" * 10_000
    for number in range(200):
        ends.channel.send({"n": number, "text": text})
    assert ends.ends == 0

    reader, found = MessageReader(), []
    while len(found) < 200:
        ends.run()
        found += reader.feed(receive(ends.platform)[0])
    assert list(range(200)) == [message["n"] for message in found]

    for number in range(10_000):
        ends.channel.send({"n": number, "text": "x" * 1000})
    assert ends.ends == 1


def test_one_message_is_read_without_what_follows(ends: Ends) -> None:
    """However large it is, and whatever was sent behind it."""
    first = {"text": "x" * 500_000}
    data = encode_message(first) + encode_message({"second": 2})
    writer = threading.Thread(target=ends.platform.sendall, args=(data,))
    theirs = ends.channel._sock
    ends.loop.unwatch(theirs.fileno())
    theirs.settimeout(None)
    writer.start()

    assert receive_one(theirs) == (first, None)
    assert receive_one(theirs) == ({"second": 2}, None)
    writer.join()


@pytest.mark.parametrize("data", [b"", b"\0\0", b"\0\0\0\x09{}", b"\xff" * 4])
def test_a_line_that_ends_too_soon_is_no_message(ends: Ends, data: bytes) -> None:
    """Nor is one that announces too much."""
    theirs = ends.channel._sock
    ends.loop.unwatch(theirs.fileno())
    theirs.settimeout(5)
    ends.platform.sendall(data)
    ends.platform.shutdown(socket.SHUT_WR)

    with pytest.raises(ChannelError):
        receive_one(theirs)


def test_messages_are_plain_json() -> None:
    """The form on the line is stable: length, then compact JSON."""
    data = encode_message({"op": "kill", "grace": 2.0})

    assert json.loads(data[4:]) == {"op": "kill", "grace": 2.0}
    assert struct.pack(">I", len(data) - 4) == data[:4]
