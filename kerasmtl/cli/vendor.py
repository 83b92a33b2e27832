"""Commands on backbones: `kerasmtl vendor` and `kerasmtl inspect`.

To vendor a module is to keep its files beside the project, with the hash of their content in
project.toml: a training next year then starts from the same numbers, whatever becomes of the
publisher's address, and a file that was exchanged is refused. `vendor` is a function for Python as
well; the command of this name is `vendor_module`.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kerasmtl.cli.common import as_json, plain_errors
from kerasmtl.models.hub.cache import SUMS, check_content, content_sha256, copy_module, listing
from kerasmtl.models.hub.embedded import EXTRACTORS
from kerasmtl.models.hub.handles import APPLICATIONS, is_published, resolve_handle
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

    In project.toml `backbone` and `backbone_sha256` are set, and for a module of TF-Hub or Kaggle
    also `input_range = [0, 1]`, the convention of their image modules, unless it is there.

    Args:
        handle: what `resolve_handle` takes; not a keras.applications name.
        directory: the folder to make.
        project: the folder of the project.toml to pin; by default it is looked for above
            `directory`, up to the working folder. Its comments and layout are kept.
        sha256: what the module's content hash must be, if it is known.

    Returns:
        The copy: its folder, hash and size, and the project.toml that was pinned, if any.

    Raises:
        FileExistsError: `directory` exists; nothing is changed.
        FileNotFoundError: `project` has no project.toml.
        ValueError: the handle is wrong or cannot be fetched, its content is another, or
            project.toml cannot be read.
    """
    # All that can be refused is refused before the download, which may be of gigabytes.
    target = Path(os.path.abspath(os.path.expanduser(directory)))
    if os.path.lexists(target):
        raise FileExistsError(f"`directory` must be a new folder, got {target}, which exists")
    handle = os.fspath(handle)
    if handle in APPLICATIONS and not Path(handle).exists():
        raise ValueError(
            f"`handle` must be of a SavedModel, got {handle!r}, a model of keras.applications: to "
            "use it offline, copy ~/.keras/models"
        )
    settings = _settings(target, project)
    document = _read(settings) if settings else None
    source = resolve_handle(handle, sha256)
    digest = content_sha256(source)
    # The copy must have the hash of the source: the cache may be shared, and change meanwhile.
    with atomic_folder(target) as made:
        copy_module(source, made)
        check_content(made, digest, handle)
        sizes = [path.stat().st_size for path in made.rglob("*") if path.is_file()]
        # Last, so that the sizes are those of the module, and the listing does not list itself.
        (made / SUMS).write_bytes(listing(made))
    if settings and document is not None:
        # Relative, so that the project can be moved; with "./" where the path would be read as the
        # name of an embedded module.
        path = Path(os.path.relpath(target, settings.parent)).as_posix()
        _pin(document, handle, f"./{path}" if path in EXTRACTORS else path, digest)
        with atomic_file(settings.resolve()) as written:
            written.write_bytes(document.as_string().encode())
    return Vendored(target, digest, len(sizes), sum(sizes), settings)


def _settings(target: Path, project: str | os.PathLike[str] | None) -> Path | None:
    """Find the project.toml that is to be pinned.

    Args:
        target: the folder to make.
        project: the folder of a project, as the user gave it.

    Returns:
        The file; None if no project is named and there is none above `target`. Folders above the
        working folder are left alone: they are not what the user is looking at.

    Raises:
        FileNotFoundError: `project` has no project.toml.
    """
    if project is None:
        above = [path / FILE for path in target.parents if path.is_relative_to(Path.cwd())]
        return next((path for path in above if path.is_file()), None)
    path = Path(os.path.abspath(os.path.expanduser(project))) / FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"`project` must be a folder with a {FILE}, got {path.parent}. Without it the module "
            "is copied, and nothing is pinned."
        )
    return path


def _read(settings: Path) -> tomlkit.TOMLDocument:
    """Parse project.toml with its comments and layout; adds [model] if it is absent.

    tomllib would do for the values, but only tomlkit can write a file back as its author wrote it.

    Raises:
        ValueError: it is not TOML, or `model` is a single value.
    """
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    try:
        document = tomlkit.parse(settings.read_bytes().decode())
    except (TOMLKitError, UnicodeDecodeError) as error:
        raise ValueError(f"`{settings}` must be TOML, got: {error}") from None
    if not isinstance(document.setdefault("model", tomlkit.table()), dict):
        raise ValueError(f"`{settings}`: `model` must be a section, got {document['model']!r}")
    return document


def _pin(document: tomlkit.TOMLDocument, handle: str, path: str, sha256: str) -> None:
    """Set backbone and hash, and the pixel range where the publisher tells it by convention.

    Args:
        document: of project.toml, which is changed.
        handle: of the module, as the user gave it.
        path: of its copy, from the folder of project.toml.
        sha256: of its content.
    """
    model = document["model"]
    # The lines behind a section's last setting are comments on the next section: they stay last.
    body = getattr(getattr(model, "value", None), "body", [])
    last = max((i for i, (key, _) in enumerate(body) if key is not None), default=len(body))
    rest = body[last + 1 :]
    del body[last + 1 :]
    if model.get("backbone") != handle:
        model.pop("input_range", None)  # of another backbone
    model["backbone"] = path
    model["backbone_sha256"] = sha256
    if is_published(handle):
        model.setdefault("input_range", [0, 1])
    body.extend(rest)


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
