"""What a supervisor does before it starts anything; `test_security` has the rest."""

from __future__ import annotations

import pytest

from ppio_agent.sandbox.supervisor.contained import counts_by_namespace


@pytest.mark.parametrize(
    ("release", "counts"),
    [
        ("6.18.44-generic", True),
        ("5.14.0", True),
        ("5.13.19-2-pve", False),
        ("4.18.0-553.el8", False),
        ("10.0", True),
        ("unknown", False),
        ("", False),
    ],
)
def test_processes_are_limited_only_where_others_are_not_counted(
    release: str, *, counts: bool
) -> None:
    """An older kernel counts all of the user's on the machine."""
    assert counts_by_namespace(release) is counts
