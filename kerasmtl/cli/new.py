"""`kerasmtl new` and `kerasmtl templates`: projects from templates.

A template is a cookiecutter folder of the package `kerasmtl.templates`. `new` asks what its
cookiecutter.json lists, or nothing with --labels; `new_project` does the rest, for Python as well.
What training would refuse is refused here (`_check_files`, `_check_tasks`), and what can be found
out is written into the project: the tasks, the paths as seen from the project, a backbone that is
on this machine, and the kerasmtl that made it.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import distribution
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kerasmtl._version import __version__
from kerasmtl.cli.common import plain_errors, read_manifest, read_task, reading_options
from kerasmtl.models.hub.embedded import DATASETS, TOY
from kerasmtl.models.hub.handles import check_backbone, from_folder, trained_backbones
from kerasmtl.tasks import Task
from kerasmtl.utils.text import SHOWN, columns_text, shortened
from kerasmtl.utils.validation import check_choice

if TYPE_CHECKING:
    from kerasmtl.data.manifest import Manifest

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
# Answers that say how labels are read: what `read_manifest` calls them.
_READ = {
    **{f"_{name}": name for name in ("tasks", "split_column", "group_column", "id_column")},
    **{"_column": "image_column", "_ignore": "ignore", "_allow_outside": "allow_outside"},
}
_LOOKED_AT = 100  # images that are decoded, and rows that are split, before a project is made


@dataclass(frozen=True)
class Template:
    """A cookiecutter folder, and its cookiecutter.json: variables, questions and defaults."""

    folder: Path
    context: dict[str, Any]

    @property
    def questions(self) -> dict[str, tuple[str, str]]:
        """The question and its default, by variable that is asked for."""
        prompts = self.context["__prompts__"]
        asked = [name for name in prompts if name != "project_name"]
        return {name: (prompts[name], self.context[name]) for name in asked}


@click.command()
@click.argument("template")
@click.argument("folder", type=click.Path())
@click.option(
    "--labels",
    type=click.Path(),
    help="CSV with an image column and 0/1/? columns; or a table: CSV, Parquet or NPZ.",
)
@click.option(
    "--backbone",
    help="tiny, a keras.applications name, a folder, archive or URL, kaggle:… or hf:…  [default: "
    "for images of your own a trained one that is on this machine, else tiny]",
)
@reading_options
@click.option(
    "--on-invalid-image",
    type=click.Choice(["error", "skip"]),
    help="How training treats missing and broken images.  [default: error]",
)
@click.option("--no-input", is_flag=True, help="Ask nothing and take the defaults.")
@plain_errors
def new(
    template: str,
    folder: str,
    labels: str | None,
    backbone: str | None,
    no_input: bool,
    tasks: tuple[str, ...],
    image_column: str | None,
    **settings: Any,
) -> None:
    """Make a project FOLDER from TEMPLATE.

    With --labels nothing is asked, and each 0/1/? column of the file becomes a task. What training
    would refuse is refused here.

    \b
    Examples:
      kerasmtl new multitask-image demo --no-input
      kerasmtl new multitask-image street --labels photos/labels.csv --backbone MobileNetV2
      kerasmtl new multitask-tabular pumps --labels pumps.csv --task leak --task hours:regression
    """
    known, _ = check_target(template, folder)
    given = {
        "labels": labels,
        "backbone": backbone,
        "_tasks": [read_task(word) for word in tasks],
        "_column": image_column,
        **{f"_{name}": value for name, value in settings.items()},
    }
    answers = {name: list(v) if isinstance(v, tuple) else v for name, v in given.items() if v}
    if not no_input and labels is None:
        for name, (question, default) in known.questions.items():
            # The question before was for the labels: for images of one's own, a trained backbone is
            # offered.
            if name == "backbone" and answers["labels"] not in DATASETS:
                default = next((handle for handle, _ in trained_backbones()), default)
            if name not in answers:
                answers[name] = click.prompt(question, default=default)
    target = new_project(template, folder, answers, tell=click.echo)
    click.echo(f"Made {target}. Next:\n\n  cd {os.path.relpath(target)}\n  python train.py")


@click.command("templates")
@plain_errors
def list_templates() -> None:
    """List the templates.

    \b
    Examples:
      kerasmtl templates
    """
    for name, template in templates().items():
        click.echo(f"{name}  {template.context['_description']}")


def templates() -> dict[str, Template]:
    """Return the templates of this package, by name."""
    folders = sorted(Path(str(files("kerasmtl.templates"))).glob("*/cookiecutter.json"))
    read = {file.parent: json.loads(file.read_text(encoding="utf-8")) for file in folders}
    return {folder.name: Template(folder, context) for folder, context in read.items()}


def new_project(
    template: str,
    target: str | os.PathLike[str],
    answers: dict[str, Any],
    tell: Callable[[str], None] = lambda line: None,
) -> Path:
    """Make a project folder from a template; it appears complete or not at all.

    Args:
        template: a name of `templates()`.
        target: the folder to make; its last part is the project's name.
        answers: by variable of the template (see its cookiecutter.json); others have defaults.
            `labels` and `backbone` may be paths from the working folder. `_tasks` are read from the
            labels if they are not given. Without `backbone`, a user's own images get a trained one
            that is on this machine, or else "tiny".
        tell: called with lines that say what the columns of the labels are taken for, and which
            backbone was chosen.

    Returns:
        The folder.

    Raises:
        FileExistsError: the folder exists; nothing is changed.
        FileNotFoundError: the labels file does not exist.
        ValueError: an unknown template or backbone, an invalid name or setting, or what training
            would refuse: labels without a column of 0 and 1, a task with one class, missing images.
    """
    from cookiecutter.main import cookiecutter  # slow: `templates` and `--help` do not need it

    from kerasmtl.project import Project

    known, target = check_target(template, target)
    context = {**_context(answers, known, target, tell), "project_name": target.name}
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, since a rename is atomic on one file system alone.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".new-") as aside:
        # `default_config`: the user's ~/.cookiecutterrc must not change what a template becomes.
        made = cookiecutter(
            str(known.folder),
            no_input=True,
            extra_context=context,
            output_dir=aside,
            default_config=True,
        )
        try:
            # Whatever the answers were, the settings they make are valid, or there is no project.
            Project.load(made)
        except ValueError as error:
            raise ValueError(str(error).replace(str(made), str(target))) from None
        os.rename(made, target)
    return target


def check_target(template: str, target: str | os.PathLike[str]) -> tuple[Template, Path]:
    """Check what `new_project` is to make, before any question is asked.

    Args:
        template: a name of `templates()`.
        target: the folder to make, absolute or from the working folder.

    Returns:
        The template, and the absolute folder.

    Raises:
        FileExistsError: the folder exists.
        ValueError: an unknown template, or a name that project.toml and URLs could not have.
    """
    known = templates()
    check_choice("template", template, known)
    target = Path(os.path.abspath(target))
    if not NAME.fullmatch(target.name):
        raise ValueError(
            "`target` must have letters, digits, '_', '-' and '.', beginning with a letter or "
            f"digit, got {target.name!r}"
        )
    if target.exists():
        raise FileExistsError(f"`target` must be new, got {target}, which is never overwritten")
    return known[template], target


def _context(
    answers: dict[str, Any], template: Template, target: Path, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Return the answers for cookiecutter.

    Paths are written as in project.toml, and variables with a "_" as TOML: cookiecutter does not
    render those, so that "{{" in the name of a column is not taken for Jinja2's.

    Args:
        answers: of `new_project`.
        template: whose variables they are.
        target: the absolute folder of the project.
        tell: called with lines for the user.

    Raises:
        ValueError: an answer that the template does not ask for, or what `new_project` says.
    """
    if wrong := sorted(set(answers) - set(template.context)):
        name = _READ.get(wrong[0], wrong[0])
        raise ValueError(f"`{name}` must be left out for the template {template.folder.name!r}")
    given = dict(answers)
    labels = given.pop("labels", None)
    own = labels is not None and labels not in DATASETS
    if own:
        labels = os.path.abspath(os.path.expanduser(labels))
        options = {_READ[name]: value for name, value in given.items() if name in _READ}
        manifest = read_manifest(labels, template.context["_input"], options)
        tell(columns_text(manifest))
        _check_files(manifest, given.get("_on_invalid_image", "error"))
        _check_tasks(manifest)
        # Written out though they could be inferred again: a column that is added later does not
        # become a task.
        given.setdefault("_tasks", [task.name for task in manifest.tasks])
    if "backbone" in template.context:
        handle = _backbone(given.pop("backbone", None), own, tell)
        given["_backbone"] = handle and _from_project(handle, target)
        given["_toy"] = TOY if own and handle == "tiny" else None
    if labels is not None:
        given["_labels"] = _from_project(labels, target) if own else labels
    given["_requirement"] = _requirement()
    plain = {name for name in given if not name.startswith("_")} | {"_toy", "_requirement"}
    found = {name: value for name, value in given.items() if value is not None}
    return {name: v if name in plain else toml_value(v) for name, v in found.items()}


def _from_project(path: str, target: Path) -> str:
    """Return a path relative to the project if it is beside or in it, so that both can be moved."""
    if not os.path.isabs(path) or not Path(path).is_relative_to(target.parent):
        return path
    return Path(os.path.relpath(path, target)).as_posix()


def _requirement() -> str:
    """Return what installs this very kerasmtl: from an index, or from where it was installed.

    pip notes the origin of what was not installed from an index in direct_url.json (PEP 610).
    """
    origin = distribution("kerasmtl").read_text("direct_url.json")
    found = json.loads(origin) if origin else {}
    if not found:
        return f"kerasmtl~={'.'.join(__version__.split('.')[:2])}"
    vcs = found.get("vcs_info", {})
    url = f"{vcs['vcs']}+{found['url']}@{vcs['commit_id']}" if vcs else found["url"]
    return f"kerasmtl @ {url}"


def _backbone(named: str | None, own: bool, tell: Callable[[str], None]) -> str | None:
    """Return the backbone for project.toml: the named one, or for own images one at hand.

    Args:
        named: the user's choice, if any; a path starts from the working folder.
        own: whether the images are the user's own.
        tell: called with what was chosen.

    Returns:
        The handle; None leaves the template's default.

    Raises:
        ValueError: an unknown backbone.
    """
    if named is not None:
        handle = from_folder(named, Path.cwd())
        check_backbone(handle)
    elif own:
        handle, place = next(iter(trained_backbones()), ("tiny", None))
        if place:
            tell(f"backbone: {handle}, found in {place}")
    else:
        return None
    if handle == "tiny" and own:
        tell(f"backbone: {TOY}")
    return handle


def _check_tasks(manifest: Manifest) -> None:
    """Refuse tasks that cannot be learned, and rows too few to be split.

    Args:
        manifest: of the user's labels.

    Raises:
        ValueError: names such tasks, and the options that leave them out.
    """
    if faults := manifest.class_faults():
        said = shortened([f"{name!r}: {why}" for name, why in faults.items()], 3)
        good = [task.name for task in manifest.tasks if task.name not in faults]
        # A call that lists some would drop the others.
        named = " ".join(f"--task {name}" for name in good) if len(good) <= SHOWN else "--task …"
        remedy = f"Name the others: {named}" if good else "No task is left."
        raise ValueError(f"`tasks` must be columns with two answers or more, got {said}. {remedy}")
    if len(manifest) <= _LOOKED_AT:  # of more rows no split stays empty
        with warnings.catch_warnings(action="ignore"):  # training says it again
            manifest.split()


def _check_files(manifest: Manifest, policy: str) -> None:
    """Refuse files that training would refuse: missing ones, and broken ones among the first 100.

    `kerasmtl check` looks at all of them.

    Args:
        manifest: of the user's labels.
        policy: "error" or "skip", what training does with such rows.

    Raises:
        ValueError: such files with "error", or nothing but such files.
    """
    absent = manifest.missing_files()
    gone = {fault.line for fault in absent}
    rows = [row for row, line in enumerate(manifest.lines) if line not in gone][:_LOOKED_AT]
    broken = manifest.take(rows).faults()
    if len(broken) == len(rows) or (policy == "error" and (absent or broken)):
        faults = [*absent, *broken]
        shown = shortened([f"line {f.line}: {f.name!r} is {f.reason}" for f in faults], 3)
        skip = ", or pass --on-invalid-image skip" if len(broken) < len(rows) else ""
        raise ValueError(
            f"`labels` {manifest.source} must name {manifest.input.noun}, got {shown}. Correct "
            f"the file{skip}."
        )


def toml_value(value: Any) -> str:
    """Write a text, number, list or task as TOML, in one line.

    Example:
        >>> toml_value(["a", Task("b", "regression")])
        '["a", {name = "b", kind = "regression"}]'
    """
    if isinstance(value, Task):
        default = asdict(Task(value.name))
        other = {key: v for key in default if (v := getattr(value, key)) != default[key]}
        if not other:
            return toml_value(value.name)
        pairs = {"name": value.name, **other}.items()
        return "{" + ", ".join(f"{key} = {toml_value(v)}" for key, v in pairs) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    # JSON's texts and numbers are TOML's, except for this one character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
