"""Calls of the kernel that are refused inside: the program, run by hand."""

from __future__ import annotations

import errno
import struct

import pytest

from ppio_agent.sandbox.backends import contained
from ppio_agent.sandbox.backends.seccomp import program

ALLOWED = 0x7FFF0000
X86, ARM, I386 = 0xC000003E, 0xC00000B7, 0x40000003


def _refused(code: int) -> int:
    return 0x00050000 | code


def _judge(machine: str, architecture: int, number: int, argument: int = 0) -> int:
    """Run the program on one call, as the kernel does."""
    steps = list(struct.iter_unpack("=HBBI", program(machine, 64)))
    call = struct.pack("=IIQQ", number, architecture, 0, argument)
    at = value = 0
    while True:
        code, yes, no, operand = steps[at]
        at += 1
        if code == 0x06:
            return int(operand)
        if code == 0x20:
            (value,) = struct.unpack_from("=I", call, operand)
        else:
            holds = value == operand if code == 0x15 else value >= operand
            at += yes if holds else no


@pytest.mark.parametrize(
    ("machine", "architecture", "call", "other"),
    [
        ("x86_64", X86, 41, 53),
        ("x86_64", X86, 53, 41),
        ("i686", X86, 41, 53),
        ("aarch64", ARM, 198, 199),
        ("aarch64", ARM, 199, 198),
        ("armv8l", ARM, 198, 199),
    ],
)
def test_sockets_are_of_families_that_namespaces_cover(
    machine: str, architecture: int, call: int, other: int
) -> None:
    """Pairs, too, and under `linux32`; whatever else is done is not looked at."""
    allowed = [
        f for f in range(64) if _judge(machine, architecture, call, f) == ALLOWED
    ]

    assert allowed == [1, 2, 10, 16]
    assert _judge(machine, architecture, call, 40) == _refused(errno.EAFNOSUPPORT)
    others = set(range(600)) - {call, other, 425}
    assert {_judge(machine, architecture, n, 40) for n in others} == {ALLOWED}


@pytest.mark.parametrize(
    ("architecture", "number"), [(X86, 425), (X86, 0x40000000 + 41), (I386, 359)]
)
def test_there_is_no_way_around(architecture: int, number: int) -> None:
    """By a ring, by 32-bit pointers, as a 32-bit program."""
    assert _judge("x86_64", architecture, number, 40) == _refused(errno.ENOSYS)


@pytest.mark.parametrize(("machine", "bits"), [("riscv64", 64), ("x86_64", 32)])
def test_there_is_no_program_for_what_is_not_known_and_that_is_told_once(
    machine: str,
    bits: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Of a 32-bit Python on a kernel of 64 bits every call would be refused."""
    assert program(machine, bits) == b""

    monkeypatch.setattr(contained, "program", lambda *_: program(machine, bits))
    contained._rules.cache_clear()
    try:
        assert [contained._rules(), contained._rules()] == [b"", b""]
    finally:
        contained._rules.cache_clear()
    assert len(caplog.records) == 1
    assert "there is no filter" in caplog.text
