"""What the page on authentication says about signing is done as it says."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

from ppio_agent.serving import HmacAuth
from tests.serving.conftest import Serve
from tests.serving.support_auth import app_with
from tests.support import needs_program

PAGE = Path(__file__).parents[2] / "docs/authentication.md"


def test_the_commands_on_the_page_call_an_agent(serve: Serve) -> None:
    """With curl and openssl, as they stand there."""
    needs_program("curl")
    needs_program("openssl")
    http = serve(app_with(HmacAuth({"team-a": "sk team's $ecret é"})))
    (commands,) = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(), re.S | re.M)
    environ = {
        **os.environ,
        "AGENT_URL": f"http://127.0.0.1:{http.port}",
        "KEY_ID": "team-a",
        "SECRET": "sk team's $ecret é",
        "no_proxy": "*",
    }
    for _ in range(2):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            env=environ, capture_output=True, timeout=60, check=True,
        )  # fmt: skip
        assert json.loads(done.stdout)["result"][:2] == ["team-a", "hmac"]
