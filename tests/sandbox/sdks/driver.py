"""Runs in the environment of a published package: does what a test asks for, by name.

Arguments: a script whose functions may be asked for. Each line of the standard input is
`{"do": name, "given": {…}}`; each answer is a line `{"result": …}` or `{"error": text}`.
"""

from __future__ import annotations

import contextlib
import json
import runpy
import sys
import traceback
from typing import Any


def answer(functions: dict[str, Any], line: str) -> dict[str, Any]:
    asked = json.loads(line)
    try:
        # A package may print; the standard output is for answers.
        with contextlib.redirect_stdout(sys.stderr):
            return {"result": functions[asked["do"]](**asked["given"])}
    except BaseException:
        return {"error": traceback.format_exc()}


if __name__ == "__main__":
    FUNCTIONS = runpy.run_path(sys.argv[1])
    for line in sys.stdin:
        print(json.dumps(answer(FUNCTIONS, line)), flush=True)
