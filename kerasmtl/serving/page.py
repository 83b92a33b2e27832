"""The page on which one drops a picture, or fills in a row, and sees what the model says."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from functools import cache
from importlib.resources import files
from string import Template
from typing import Any

from kerasmtl.serving.limits import Limits
from kerasmtl.serving.served import DEFAULT, Served, Signature


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
        "tasks": served.tasks,
        "most": limits.max_body,
    }
    # What stands in a script ends at the first "</"; JSON has another way to write "<".
    written = json.dumps(model, allow_nan=False).replace("<", "\\u003c")
    return _template().substitute(
        title=html.escape(f"{name} · kerasmtl"),
        name=html.escape(name),
        version=served.version,
        model=written,
    )


@cache
def policy() -> dict[str, str]:
    """Headers that let the page's own script and style run, by their hashes, and nothing else."""
    text = _template().substitute(title="", name="", version="", model="")

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
        return "pictures"
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
