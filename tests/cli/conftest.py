"""Fixtures of the tests of the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ppio_agent import cli
from ppio_agent.sandbox import SandboxPlatform
from tests.cli.clikit import Command, Done


@pytest.fixture
def command(
    platform: SandboxPlatform,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> Command:
    """Run a command in this process, against the tests' platform, in a new folder."""
    monkeypatch.setenv("PPIO_API_URL", platform.url)
    monkeypatch.setenv("PPIO_API_KEY", platform.api_key)
    monkeypatch.chdir(tmp_path)

    def run(*argv: str, of: Callable[[list[str]], None] = cli.main) -> Done:
        with pytest.raises(SystemExit) as ended:
            of(list(argv))
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return Done(int(ended.value.code or 0), out, err)

    return run
