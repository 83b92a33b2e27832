"""MODEL_CARD.md, the description of an exported version for people.

Source of the form: Mitchell et al. 2019, https://arxiv.org/abs/1810.03993

`export_saved_model` writes it from the same content as model.json, so that the two never differ.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kerasmtl.data.inputs import Input
from kerasmtl.export.description import MODEL_CARD

ABOUT_DECISIONS = (
    "A binary task's decision is 1 where the probability is at least the threshold. Precision, "
    "recall and F1 are those of the decisions on the labels that the threshold was fitted on, so "
    "they are optimistic. A temperature of 1 leaves probabilities as they are."
)


def write_card(folder: Path, about: Mapping[str, Any]) -> None:
    """Write the card of an export, from the content of its model.json."""
    (folder / MODEL_CARD).write_text(model_card(about), encoding="utf-8")


def model_card(about: Mapping[str, Any]) -> str:
    """Return the card as Markdown.

    It says who made the model of what data, what its outputs and decisions mean, what it takes, how
    well it scored, and how a server is asked. Names and notes come from users: they are escaped.

    Args:
        about: the content of model.json.
    """
    name, tasks = _plain(about["name"]), about["tasks"]
    parts = [
        f"# {name}, version {about['version']}",
        _summary(about),
        "## Outputs",
        _tasks(tasks),
        ABOUT_DECISIONS,
        "\n".join(
            f"- {_plain(task['name'])}: {_plain(note)}."
            for task in tasks
            for note in (task["decision"] or {}).get("notes", [])
        ),
        "## Inputs",
        Input.from_config(about["input"]).described(),
        _signatures(about["signatures"]),
        "## Scores",
        *_metrics(about["metrics"]),
        "## How to call it",
        f"TensorFlow Serving: POST /v1/models/{name}:predict; Open Inference Protocol: POST "
        f"/v2/models/{name}/infer. A request and its answer are in `golden/`.",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _summary(about: Mapping[str, Any]) -> str:
    """Return a list of who made the model, of what and when.

    A missing licence or source is shown as "not stated", so that it is noticed.
    """
    data, versions = about["data"] or {}, about["versions"]
    rows = {
        "Created": about["created"],
        "Licence": about["licence"] or "not stated",
        "Trained on": data.get("source") or "not stated",
        "Rows trained on": data.get("rows"),
        "SHA-256 of the labels file": data.get("sha256"),
        "Made with": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
    return "\n".join(f"- {name}: {_plain(of)}" for name, of in rows.items() if of is not None)


def _tasks(tasks: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of the tasks and their decisions."""
    shown = ("rule", "known", "precision", "recall", "f1")
    rows = [
        [
            *(task["name"], task["kind"], ", ".join(task["classes"]), task["threshold"]),
            *((task["decision"] or {}).get(key) for key in shown),
            task["temperature"],
        ]
        for task in tasks
    ]
    head = ["task", "kind", "classes", "threshold", "rule", "known labels", *shown[2:]]
    return _table([*head, "temperature"], rows)


def _signatures(signatures: Mapping[str, Any]) -> str:
    """Return a table of the signatures, with types and shapes.

    At most ten tensors of a signature are listed; one of a table may have a hundred.
    """

    def tensors(found: Mapping[str, Any]) -> str:
        shown = []
        for name, tensor in found.items():
            sizes = ["any" if size is None else str(size) for size in tensor["shape"][1:]]
            shown.append(f"{name} {tensor['dtype']} ({', '.join(['batch', *sizes])})")
        return "; ".join(shown[:10] + ["…"] * (len(shown) > 10))

    rows = [
        [name, tensors(one["inputs"]), tensors(one["outputs"])] for name, one in signatures.items()
    ]
    return _table(["signature", "inputs", "outputs"], rows)


def _metrics(metrics: Mapping[str, Any] | None) -> list[str]:
    """Return a table of scores for each kind of task.

    Tasks of a kind share a table, since each kind has scores of its own.
    """
    if not metrics or not metrics.get("tasks"):
        return ["Not measured."]
    of = f" of {metrics['rows']} rows" if metrics.get("rows") else ""
    of += {
        "validation": " of the validation split",
        "folds": " that the model has learned from, by models of its folds that had not seen them",
    }.get(metrics.get("of", ""), "")
    parts = [
        f"On the known labels{of}, before calibration. Accuracy and F1 are at the threshold of the "
        "evaluation, 0.5 by default, not at those above."
    ]
    by_kind: dict[str, dict[str, Mapping[str, Any]]] = {}
    for name, scores in metrics["tasks"].items():
        by_kind.setdefault(scores.get("kind", ""), {})[name] = scores
    for kind, tasks in by_kind.items():
        names = [name for name in next(iter(tasks.values())) if name != "kind"]
        rows = [[task, *map(scores.get, names)] for task, scores in tasks.items()]
        parts.append(_table([f"{kind} task", *names], rows))
    return parts


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a Markdown table; its cells are escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_plain, line))} |" for line in lines)


def _plain(value: Any) -> str:
    """Return a value as one line without markup: four digits of a number, "" for None.

    Line breaks and markup in names would break the table, or let a task's name add links to the
    card.
    """
    text = f"{value:.4g}" if isinstance(value, float) else str("" if value is None else value)
    return re.sub(r"([|\\`*_<>\[\]])", r"\\\1", " ".join(text.split()))
