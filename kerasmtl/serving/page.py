"""The page on which one drops images, or fills in a row, and sees what the model says."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from string import Template
from typing import Any

from kerasmtl.export.description import GOLDEN_REQUEST
from kerasmtl.serving.config import Limits
from kerasmtl.serving.served_model import DEFAULT, Served, Signature

SAMPLES = 2**18  # bytes; a larger golden request would make the page slow to load
NAMED = 5  # tasks named in the note; of more it says how many


def page(name: str, served: Served, limits: Limits) -> str:
    """The page as HTML, whole in itself: it fetches nothing but predictions."""
    signature = served.signatures[DEFAULT]
    model = {
        "url": f"v1/models/{name}:predict",
        "signature": signature.name,
        "kind": _kind(signature),
        "inputs": _inputs(served, signature),
        "width": _width(signature),
        "outputs": list(signature.outputs),
        "tasks": [{**task, "several": _several(task, signature)} for task in served.tasks],
        "samples": _samples(served, signature),
        "most": limits.max_body,
    }
    # What stands in a script ends at the first "</"; JSON has another way to write "<".
    written = json.dumps(model, allow_nan=False).replace("<", "\\u003c")
    return _template().substitute(
        title=html.escape(f"{name} · kerasmtl"),
        name=html.escape(name),
        version=served.version,
        note=html.escape(_note(served.tasks)),
        model=written,
    )


@cache
def policy() -> dict[str, str]:
    """Headers that let the page's own script and style run, by their hashes, and nothing else."""
    text = _template().substitute(title="", name="", version="", note="", model="")

    def hashed(tag: str) -> str:
        content = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)[1]
        return base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()

    rules = {
        "default-src": "'none'",
        "script-src": f"'sha256-{hashed('script')}'",
        "style-src": f"'sha256-{hashed('style')}'",
        "img-src": "blob: data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "Content-Security-Policy": "; ".join(f"{key} {value}" for key, value in rules.items()),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }


@cache
def _template() -> Template:
    return Template(files("kerasmtl.serving").joinpath("page.html").read_text(encoding="utf-8"))


def _kind(signature: Signature) -> str:
    if signature.takes_pictures:
        return "images"
    return "matrix" if _width(signature) else "columns"


def _width(signature: Signature) -> int | None:
    """How many numbers a row has, of a signature that takes them as one matrix."""
    tensors = list(signature.inputs.values())
    return tensors[0].shape[0] if len(tensors) == 1 and len(tensors[0].shape) == 1 else None


def _inputs(served: Served, signature: Signature) -> list[dict[str, Any]]:
    """The inputs, in the order and under the names of the table's columns where these are known."""
    columns = served.description.get("inputs") or {}
    if set(columns.values()) == set(signature.inputs):
        return [{"name": name, "label": column} for column, name in columns.items()]
    return [{"name": name, "label": name} for name in signature.inputs]


def _several(task: Mapping[str, Any], signature: Signature) -> bool:
    """Whether the task has a probability for each of its classes."""
    output = signature.outputs.get(task["name"])
    return output is not None and len(output.shape) == 1 and output.shape[0] != 1


def _samples(served: Served, signature: Signature) -> list[dict[str, Any]]:
    """The examples of the golden request that an export brings along; none if it has none."""
    file = served.folder / GOLDEN_REQUEST
    try:
        if file.stat().st_size > SAMPLES:
            return []
        text = file.read_text(encoding="utf-8")
        rows = json.loads(text, parse_constant=lambda _: None)["instances"]  # NaN: missing
    except (OSError, ValueError, KeyError, TypeError):  # it may be foreign, in any form
        return []

    def fits(row: Any) -> bool:
        if not isinstance(row, dict) or set(row) != set(signature.inputs):
            return False
        return not signature.takes_pictures or all(set(value) == {"b64"} for value in row.values())

    return rows if isinstance(rows, list) and all(map(fits, rows)) else []


def _note(tasks: Sequence[Mapping[str, Any]]) -> str:
    """What the thresholds are and where they come from, in a visitor's words."""
    origins: dict[str, list[str]] = {}
    for task in tasks:
        if isinstance(task["threshold"], int | float):
            origins.setdefault(_origin(task), []).append(task["name"])
    if not origins:
        return ""
    if len(origins) == 1:
        said = [f"It {origin}." for origin in origins]
    else:
        said = [f"For {_listed(names)} it {origin}." for origin, names in origins.items()]
    line = "The line across a bar is the task's threshold: from there on the answer is yes."
    return " ".join([line, *said])


def _origin(task: Mapping[str, Any]) -> str:
    rule = str(task["rule"])
    aim = re.fullmatch(r"(precision|recall)>=(\d*\.?\d+)", rule)
    if rule == "fixed":
        return "is the default, 0.5" if task["threshold"] == 0.5 else "was set by hand"
    if rule == "f1":
        return "was chosen on validation data, to balance false alarms and misses"
    if aim:
        wanted = f"at least {100 * float(aim[2]):g}% of the"
        what = "yes answers are right" if aim[1] == "precision" else "true cases are found"
        return f"was chosen on validation data, with the aim that {wanted} {what}"
    return "came with the model"


def _listed(names: Sequence[str]) -> str:
    if len(names) > NAMED:
        return f"{len(names)} of the tasks"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
