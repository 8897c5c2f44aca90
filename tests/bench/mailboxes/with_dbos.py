"""DBOS on SQLite: one empty workflow."""

from __future__ import annotations

import logging
from typing import Any

from dbos import DBOS


@DBOS.workflow()
def _empty() -> None:
    return None


class System:
    def __init__(self, options: dict[str, Any]) -> None:
        logging.disable(logging.CRITICAL)
        folder = options["folder"]
        DBOS(
            config={
                "name": "bench",
                "system_database_url": f"sqlite:///{folder}/dbos.sqlite",
                "log_level": "CRITICAL",
                "run_admin_server": False,
            }
        )

    def start(self, actors: int) -> None:
        DBOS.launch()

    def ask(self, number: int) -> None:
        _empty()

    def close(self) -> None:
        DBOS.destroy()
