"""Deploying to the local platform, and the templates that it holds."""

from __future__ import annotations

from pathlib import Path

import click

from ppio_agent.exceptions import TemplateManifestError

from .output import json_option, print_json, print_table
from .shelf import find_shelf

__all__ = ["deploy", "templates"]

_INVALID = 2  # the status of the same error without --json


@click.command()
@click.argument(
    "folder",
    type=click.Path(exists=True, path_type=Path),
    required=False,
    metavar="[DIR]",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="The manifest of the agent, in place of DIR.",
)
@click.option(
    "--install", is_flag=True, help="Install its requirements.txt for it alone."
)
@click.option("--dry-run", is_flag=True, help="Check only; change nothing.")
@json_option
def deploy(
    folder: Path | None,
    config: Path | None,
    *,
    install: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Deploy the agent in DIR, or in this folder.

    What is deployed, and as what, says its .ppio-agent.yaml.
    """
    if folder and config:
        raise click.UsageError(
            "give DIR or --config: what is deployed is the folder of the manifest"
        )
    path = config or folder or Path()
    try:
        _deploy(path, install=install, dry_run=dry_run, as_json=as_json)
    except TemplateManifestError as error:
        if not as_json:
            raise
        names = ("path", "line", "message")
        problems = [dict(zip(names, each, strict=True)) for each in error.problems]
        print_json({"problems": problems})
        return _INVALID
    return 0


def _deploy(path: Path, *, install: bool, dry_run: bool, as_json: bool) -> None:
    from ppio_agent.sandbox.templates import packing

    package = packing.check(path)
    if dry_run and as_json:
        about = {"name": package.name, "version": package.version}
        print_json({**about, "files": len(package.chosen), "valid": True})
        return
    if dry_run:
        files = len(package.chosen)
        click.echo(f"{package.name} {package.version}: {files} files, valid")
        return
    with find_shelf(install=install) as shelf:
        record = shelf.deploy(package, install=install)
    packing.write_status(package.source.manifest, record)
    if as_json:
        print_json(record)
        return
    click.echo(f"deployed {package.name} {package.version} as {record['templateID']}")
    click.echo(f'next: ppio-agent invoke {package.name} "a question"')


@click.group()
def templates() -> None:
    """Templates that the platform holds."""


@templates.command("list")
@json_option
def list_templates(*, as_json: bool) -> None:
    """List them."""
    with find_shelf() as shelf:
        found = shelf.every()
    if as_json:
        print_json(found)
        return
    rows = [{**item, "name": (item.get("names") or [""])[0]} for item in found]
    print_table(["templateID", "name", "version", "tags", "description"], rows)


@templates.command("get")
@click.argument("ref")
def get_template(ref: str) -> None:
    """Show the template REF (id, name or name:version) as JSON."""
    with find_shelf() as shelf:
        print_json(shelf.get(ref))


@templates.command("delete")
@click.argument("ref")
def delete_template(ref: str) -> None:
    """Delete the template REF with all its versions.

    Sandboxes made from it stay.
    """
    name, colon, _ = ref.partition(":")
    if colon:
        raise click.UsageError(
            f"{ref} is one version, and templates are deleted with all of them; to do"
            f" that: ppio-agent templates delete {name}"
        )
    with find_shelf() as shelf:
        found = shelf.get(ref)
        shelf.delete(str(found["templateID"]))
    click.echo(f"deleted {found['templateID']}")
