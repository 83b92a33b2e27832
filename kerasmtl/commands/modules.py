"""Commands on backbones: vendor, inspect."""

from __future__ import annotations

import json
import os

import click

from kerasmtl.commands.shared import as_json, plain_errors


@click.command("vendor")
@click.argument("handle")
@click.argument("directory", type=click.Path(file_okay=False))
@click.option(
    "--project",
    "folder",
    type=click.Path(file_okay=False),
    help="The project to pin.  [default: the one above DIRECTORY]",
)
@click.option("--sha256", help="What the module's content hash must be.")
@as_json
@plain_errors
def vendor_module(
    handle: str, directory: str, folder: str | None, sha256: str | None, json_: bool
) -> None:
    """Copy the module HANDLE into DIRECTORY, and pin the project to its content.

    HANDLE: tiny, a folder, an archive, a URL, kaggle:owner/model/framework/variation/version,
    hf:owner/repo@revision, or gs://…
    """
    from kerasmtl.vendor import vendor

    done = vendor(handle, directory, project=folder, sha256=sha256)
    if json_:
        from dataclasses import asdict

        click.echo(json.dumps(asdict(done), indent=2, default=str))
        return
    shown = os.path.relpath(done.folder)
    click.echo(f"{shown}: {done.files} files, {done.size / 1e6:.1f} MB\nsha256 {done.sha256}")
    if done.project:
        click.echo(
            f"{os.path.relpath(done.project)}: [model] backbone and backbone_sha256 are set."
        )
    else:
        click.echo(f'Use it: HubLayer("{shown}", sha256="{done.sha256}")')


@click.command()
@click.argument("handle")
@as_json
@plain_errors
def inspect(handle: str, json_: bool) -> None:
    """Show what a backbone takes, gives and holds.

    HANDLE is tiny, a keras.applications name, a folder, an archive, a URL, kaggle:… or hf:…
    """
    from kerasmtl.backbones.inspection import inspect as look

    found = look(handle)
    if json_:
        click.echo(json.dumps(found.to_dict(), indent=2))
    else:
        from rich.console import Console

        Console().print(found.table())
