"""Requirements are looked at, and a wrong warning is worse than none."""

from __future__ import annotations

from ppio_agent.sandbox.templates.requirements import missing_distributions


def test_names_that_are_not_installed_are_found_once() -> None:
    text = """\
# what it needs
requests>=2
no-such-thing[extra] ~= 1.0
no-such-thing
other; python_version < "3"
-r more.txt
name @ https://example.com/x.whl
https://example.com/y.whl
"""
    assert missing_distributions(text) == ("no-such-thing",)
