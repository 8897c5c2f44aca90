"""What a `Start` may ask for. How it is answered is seen in `test_envd`."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppio_agent.sandbox.supervisor.envd.process_messages import (
    StartRequest,
    names_agent,
    parse_start,
)
from ppio_agent.sandbox.supervisor.envd.rpc import RpcError, parse_message


def parse(**message: object) -> StartRequest:
    """Parse a message given as keywords."""
    return parse_start(parse_message(json.dumps(message).encode()))


def test_a_whole_message_is_read() -> None:
    """Every field has its place."""
    found = parse(
        process={"cmd": "ls", "args": ["-l"], "envs": {"A": "b"}, "cwd": "/app"},
        stdin=False,
        tag="mine",
    )

    assert StartRequest(["ls", "-l"], {"A": "b"}, "/app", "mine", stdin=False) == found


def test_what_is_absent_has_its_default() -> None:
    """No arguments, no variables, the home folder, and an open input."""
    assert StartRequest(["ls"], {}, None, None, stdin=True) == parse(
        process={"cmd": "ls"}
    )
    assert parse(process={"cmd": "ls", "args": None, "cwd": ""}).cwd is None


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ({}, "invalid_argument"),
        ({"process": []}, "invalid_argument"),
        ({"process": {"cmd": ""}}, "invalid_argument"),
        ({"process": {"cmd": 1}}, "invalid_argument"),
        ({"process": {"cmd": "a\0b"}}, "invalid_argument"),
        ({"process": {"cmd": "a", "args": "b"}}, "invalid_argument"),
        ({"process": {"cmd": "a", "args": [1]}}, "invalid_argument"),
        ({"process": {"cmd": "a", "envs": {"A": 1}}}, "invalid_argument"),
        ({"process": {"cmd": "a", "envs": {"": "x"}}}, "invalid_argument"),
        ({"process": {"cmd": "a", "envs": {"A=B": "x"}}}, "invalid_argument"),
        ({"process": {"cmd": "a"}, "stdin": "yes"}, "invalid_argument"),
        ({"process": {"cmd": "a"}, "pty": {"size": {}}}, "unimplemented"),
    ],
)
def test_a_wrong_message_is_refused(message: dict[str, object], code: str) -> None:
    """With the code that says whose fault it is."""
    with pytest.raises(RpcError) as caught:
        parse(**message)
    assert code == caught.value.code


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_payload_is_a_request_or_refused(payload: bytes) -> None:
    """Nothing else can come of it."""
    try:
        code = "" if parse_start(parse_message(payload)).argv else "no program"
    except RpcError as exc:
        code = exc.code
    assert code in {"", "invalid_argument", "unimplemented"}


COMMAND = "cd /app && sudo -E python app.py"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["/bin/bash", "-l", "-c", COMMAND], True),
        (["bash", "-lc", COMMAND], True),
        (["/bin/bash", "-l", "-c", f"{COMMAND} "], False),
        (["/bin/bash", "-l", "-c", COMMAND.replace("app.py", "b.py")], False),
        (["/bin/bash", COMMAND], False),
        (["/bin/bash", "-x", COMMAND], False),
        (["/bin/sh", "-c", COMMAND], False),
        (["/bin/bash"], False),
    ],
)
def test_only_the_exact_command_names_the_agent(
    argv: list[str], expected: bool
) -> None:
    """Anything else is a program of its own."""
    assert expected is names_agent(argv, "app.py")
