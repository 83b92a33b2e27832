"""Commands on backbones: vendor, inspect."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kerasmtl.cli.common import as_json, plain_errors
from kerasmtl.models.hub.cache import SUMS, check_content, content_sha256, copy_module, listing
from kerasmtl.models.hub.embedded import EXTRACTORS
from kerasmtl.models.hub.handles import APPLICATIONS, resolve_handle
from kerasmtl.project import FILE
from kerasmtl.utils.files import aside, settle

if TYPE_CHECKING:
    import tomlkit


@dataclass(frozen=True)
class Vendored:
    """A module that was copied: where to, its content hash, how many files and bytes it has, and
    the project.toml that was pinned to it, if any."""

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
        ValueError: the handle is wrong or cannot be had, its content is another, or project.toml
            cannot be read.
    """
    target = Path(os.path.abspath(os.path.expanduser(directory)))
    if os.path.lexists(target):
        raise FileExistsError(
            f"`directory` {target} exists, and is never overwritten. Choose another name."
        )
    settings = _settings(target, project)
    document = _read(settings) if settings else None
    source = _resolve(os.fspath(handle), sha256)
    digest = content_sha256(source)
    with aside(target) as made:
        copy_module(source, made)
        check_content(made, digest, os.fspath(handle))
        files = [path for path in made.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        (made / SUMS).write_bytes(listing(made))
        settle(made, target, good=_refuse)
    if settings and document is not None:
        _pin(settings, document, target, digest)
    return Vendored(target, digest, len(files), size, settings)


def _resolve(handle: str, sha256: str | None) -> Path:
    try:
        return resolve_handle(handle, sha256)
    except ValueError as error:
        if handle not in APPLICATIONS:
            raise
        raise ValueError(
            f"`handle` {handle!r} is a model of keras.applications: code of Keras with weights "
            "that Keras keeps in ~/.keras, and no SavedModel to copy. Expected a handle of a "
            "SavedModel, for example kaggle:owner/model/framework/variation/version. To use "
            f"{handle} offline, copy ~/.keras/models."
        ) from error


def _refuse(there: Path) -> bool:
    raise FileExistsError(
        f"`directory` {there} was made by another process meanwhile, and is never overwritten. "
        "Choose another name."
    )


def _settings(target: Path, project: str | os.PathLike[str] | None) -> Path | None:
    """The project.toml that is to be pinned."""
    if project is not None:
        path = Path(os.path.abspath(os.path.expanduser(project))) / FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"`project` {path.parent} has no {FILE}. Expected a generated project's folder. "
                "Leave it out to copy the module without pinning it."
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
        raise ValueError(f"`{settings}` is no TOML. Received: {error}") from None
    if not isinstance(document.get("model", {}), dict):
        raise ValueError(
            f"`{settings}` has a wrong setting. Expected a section [model]. Received: "
            f"model = {document['model']!r}"
        )
    return document


def _pin(settings: Path, document: tomlkit.TOMLDocument, target: Path, sha256: str) -> None:
    import tomlkit

    path = Path(os.path.relpath(target, settings.parent)).as_posix()
    if "model" not in document:
        document["model"] = tomlkit.table()
    model = document["model"]
    rest = _cut_comments(model)
    # A folder called like an embedded module would not be looked for.
    model["backbone"] = f"./{path}" if path in EXTRACTORS else path
    model["backbone_sha256"] = sha256
    if rest:
        model.value.body.extend(rest)
    text = tomlkit.dumps(document)
    if b"\r\n" in settings.read_bytes():  # new lines end as the others do
        text = text.replace("\r\n", "\n").replace("\n", "\r\n")
    _replace(settings.resolve(), text.encode("utf-8"))


def _cut_comments(model: Any) -> list[Any]:
    """Take off the lines behind a section's last setting: they belong to the next section."""
    body = getattr(getattr(model, "value", None), "body", [])
    last = max((i for i, (key, _) in enumerate(body) if key is not None), default=len(body))
    rest = body[last + 1 :]
    del body[last + 1 :]
    return rest


def _replace(path: Path, content: bytes) -> None:
    descriptor, made = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
        os.chmod(made, path.stat().st_mode & 0o777)
        os.replace(made, path)
    finally:
        if os.path.exists(made):
            os.unlink(made)


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
    from kerasmtl.models.inspection import summary as look

    found = look(handle)
    if json_:
        click.echo(json.dumps(found.to_dict(), indent=2))
    else:
        from rich.console import Console

        Console().print(found.table())
