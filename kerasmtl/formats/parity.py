"""How far a converted model is from the model that it was made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kerasmtl.formats import NEAR
from kerasmtl.formats.face import Face, Model, answers
from kerasmtl.formats.runtimes import BATCH, Run


def compare(
    model: Model,
    run: Run,
    face: Face,
    rows: np.ndarray,
    limits: Mapping[str, float],
    uint8: bool,
    exact: bool,
) -> dict[str, Any]:
    """The largest difference by task, and the share of decisions that are the same.

    Args:
        model: the original.
        run: the converted one.
        face: of both.
        rows: inputs, (rows, *face.shape) float32.
        limits: by binary task, from which probability on the answer is yes.
        uint8: the converted one takes uint8 pixels.
        exact: whether differences have to be within `NEAR`.

    Raises:
        ValueError: an output has another shape, is NaN where the model's is not, or is beyond the
            bounds of `NEAR`, if they are to be exact.
    """
    if uint8:  # both get what uint8 can hold
        rows = np.rint(rows * 255).astype("uint8")
    wanted = answers(model, rows / np.float32(255) if uint8 else rows, face, BATCH)
    try:
        parts = [run(rows[at : at + BATCH]) for at in range(0, len(rows), BATCH)]
        got = {task.name: np.concatenate([p[task.name] for p in parts]) for task in face.tasks}
    except Exception as error:  # runtimes raise their own errors, of types that are not public
        raise ValueError(
            f"`model` was converted, but its own runtime cannot run it: {str(error)[:300]}"
        ) from error
    differences = {name: _difference(name, got[name], wanted[name]) for name in got}
    bounds = {
        t.name: NEAR["number" if t.kind == "regression" else "probability"] for t in face.tasks
    }
    beyond = {name: value for name, value in differences.items() if value > bounds[name]}
    if exact and beyond:
        raise ValueError(
            f"`model` gives other numbers once converted, and nothing was written. Expected at "
            f"most {NEAR} between them. Received: {beyond}"
        )
    return {
        "rows": len(rows),
        "largest_difference": differences,
        "decisions_agree": decisions_agree(got, wanted, limits, face),
    }


def decisions_agree(
    got: Mapping[str, np.ndarray],
    wanted: Mapping[str, np.ndarray],
    limits: Mapping[str, float],
    face: Face,
) -> float | None:
    """The share of rows and tasks with the same answer; None if no task has answers.

    A binary task's is whether its probability reaches the limit, a multiclass task's the likeliest
    class; a number is none.
    """
    same = []
    for task in face.tasks:
        both = got[task.name], wanted[task.name]
        if task.kind == "binary":
            same.append(np.equal(*(values >= limits[task.name] for values in both)))
        elif task.kind == "multiclass":
            same.append(np.equal(*(values.argmax(axis=1) for values in both)))
    return float(np.concatenate(same).mean()) if same else None


def _difference(name: str, got: np.ndarray, wanted: np.ndarray) -> float:
    """The largest |got - wanted| / max(1, |wanted|) where the model gives a number."""
    known = np.isfinite(wanted)
    if got.shape != wanted.shape or not np.isfinite(got[known]).all():
        raise ValueError(
            f"`model` gives no numbers for task {name!r} once converted. Expected shape "
            f"{wanted.shape}. Received: {got.shape}"
        )
    if not known.any():
        return 0.0
    off = np.abs(got[known].astype("float64") - wanted[known])
    return float((off / np.maximum(1.0, np.abs(wanted[known]))).max())
