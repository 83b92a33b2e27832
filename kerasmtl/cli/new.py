"""New projects from templates."""

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

from kerasmtl._version import __version__
from kerasmtl.models.hub.embedded import DATASETS, TOY
from kerasmtl.models.hub.handles import check_backbone, from_folder
from kerasmtl.models.hub.local import trained_backbones
from kerasmtl.tasks import Task
from kerasmtl.utils.text import SHOWN, columns_text, listed

if TYPE_CHECKING:
    from kerasmtl.data.manifest import Manifest

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_PLAIN = ("_toy", "_requirement")  # answers that are no values of project.toml
_LOOKED_AT = 100  # images that are decoded, and rows that are split, before a project is made


@dataclass(frozen=True)
class Template:
    """A cookiecutter folder: its name, what it is for, what it asks and takes, its input."""

    name: str
    folder: Path
    description: str
    questions: dict[str, tuple[str, str]]  # variable → (question, default)
    variables: frozenset[str]
    kind: str


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
            folder.name,
            folder,
            context["_description"],
            questions,
            frozenset(context),
            context["_input"],
        )
    return found


def new_project(
    template: str,
    target: str | os.PathLike[str],
    answers: dict[str, Any],
    tell: Callable[[str], None] | None = None,
) -> Path:
    """Make a project folder from a template; it appears whole or not at all.

    Args:
        template: a name among `templates()`.
        target: the folder to make; its last part is the project's name.
        answers: by variable of the template; what is left out gets its default. `labels` and
            `backbone` may be paths from the working folder. The tasks are `_tasks`, or read from
            the labels; their columns are `_column` of images, `_split_column`, `_group_column`, and
            of a table `_id_column` and `_ignore`. `_allow_outside` and `_on_invalid_image` are
            settings of images. Without `backbone`, images of one's own get a trained one that is
            on this machine already, or else "tiny".
        tell: called with lines that say what the columns of the labels are taken for, and which
            backbone was chosen.

    Raises:
        FileExistsError: the folder exists; nothing is changed.
        FileNotFoundError: there is no such labels file.
        ValueError: unknown template, a name that is no project name, an answer that is no setting,
            or what training would refuse: a labels file without any column of 0, 1 and missing, a
            task with one class, absent images, a backbone that is none.
    """
    # Imported here: listing templates must stay quick.
    from cookiecutter.main import cookiecutter

    from kerasmtl.project import Project

    known, target = check_target(template, target)
    context = {**_settings(answers, known, target, tell), "project_name": target.name}
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".new-") as aside:
        made = cookiecutter(
            str(known.folder),
            no_input=True,
            extra_context=context,
            output_dir=aside,
            default_config=True,
        )
        try:
            Project.load(made)
        except ValueError as error:
            raise ValueError(str(error).replace(str(made), str(target))) from None
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


def _settings(
    answers: dict[str, Any], template: Template, target: Path, tell: Callable[[str], None] | None
) -> dict[str, Any]:
    """The answers for cookiecutter: paths as project.toml has them, tasks found, and what it must
    not render as TOML, under names with a "_", which it takes as they are."""
    wrong = sorted(name.lstrip("_") for name in answers if name not in template.variables)
    if wrong:
        raise ValueError(f"`{wrong[0]}` must not be given for the template {template.name!r}")
    tell = tell or (lambda line: None)
    given = dict(answers)
    labels = given.pop("labels", None)
    own = labels is not None and labels not in DATASETS
    if own:
        labels = os.path.abspath(os.path.expanduser(labels))
        manifest = _read_manifest(labels, template.kind, given)
        tell(columns_text(manifest))
        _check_tasks(manifest)
        named = {task.name: task for task in map(_as_task, given.get("_tasks") or ())}
        given["_tasks"] = [named.get(task.name, task.name) for task in manifest.tasks]
    if "backbone" in template.variables:
        handle = _backbone(given.pop("backbone", None), own, tell)
        given["_backbone"] = handle and _from_project(handle, target)
        given["_toy"] = TOY if own and handle == "tiny" else None
    if labels is not None:
        given["_labels"] = _from_project(labels, target) if own else labels
    given["_requirement"] = _requirement()
    return {
        name: toml_value(value) if name.startswith("_") and name not in _PLAIN else value
        for name, value in given.items()
        if value is not None
    }


def _from_project(path: str, target: Path) -> str:
    """A path from the project's folder, if it lies beside or in it: they can then move together."""
    if not os.path.isabs(path) or not Path(path).is_relative_to(target.parent):
        return path
    return Path(os.path.relpath(path, target)).as_posix()


def _requirement() -> str:
    """What installs this very kerasmtl: by name from an index, else from where it came."""
    origin = distribution("kerasmtl").read_text("direct_url.json")
    found = json.loads(origin) if origin else {}
    if not found:
        return f"kerasmtl~={'.'.join(__version__.split('.')[:2])}"
    vcs = found.get("vcs_info", {})
    url = f"{vcs['vcs']}+{found['url']}@{vcs['commit_id']}" if vcs else found["url"]
    return f"kerasmtl @ {url}"


def _backbone(named: str | None, own: bool, tell: Callable[[str], None]) -> str | None:
    """The backbone of project.toml: what was named, or for images of one's own what is at hand."""
    if named is not None:
        handle = from_folder(named, Path.cwd())
        check_backbone(handle)
    elif own:
        found = trained_backbones()
        if found:
            tell(f"backbone: {found[0].handle}, found in {found[0].place}")
        handle = found[0].handle if found else "tiny"
    else:
        return None
    if handle == "tiny" and own:
        tell(f"backbone: {TOY}")
    return handle


def _check_tasks(manifest: Manifest) -> None:
    """Refuse tasks that cannot be learnt: training would score nothing."""
    faults = manifest.class_faults()
    if faults:
        first, why = next(iter(faults.items()))
        more = f"; likewise {listed(list(faults)[1:])}" if len(faults) > 1 else ""
        good = [task.name for task in manifest.tasks if task.name not in faults]
        remedy = "No task is left."
        if good:
            named = " ".join(f"--task {name}" for name in good)
            remedy = f"Name the others: {named if len(good) <= SHOWN else '--task NAME …'}"
        raise ValueError(
            f"`tasks` must be columns with two answers or more, got {first!r}: {why}{more}. "
            f"{remedy}"
        )
    if len(manifest) <= _LOOKED_AT:  # of more rows no part stays empty
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # training says it again
            manifest.split()


def _check_files(manifest: Manifest, policy: str) -> None:
    """Refuse files that training would refuse: the absent ones, and broken ones among the first.

    To decode all of them is what `kerasmtl check` is for.
    """
    absent = manifest.missing_files()
    gone = {fault.line for fault in absent}
    rows = [row for row, line in enumerate(manifest.lines) if line not in gone][:_LOOKED_AT]
    broken = manifest.take(rows).faults()
    if (
        rows
        and len(broken) == len(rows)
        or absent
        and not rows
        or (policy == "error" and (absent or broken))
    ):
        faults = [*absent, *broken]
        shown = "; ".join(f"line {f.line}: {f.name!r} is {f.reason}" for f in faults[:3])
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise ValueError(
            f"`labels` {manifest.source} must name {manifest.input.noun}, got {shown}{more}. Mend "
            "the file" + (", or pass --on-invalid-image skip." if len(broken) < len(rows) else ".")
        )


def toml_value(value: Any) -> str:
    """A text, number, list or task as TOML writes it, in one line."""
    if isinstance(value, Task):
        default = Task(value.name)
        fields = {key: getattr(value, key) for key in asdict(value)}
        other = {key: v for key, v in fields.items() if v != getattr(default, key)}
        if not other:
            return toml_value(value.name)
        pairs = {"name": value.name, **other}.items()
        return "{" + ", ".join(f"{key} = {toml_value(v)}" for key, v in pairs) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    # JSON's texts and numbers are TOML's, but for this one character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _as_task(task: Task | str) -> Task:
    return task if isinstance(task, Task) else Task(task)


def _read_manifest(labels: str, kind: str, answers: dict[str, Any]) -> Manifest:
    # pandas, not TensorFlow: a second at most.
    from kerasmtl.data.inputs import Input
    from kerasmtl.data.manifest import Manifest

    names = Input.options(kind)
    options = {name: answers[f"_{name}"] for name in names if answers.get(f"_{name}")}
    columns = ("split_column", "group_column")
    manifest = Manifest.from_csv(
        labels,
        tasks=answers.get("_tasks"),
        input=Input.from_config({"kind": kind, **options}),
        **{name: answers[f"_{name}"] for name in columns if answers.get(f"_{name}")},
    )
    _check_files(manifest, answers.get("_on_invalid_image") or "error")
    return manifest
