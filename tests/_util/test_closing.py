"""`with` for whatever is closed."""

from __future__ import annotations

import pytest

from ppio_agent._util.closing import Closing


class Door(Closing):
    """Counts how often it was closed."""

    closed = 0

    def close(self) -> None:
        self.closed += 1


def test_the_end_of_the_block_closes() -> None:
    """The block gets the object itself; an exception passes after the close."""
    with Door() as door:
        assert door.closed == 0
    assert door.closed == 1
    with pytest.raises(LookupError), door:
        raise LookupError
    assert door.closed == 2
