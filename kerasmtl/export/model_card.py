"""MODEL_CARD.md, the description of an exported version for people.

Source of the form: Mitchell et al. 2019, https://arxiv.org/abs/1810.03993
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kerasmtl.data.inputs import Input
from kerasmtl.export.description import MODEL_CARD


def write_card(folder: Path, about: Mapping[str, Any]) -> None:
    """Write the card of an export, from the content of its model.json."""
    (folder / MODEL_CARD).write_text(model_card(about), encoding="utf-8")


def model_card(about: Mapping[str, Any]) -> str:
    """Return the card as Markdown.

    Args:
        about: the content of model.json.
    """
    parts = [
        f"# {_plain(about['name'])}, version {about['version']}",
        _summary(about),
        "## Outputs",
        _tasks(about["tasks"]),
        *_notes(about["tasks"]),
        "## Inputs",
        _inputs(about),
        _signatures(about["signatures"]),
        "## Scores",
        _metrics(about["metrics"]),
        "## How to call it",
        _request(about),
    ]
    return "\n\n".join(parts) + "\n"


def _summary(about: Mapping[str, Any]) -> str:
    data, versions = about["data"] or {}, about["versions"]
    rows = {
        "Created": about["created"],
        "Licence": about["licence"] or "not stated",
        "Trained on": data.get("source") or "not stated",
        "Rows trained on": data.get("rows"),
        "SHA-256 of the labels file": data.get("sha256"),
        "Made with": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
    shown = [f"- {name}: {_plain(value)}" for name, value in rows.items() if value is not None]
    return "\n".join(shown)


def _tasks(tasks: Sequence[Mapping[str, Any]]) -> str:
    def cells(task: Mapping[str, Any]) -> list[Any]:
        decision = task["decision"] or {}
        return [
            task["name"],
            task["kind"],
            ", ".join(task["classes"]),
            _number(task["threshold"]),
            decision.get("rule"),
            decision.get("known"),
            *(_number(decision.get(score)) for score in ("precision", "recall", "f1")),
            _number(task["temperature"]),
        ]

    head = ["task", "kind", "classes", "threshold", "rule", "known labels"]
    head += ["precision", "recall", "f1", "temperature"]
    text = (
        "A binary task's decision is 1 where the probability is at least the threshold. Precision, "
        "recall and F1 are those of the decisions on the labels that the threshold was fitted on, "
        "so they are optimistic. A temperature of 1 leaves probabilities as they are."
    )
    return f"{_table(head, map(cells, tasks))}\n\n{text}"


def _notes(tasks: Sequence[Mapping[str, Any]]) -> list[str]:
    found = [
        f"- {_plain(task['name'])}: {_plain(note)}."
        for task in tasks
        for note in (task["decision"] or {}).get("notes", [])
    ]
    return ["\n".join(found)] if found else []


def _inputs(about: Mapping[str, Any]) -> str:
    return Input.from_config(about["input"]).described()


def _signatures(signatures: Mapping[str, Any]) -> str:
    def tensors(found: Mapping[str, Any]) -> str:
        shown = [
            f"{name} {tensor['dtype']} ({', '.join(['batch', *map(_length, tensor['shape'][1:])])})"
            for name, tensor in found.items()
        ]
        return "; ".join(shown[:10] + ["…"] * (len(shown) > 10))

    rows = [
        [name, tensors(one["inputs"]), tensors(one["outputs"])] for name, one in signatures.items()
    ]
    return _table(["signature", "inputs", "outputs"], rows)


def _length(size: int | None) -> str:
    return "any" if size is None else str(size)


def _metrics(metrics: Mapping[str, Any] | None) -> str:
    if not metrics or not metrics.get("tasks"):
        return "Not measured."
    rows = metrics.get("rows")
    of = f" of {rows} rows" if rows else ""
    if metrics.get("of") == "validation":
        of += " of the validation split"
    parts = [
        f"On the known labels{of}, before calibration. Accuracy and F1 are at the threshold of the "
        "evaluation, 0.5 by default, not at those above."
    ]
    by_kind: dict[str, dict[str, Mapping[str, Any]]] = {}
    for name, scores in metrics["tasks"].items():
        by_kind.setdefault(scores.get("kind", ""), {})[name] = scores
    for kind, tasks in by_kind.items():
        names = [name for name in next(iter(tasks.values())) if name != "kind"]
        rows = [
            [task, *(_number(scores.get(name)) for name in names)] for task, scores in tasks.items()
        ]
        parts.append(_table([f"{kind} task", *names], rows))
    return "\n\n".join(parts)


def _request(about: Mapping[str, Any]) -> str:
    name = about["name"]
    return (
        f"TensorFlow Serving: {_code(f'POST /v1/models/{name}:predict')}; Open Inference Protocol: "
        f"{_code(f'POST /v2/models/{name}/infer')}. A request and its answer are in `golden/`."
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_plain, line))} |" for line in lines)


def _number(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value


def _plain(value: Any) -> str:
    """Escape text so that it stays one cell, without markup."""
    return re.sub(r"([|\\`*_<>\[\]])", r"\\\1", _one_line(value))


def _code(value: Any) -> str:
    """Return a code span, in which nothing is escaped: its fence is longer than any in the text."""
    text = _one_line(value)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{text}{fence}"


def _one_line(value: Any) -> str:
    return "" if value is None else " ".join(str(value).split())
