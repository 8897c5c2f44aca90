"""Which calls of the kernel a sandbox of bubblewrap cannot make, as a program for it. Pure.

Namespaces cover the network of the internet's protocols. Some others reach what is
outside whatever the namespace, as `AF_VSOCK` does with the host of a virtual machine,
so sockets, and pairs of them, are of the families that are covered. What would be a way around that is
refused, too: `io_uring`, which opens sockets without a call, and the calls of another
architecture.

Source: seccomp(2), and the kernel's `Documentation/networking/filter.rst`.
"""

from __future__ import annotations

import errno
import struct
from typing import NamedTuple

__all__ = ["program"]

_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000
_IO_URING_SETUP = 425
# Of the 32-bit pointers of x86-64, whose calls have numbers from here on.
_X32 = 0x40000000
_FAMILIES = (1, 2, 10, 16)  # unix, inet, inet6, netlink


class _Machine(NamedTuple):
    architecture: int
    socket: int
    socketpair: int


_X86 = _Machine(0xC000003E, 41, 53)
_ARM = _Machine(0xC00000B7, 198, 199)
# The second of each is what a kernel of the first calls itself for `linux32`.
_MACHINES = {"x86_64": _X86, "i686": _X86, "aarch64": _ARM, "armv8l": _ARM}


def program(machine: str, pointer_bits: int) -> bytes:
    """Return the program for a machine; `b""` for one that is not known here.

    Args:
        machine: As `os.uname` names it, which is the kernel's and not the processes'.
        pointer_bits: Of the programs that will run; those of 32 bits are none of the
            machine's own.
    """
    known = _MACHINES.get(machine)
    if known is None or pointer_bits != 64:
        return b""
    families = len(_FAMILIES)
    # Jumps are counted from the next one; the last three are the answers.
    steps = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 0, families + 8, known.architecture),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, families + 6, 0, _X32),
        (_EQUAL, families + 5, 0, _IO_URING_SETUP),
        (_EQUAL, 1, 0, known.socketpair),
        (_EQUAL, 0, families + 2, known.socket),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        *((_EQUAL, families - i, 0, name) for i, name in enumerate(_FAMILIES)),
        (_RETURN, 0, 0, _REFUSE | errno.EAFNOSUPPORT),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE | errno.ENOSYS),
    ]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)
