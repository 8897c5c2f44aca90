"""Requirements are looked at, and a wrong warning is worse than none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppio_agent.sandbox.templates.requirements import (
    missing_distributions,
    pip_environment,
    unsafe_lines,
)


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


@pytest.mark.parametrize(
    "line",
    [
        "attrs",
        "attrs==23.1",
        "requests[socks] >= 2, < 3  # a remark",
        "zope.interface (>=5)",
        'tomli ~= 2.0 ; python_version < "3.11"',
        "# only a remark",
        "",
    ],
)
def test_names_with_versions_run_nothing(line: str) -> None:
    assert unsafe_lines(line) == []


@pytest.mark.parametrize(
    "line",
    [
        "-e .",
        "--no-binary :all:",
        "-r more.txt",
        "attrs --global-option=x",
        "attrs==1 --config-settings x=y",
        ".",
        "./attrs",
        "folder/attrs",
        "attrs @ file:///tmp/x",
        "attrs==1 @ git+https://example.com/x",
        "git+https://example.com/x",
        "https://example.com/x.tar.gz",
        "attrs \\",
        "attrs==1 \\",
    ],
)
def test_what_may_lead_to_sources_is_told_with_its_line(line: str) -> None:
    assert [found[1] for found in unsafe_lines(f"attrs\n{line}\n")] == [2]


@given(st.text())
def test_any_text_has_an_answer(text: str) -> None:
    """A line that is let through names a distribution first."""
    bad = {line for _, line, _ in unsafe_lines(text)}
    for number, line in enumerate(text.splitlines(), start=1):
        plain = line.strip()
        if number not in bad and plain and not plain.startswith("#"):
            assert plain[0].isascii()
            assert plain[0].isalnum()


def test_pip_gets_its_settings_and_no_secrets() -> None:
    passed = {
        "PATH": "/bin",
        "PIP_INDEX_URL": "https://x",
        "https_proxy": "p",
        "NO_PROXY": "n",
        "SSL_CERT_FILE": "c",
    }
    secret = {"PPIO_API_KEY": "k", "AWS_SECRET_ACCESS_KEY": "s", "PYTHONPATH": "."}

    assert pip_environment({**passed, **secret, "PIP_TARGET": "/x"}) == passed
