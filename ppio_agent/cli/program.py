"""The command tree, and the one place where an error becomes a sentence and a status.

Exit status: 0 done, 1 the agent failed, 2 what was asked is invalid or not allowed, 3 a
platform is already running, 4 not found, 5 the platform failed, refused the key, or did
not answer in time, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

from ppio_agent import __version__
from ppio_agent.exceptions import (
    AuthenticationError,
    ConfigurationError,
    ConflictError,
    InvocationError,
    NetworkError,
    NotFoundError,
    PermissionDeniedError,
    PlatformAlreadyRunningError,
    PPIOAgentError,
    SandboxCreationError,
    SerializationError,
    TemplateManifestError,
    ValidationError,
)

from .actors import actors
from .agent import dev, init, run
from .doctor import doctor
from .invoke import invoke
from .logs import logs
from .output import drop_output
from .sandboxes import sandboxes
from .templates import deploy, templates
from .up import up

__all__ = ["exit_status", "main", "sandbox_main"]

# The first that fits decides.
_STATUS: tuple[tuple[type[PPIOAgentError], int], ...] = (
    (PlatformAlreadyRunningError, 3),
    (NotFoundError, 4),
    (TemplateManifestError, 2),
    (SerializationError, 2),
    (ValidationError, 2),
    (ConfigurationError, 2),
    (ConflictError, 2),
    (PermissionDeniedError, 2),
    (AuthenticationError, 5),
    (NetworkError, 5),
    (InvocationError, 1),
    (SandboxCreationError, 1),
)


def exit_status(error: PPIOAgentError) -> int:
    """Return the exit status that an error means; 5 for whatever is not listed."""
    return next((status for cls, status in _STATUS if isinstance(error, cls)), 5)


class _Program(click.Group):
    """Commands of which one is run."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run it; click would end with 1, an agent's failure, if its reader leaves."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            drop_output()
            return 0


@click.group(
    cls=_Program,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
)
@click.version_option(__version__, prog_name="ppio-agent")
def ppio_agent() -> None:
    """Write, serve, deploy and call AI agents."""


for _command in (
    init, run, dev, up, deploy, templates, sandboxes, logs, invoke, doctor, actors,
):  # fmt: skip
    ppio_agent.add_command(_command)


@click.group(
    cls=_Program,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
)
@click.version_option(__version__, prog_name="ppio-sandbox-cli")
def ppio_sandbox_cli() -> None:
    """The commands of ppio-agent under the names of the PPIO sandbox CLI."""


@ppio_sandbox_cli.group()
def agent() -> None:
    """Deploy, call and list agents."""


agent.add_command(deploy)
agent.add_command(invoke)
agent.add_command(templates.commands["list"])


def main(argv: Sequence[str] | None = None) -> None:
    """Run `ppio-agent`; never returns."""
    sys.exit(_run(ppio_agent, argv))


def sandbox_main(argv: Sequence[str] | None = None) -> None:
    """Run `ppio-sandbox-cli`; never returns."""
    sys.exit(_run(ppio_sandbox_cli, argv))


def _run(group: click.Group, argv: Sequence[str] | None) -> int:
    try:
        status = group.main(args=argv, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return 2
    except (click.Abort, KeyboardInterrupt):
        return 130
    except (PPIOAgentError, OSError) as error:
        return _explain(error)
    return int(status or 0)


def _explain(error: PPIOAgentError | OSError) -> int:
    """Print what went wrong, in one sentence where one is enough."""
    if not isinstance(error, PPIOAgentError):
        what = f"{error.filename}: " if error.filename else ""
        click.echo(f"error: {what}{error.strerror or error}", err=True)
        return 5
    if isinstance(error, TemplateManifestError) and error.problems:
        click.echo("error: the agent cannot be deployed:", err=True)
        for path, line, message in error.problems:
            place = f"{path} (line {line})" if line else path
            click.echo(f"  {place}: {message}", err=True)
        return exit_status(error)
    click.echo(f"error: {error}", err=True)
    tail = getattr(error, "log_tail", "")
    if tail:
        click.echo(f"last output of the agent:\n{tail.rstrip()}", err=True)
    return exit_status(error)
