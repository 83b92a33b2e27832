"""Commands on backbones: `kerasmtl vendor` and `kerasmtl inspect`."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kerasmtl.cli.common import as_json, plain_errors
from kerasmtl.models.hub.cache import SUMS, check_content, content_sha256, copy_module, listing
from kerasmtl.models.hub.embedded import EXTRACTORS
from kerasmtl.models.hub.handles import APPLICATIONS, resolve_handle
from kerasmtl.project import FILE
from kerasmtl.utils.files import atomic_file, atomic_folder

if TYPE_CHECKING:
    import tomlkit


@dataclass(frozen=True)
class Vendored:
    """A module that was copied: its folder, content hash, number of files and size in bytes.

    `project` is the project.toml that was pinned to it, if any.
    """

    folder: Path
    sha256: str
    files: int
    size: int
    project: Path | None = None


def vendor(
    handle: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    project: str | os.PathLike[str] | None = None,
    sha256: str | None = None,
) -> Vendored:
    """Copy a module into a folder of your own, with a SHA256SUMS, and pin the project to it.

    Args:
        handle: what `resolve_handle` takes; no keras.applications name.
        directory: the folder to make.
        project: the folder of the project.toml to pin; by default it is looked for above
            `directory`, up to the working folder. Its comments and layout are kept.
        sha256: what the module's content hash must be, if it is known.

    Raises:
        FileExistsError: `directory` exists; nothing is changed.
        FileNotFoundError: `project` has no project.toml.
        ValueError: the handle is wrong or cannot be fetched, its content is another, or
            project.toml cannot be read.
    """
    target = Path(os.path.abspath(os.path.expanduser(directory)))
    if os.path.lexists(target):
        raise FileExistsError(f"`directory` must be a new folder, got {target}, which exists")
    if os.fspath(handle) in APPLICATIONS and not Path(handle).exists():
        raise ValueError(
            f"`handle` must be of a SavedModel, got {handle!r}, a model of keras.applications: to "
            "use it offline, copy ~/.keras/models"
        )
    settings = _settings(target, project)
    document = _read(settings) if settings else None
    source = resolve_handle(handle, sha256)
    digest = content_sha256(source)
    with atomic_folder(target) as made:
        copy_module(source, made)
        check_content(made, digest, os.fspath(handle))
        sizes = [path.stat().st_size for path in made.rglob("*") if path.is_file()]
        (made / SUMS).write_bytes(listing(made))
    if settings and document is not None:
        _pin(settings, document, target, digest)
    return Vendored(target, digest, len(sizes), sum(sizes), settings)


def _settings(target: Path, project: str | os.PathLike[str] | None) -> Path | None:
    """The project.toml that is to be pinned."""
    if project is not None:
        path = Path(os.path.abspath(os.path.expanduser(project))) / FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"`project` must be a folder with a {FILE}, got {path.parent}. Without it the "
                "module is copied, and nothing is pinned."
            )
        return path
    here = Path.cwd()
    inside = [folder for folder in target.parents if folder.is_relative_to(here)]
    return next((folder / FILE for folder in inside if (folder / FILE).is_file()), None)


def _read(settings: Path) -> tomlkit.TOMLDocument:
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    try:
        document = tomlkit.parse(settings.read_bytes().decode("utf-8"))
    except (TOMLKitError, UnicodeDecodeError) as error:
        raise ValueError(f"`{settings}` must be TOML, got: {error}") from None
    if not isinstance(document.get("model", {}), dict):
        raise ValueError(f"`{settings}`: `model` must be a section, got {document['model']!r}")
    return document


def _pin(settings: Path, document: tomlkit.TOMLDocument, target: Path, sha256: str) -> None:
    import tomlkit

    path = Path(os.path.relpath(target, settings.parent)).as_posix()
    if "model" not in document:
        document["model"] = tomlkit.table()
    model = document["model"]
    rest = _cut_comments(model)
    # A folder with the name of an embedded module would not be looked for.
    model["backbone"] = f"./{path}" if path in EXTRACTORS else path
    model["backbone_sha256"] = sha256
    if rest:
        model.value.body.extend(rest)
    text = tomlkit.dumps(document)
    if b"\r\n" in settings.read_bytes():  # new lines end as the others do
        text = text.replace("\r\n", "\n").replace("\n", "\r\n")
    with atomic_file(settings.resolve()) as written:
        written.write_bytes(text.encode("utf-8"))


def _cut_comments(model: Any) -> list[Any]:
    """Take off the lines behind a section's last setting: they belong to the next section."""
    body = getattr(getattr(model, "value", None), "body", [])
    last = max((i for i, (key, _) in enumerate(body) if key is not None), default=len(body))
    rest = body[last + 1 :]
    del body[last + 1 :]
    return rest


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

    \b
    Examples:
      kerasmtl vendor hf:owner/repo backbones/mine
      kerasmtl vendor ~/downloads/module.tar.gz backbones/mine --project street
    """
    done = vendor(handle, directory, project=folder, sha256=sha256)
    if json_:
        click.echo(json.dumps(asdict(done), indent=2, default=str))
        return
    shown = os.path.relpath(done.folder)
    click.echo(f"{shown}: {done.files} files, {done.size / 1e6:.1f} MB\nsha256 {done.sha256}")
    if done.project:
        pinned = os.path.relpath(done.project)
        click.echo(f"{pinned}: [model] backbone and backbone_sha256 are set.")
    else:
        click.echo(f'Use it: HubLayer("{shown}", sha256="{done.sha256}")')


@click.command()
@click.argument("handle")
@as_json
@plain_errors
def inspect(handle: str, json_: bool) -> None:
    """Show a backbone's inputs, outputs and weights.

    HANDLE: tiny, a keras.applications name, a folder, an archive, a URL, kaggle:… or hf:…

    \b
    Examples:
      kerasmtl inspect tiny
      kerasmtl inspect MobileNetV2 --json
    """
    from kerasmtl.models.inspection import summary

    found = summary(handle)
    if json_:
        click.echo(json.dumps(found.to_dict(), indent=2))
    else:
        from rich.console import Console

        Console().print(found.table())
