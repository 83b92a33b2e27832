"""The page on which people drop images, or fill in a row, and see the predictions.

`ModelServer` answers GET / with `page` and the headers of `page_headers`. The HTML is page.html,
whose script asks `:predict` of this server as any client does. What the page knows of the model
(inputs, tasks, examples) travels in it as JSON.

Names of models, tasks and columns may come from strangers' files: as text they are escaped, and a
script among them would not run, since the headers allow only the page's own script.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from string import Template
from typing import Any

from kerasmtl.export.description import DEFAULT_SIGNATURE, GOLDEN_REQUEST
from kerasmtl.serving.config import ServerConfig
from kerasmtl.serving.served_model import ServedModel, Signature

NOTE = "The line across a bar is the task's threshold: from there on the answer is yes."
SAMPLES = 2**18  # bytes; a larger golden request would make the page slow to load


def page(name: str, model: ServedModel, config: ServerConfig) -> str:
    """Return the page as HTML, which loads nothing from elsewhere but predictions.

    Args:
        name: the name of the model, as in the paths.
        model: the version to show.
        config: the limits of the server; the page refuses larger files itself.
    """
    signature = model.signatures[DEFAULT_SIGNATURE]
    width = _width(signature)
    content = {
        "url": f"v1/models/{name}:predict",
        "signature": signature.name,
        "form": "files" if _takes_files(model, signature) else "matrix" if width else "columns",
        "inputs": _inputs(model, signature),
        "width": width,
        "outputs": list(signature.outputs),
        "tasks": [{**task, "several": _several(task, signature)} for task in model.tasks],
        "samples": _samples(model, signature),
        "most": config.max_bytes,
    }
    # "</" would end the script; JSON has another way to write "<".
    written = json.dumps(content, allow_nan=False).replace("<", "\\u003c")
    return _template().substitute(
        title=html.escape(f"{name} · kerasmtl"),
        name=html.escape(name),
        version=model.version,
        note=html.escape(NOTE if any(t["threshold"] is not None for t in model.tasks) else ""),
        model=written,
    )


@cache
def page_headers() -> dict[str, str]:
    """Return headers that allow the page's own script and style, by their hashes, and no others.

    The hashes are those of the template, since what is substituted lies outside of both. Nobody may
    frame the page, and browsers keep no copy, since the newest version may change at any time.
    """
    text = _template().substitute(title="", name="", version="", note="", model="")

    def hashed(tag: str) -> str:
        # From the template with all fields empty, as the page's script has no fields.
        content = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)[1]
        return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"

    policy = (
        f"default-src 'none'; script-src {hashed('script')}; style-src {hashed('style')}; "
        "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }


@cache
def _template() -> Template:
    """Read page.html, once per process."""
    return Template(files("kerasmtl.serving").joinpath("page.html").read_text(encoding="utf-8"))


def _takes_files(model: ServedModel, signature: Signature) -> bool:
    """Return whether an example is an image file; without model.json, whether it is bytes."""
    given = model.description.get("input")
    if given:
        return given.get("kind") == "image"
    return len(signature.inputs) == 1 and all(name.endswith("_bytes") for name in signature.inputs)


def _width(signature: Signature) -> int | None:
    """Return how many numbers a row has, if the signature takes rows as one matrix."""
    tensors = list(signature.inputs.values())
    return tensors[0].shape[0] if len(tensors) == 1 and len(tensors[0].shape) == 1 else None


def _inputs(model: ServedModel, signature: Signature) -> list[dict[str, Any]]:
    """Return the inputs, in the order and with the names of the table's columns if known."""
    columns = (model.description.get("input") or {}).get("arguments") or {}
    if set(columns.values()) != set(signature.inputs):
        columns = {name: name for name in signature.inputs}
    return [
        {"name": name, "label": label, "text": signature.inputs[name].dtype == "string"}
        for label, name in columns.items()
    ]


def _several(task: Mapping[str, Any], signature: Signature) -> bool:
    """Return whether the task has a probability for each of its classes."""
    output = signature.outputs.get(task["name"])
    return output is not None and len(output.shape) == 1 and output.shape[0] != 1


def _samples(model: ServedModel, signature: Signature) -> list[dict[str, Any]]:
    """Return the examples of the version's golden request that name their inputs, if it has one."""
    file = model.folder / GOLDEN_REQUEST
    try:
        text = file.read_text(encoding="utf-8") if file.stat().st_size <= SAMPLES else "{}"
        # `parse_constant` is called for NaN and Infinity, which a browser's JSON.parse would
        # refuse.
        rows = json.loads(text, parse_constant=lambda _: None)["instances"]  # NaN: missing
        return [row for row in rows if isinstance(row, dict) and set(row) == set(signature.inputs)]
    except (OSError, ValueError, KeyError, TypeError):  # not a request for the page
        return []
