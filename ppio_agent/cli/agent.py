"""Writing and serving one agent: `init`, `run`, `dev`."""

from __future__ import annotations

import importlib.util
import logging
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

from ppio_agent.exceptions import ConfigurationError

if TYPE_CHECKING:
    from ppio_agent.serving import PPIOAgentRuntimeApp

__all__ = ["dev", "init", "load_app", "load_module", "run"]

_MANIFEST = """\
apiVersion: v1
kind: Agent
metadata:
  name: {name}
  version: 0.1.0
  author: you@example.com
  description: What this agent does, in a line.
spec:
  entrypoint: app.py
"""

_APP = '''\
"""The agent {name}."""

from ppio_agent import PPIOAgentRuntimeApp, RequestContext

app = PPIOAgentRuntimeApp(name="{name}")


@app.entrypoint
def agent(request: dict, context: RequestContext):
    """Answer a request; yield pieces instead of returning to stream."""
    return f"you said: {{request.get('prompt', '')}}"


if __name__ == "__main__":
    app.run()
'''

# How often the folder is looked at for changes, in seconds.
_LOOK_EVERY = 0.5


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=".")
@click.option("--name", help="Name of the agent.  [default: the folder's]")
def init(folder: Path, name: str | None) -> None:
    """Write a new agent into FOLDER: a manifest and a program.

    Nothing that exists is overwritten.
    """
    name = name or re.sub(r"[^a-z0-9]+", "-", folder.resolve().name.lower()).strip("-")
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", name):
        raise click.UsageError(
            f"{name!r} is no name for an agent: use a-z, 0-9 and -, at most 63; see --name"
        )
    files = {
        folder / ".ppio-agent.yaml": _MANIFEST.format(name=name),
        folder / "app.py": _APP.format(name=name),
    }
    for path in files:
        if path.exists():
            raise click.UsageError(f"{path} exists; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in files.items():
        path.write_text(text)
        click.echo(f"wrote {path}")
    click.echo(
        f"next: ppio-agent dev {folder / 'app.py'}   (serve it, reload on change)\n"
        f"      ppio-agent deploy {folder}"
    )


def _serving_options(command: Callable[..., None]) -> Callable[..., None]:
    command = click.option("--host", help="Address to bind.  [default: 127.0.0.1]")(
        command
    )
    return click.option(
        "--port",
        type=click.IntRange(0, 65535),
        help="Port; 0 takes any free one.  [default: 8080]",
    )(command)


@click.command()
@click.argument("file")
@_serving_options
@click.option("--debug", is_flag=True, help="Tracebacks in error answers, access log.")
def run(file: str, host: str | None, port: int | None, *, debug: bool) -> None:
    """Serve the agent in FILE.

    FILE:NAME names one that is not called `app`: an app or a plain function.
    """
    app = load_app(file, debug=debug)
    if not app.entrypoints:
        raise ConfigurationError(
            f"the app in {file} has no entrypoint; decorate a function with"
            " @app.entrypoint"
        )
    # The address, and what goes wrong, are told by the log; a program of one's own
    # chooses where that goes, this one shows it.
    if app.config.log_format is None:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
    app.run(port=port, host=host)


def load_app(target: str, *, debug: bool = False) -> PPIOAgentRuntimeApp:
    """Return the app of ``FILE`` or ``FILE:NAME``.

    Raises:
        ConfigurationError: There is no such file, it fails when imported, or what it
            holds under that name is neither an app nor a function.
    """
    from ppio_agent.serving import PPIOAgentRuntimeApp

    file, _, name = target.partition(":")
    module = load_module(Path(file))
    found = getattr(module, name or "app", None)
    if found is None and not name:
        found = getattr(module, "agent", None)
    if isinstance(found, PPIOAgentRuntimeApp):
        return found
    if not callable(found) or isinstance(found, type):
        raise ConfigurationError(
            f"{file} has no {name or 'app'!r} that can be served; assign"
            " app = PPIOAgentRuntimeApp(), or name a function: FILE:FUNCTION"
        )
    app = PPIOAgentRuntimeApp(name=Path(file).stem, debug=debug)
    app.entrypoint(found)
    return app


def load_module(path: Path) -> ModuleType:
    """Return a program, imported as a module.

    Raises:
        ConfigurationError: There is no such file, or it fails when imported.
    """
    if not path.is_file():
        raise ConfigurationError(f"there is no file {path}; name the agent's program")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ConfigurationError(f"{path} is no Python file; name the agent's program")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        line = _line_in(path, error)
        raise ConfigurationError(
            f"{path} cannot be imported: {type(error).__name__}: {error}{line}"
        ) from error
    return module


def _line_in(path: Path, error: BaseException) -> str:
    """Say in which line of the user's own file it happened."""
    line = getattr(error, "lineno", None)
    trace = error.__traceback__
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename) == path.resolve():
            line = trace.tb_lineno
        trace = trace.tb_next
    return f" (line {line})" if line else ""


@click.command()
@click.argument("file")
@_serving_options
def dev(file: str, host: str | None, port: int | None) -> None:
    """Serve the agent in FILE in debug mode, again after each change.

    Python and data files beside FILE are watched; Ctrl-C ends it.
    """
    script = Path(file.partition(":")[0])
    if not script.is_file():
        raise ConfigurationError(f"there is no file {script}; name the agent's program")
    folder = script.resolve().parent
    command = [sys.executable, "-m", "ppio_agent.cli", "run", file, "--debug"]
    command += ["--host", host] if host else []
    command += ["--port", str(port)] if port is not None else []
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    while not stop.is_set():
        seen = _snapshot(folder)
        with subprocess.Popen(command) as child:
            ended = False
            while not stop.wait(_LOOK_EVERY) and _snapshot(folder) == seen:
                if not ended and child.poll() is not None:
                    ended = True
                    click.echo("it has ended; waiting for a change", err=True)
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
        if not stop.is_set():
            click.echo("a file has changed, serving again", err=True)


def _snapshot(folder: Path) -> dict[str, Any]:
    """Return what tells whether a file of the folder has changed."""
    found = {}
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        if any(part.startswith((".", "__pycache__")) for part in parts):
            continue
        try:
            about = path.stat()
        except OSError:
            continue  # removed while we look
        found[str(path)] = (about.st_mtime_ns, about.st_size)
    return found
