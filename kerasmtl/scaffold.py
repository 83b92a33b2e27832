"""New projects from templates."""

from __future__ import annotations

import json
import os
import re
import tempfile
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kerasmtl.embedded import DATASETS
from kerasmtl.modules.handles import from_folder

if TYPE_CHECKING:
    from kerasmtl.manifest import Manifest

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Template:
    """A cookiecutter folder: its name, what it is for, what it asks, and if it reads a table."""

    name: str
    folder: Path
    description: str
    questions: dict[str, tuple[str, str]]  # variable → (question, default)
    table: bool = False


def templates() -> dict[str, Template]:
    """The templates that are shipped, by name."""
    found = {}
    for folder in sorted(Path(str(files("kerasmtl.templates"))).iterdir()):
        if not (folder / "cookiecutter.json").is_file():
            continue
        context = json.loads((folder / "cookiecutter.json").read_text(encoding="utf-8"))
        prompts = context["__prompts__"]
        questions = {
            key: (prompts[key], default)
            for key, default in context.items()
            if not key.startswith("_") and key != "project_name"
        }
        found[folder.name] = Template(
            folder.name, folder, context["_description"], questions, bool(context.get("_table"))
        )
    return found


def new_project(template: str, target: str | os.PathLike[str], answers: dict[str, Any]) -> Path:
    """Make a project folder from a template; it appears whole or not at all.

    Args:
        template: a name among `templates()`.
        target: the folder to make; its last part is the project's name.
        answers: by variable of the template; what is left out gets its default. `labels` and
            `backbone` may be paths from the working folder. The tasks are `_tasks`, or read from
            the labels, whose column of pictures is `_image_column`.

    Raises:
        FileExistsError: the folder exists; nothing is changed.
        FileNotFoundError: there is no such labels file.
        ValueError: unknown template, a name that is no project name, or a labels file without
            any column of 0, 1 and missing.
    """
    # Imported here: listing templates must stay quick.
    from cookiecutter.main import cookiecutter

    known, target = check_target(template, target)
    context = {**answers, **_checked(answers, known.table), "project_name": target.name}
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".new-") as aside:
        made = cookiecutter(
            str(known.folder),
            no_input=True,
            extra_context=context,
            output_dir=aside,
            default_config=True,
        )
        os.rename(made, target)
    return target


def check_target(template: str, target: str | os.PathLike[str]) -> tuple[Template, Path]:
    """The template and the absolute folder, or the errors that `new_project` raises for them."""
    known = templates()
    if template not in known:
        raise ValueError(f"`template` {template!r} is unknown. Expected one of {sorted(known)}.")
    target = Path(os.path.abspath(target))
    if not NAME.fullmatch(target.name):
        raise ValueError(
            f"`target` {target.name!r} is no project name. Expected letters, digits, '_', '-' "
            "and '.', beginning with a letter or digit."
        )
    if target.exists():
        raise FileExistsError(
            f"`target` {target} exists, and is never overwritten. Choose another name."
        )
    return known[template], target


def _checked(answers: dict[str, Any], table: bool) -> dict[str, Any]:
    """Paths made absolute, and the tasks that the labels file holds."""
    checked: dict[str, Any] = {}
    labels = answers.get("labels")
    if labels is not None and labels not in DATASETS:
        checked["labels"] = os.path.abspath(os.path.expanduser(labels))
        read = _read_table if table else _read_manifest
        manifest = read(checked["labels"], answers)
        checked["_tasks"] = [task.name for task in manifest.tasks]
    backbone = answers.get("backbone")
    if table and backbone is not None:
        raise ValueError(
            "`backbone` is for templates of pictures. Expected none: the layers of a table's model "
            f"are in project.toml. Received: {backbone!r}"
        )
    if not table and answers.get("_ignore"):
        raise ValueError(
            "`ignore` is for templates of tables. Expected none: of a CSV of pictures, columns "
            f"that are no tasks are left out. Received: {answers['_ignore']}"
        )
    if backbone is not None:
        checked["backbone"] = from_folder(backbone, Path.cwd())
    return checked


def _read_manifest(labels: str, answers: dict[str, Any]) -> Manifest:
    # pandas, not TensorFlow: a second at most.
    from kerasmtl.manifest import Manifest

    # Only the columns matter here; the project decides on pictures outside of the folder.
    return Manifest.from_csv(
        labels,
        tasks=answers.get("_tasks"),
        image_column=answers.get("_image_column", "image"),
        allow_outside=True,
    )


def _read_table(labels: str, answers: dict[str, Any]) -> Manifest:
    from kerasmtl.table import Table

    return Table.load(labels, tasks=answers.get("_tasks"), ignore=answers.get("_ignore", ()))
