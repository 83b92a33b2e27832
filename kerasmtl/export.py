"""A trained model as a SavedModel: named inputs in, one named output per task out, proved."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from kerasmtl.evaluation import evaluate, known_cells
from kerasmtl.exporting.card import write_card
from kerasmtl.exporting.decisions import (
    Decision,
    Rule,
    decide,
    fit_class_temperature,
    fit_temperatures,
    fit_thresholds,
)
from kerasmtl.exporting.description import (
    MODEL_FILE,
    data_of,
    describe,
    read_description,
    write_description,
)
from kerasmtl.exporting.gate import NotGoodEnough, check_gate
from kerasmtl.exporting.golden import write_golden, write_warm_up
from kerasmtl.exporting.live import Live, picture_cases, table_cases
from kerasmtl.exporting.proof import ProofFailed, prove
from kerasmtl.exporting.signatures import (
    Endpoint,
    check_names,
    column_inputs,
    picture_endpoints,
    table_endpoints,
)
from kerasmtl.heads import check_outputs
from kerasmtl.report import Report
from kerasmtl.tasks import Task, as_tasks

__all__ = [
    "MODEL_FILE",
    "NotGoodEnough",
    "ProofFailed",
    "column_inputs",
    "data_of",
    "export_saved_model",
    "fit_class_temperature",
    "fit_temperatures",
    "fit_thresholds",
    "read_description",
]

MOST_PIXELS = 100_000_000  # of one picture; a server takes pictures of strangers
_ASIDE = ".export-"
_STALE = 24 * 3600  # seconds, after which what a killed export left behind is removed


def export_saved_model(
    model: keras.Model,
    path: str | os.PathLike[str],
    tasks: Iterable[Task | str],
    version: int | None = None,
    columns: Sequence[str] | None = None,
    packed_bits: bool = False,
    *,
    validation: Any = None,
    thresholds: Rule | Mapping[str, Rule] | None = None,
    calibrate: bool = False,
    metrics: Report | Mapping[str, Any] | None = None,
    require: Mapping[str, float] | None = None,
    data: Mapping[str, Any] | None = None,
    licence: str | None = None,
    name: str | None = None,
    max_pixels: int = MOST_PIXELS,
    proof: bool = True,
) -> Path:
    """Write `path/<version>/`, a SavedModel that needs neither kerasmtl nor Keras.

    Outputs by task name: (batch,) float32 probability; (batch,) number of a regression task;
    (batch, classes) probabilities of a multiclass task. "<task>_decision": (batch,) int32, 1 from
    the task's threshold on; of a multiclass task (batch,) string, the likeliest class.

    A model of pictures has the signatures `serving_default`, from `image_bytes`, (batch,) strings,
    each a JPEG, PNG, GIF, BMP or WebP, decoded and resized as `make_dataset` does; `pixels`, from
    (batch, height, width, 3) uint8 of any size; `pixels_float`, the same in [0, 1]; `features`,
    from `image_bytes` to the (batch, d) numbers that the head takes, if there is a head.

    A model of a table has `matrix`, which takes `features` (batch, columns) float32 in the order
    of `columns`, NaN = missing, and, up to 100 columns, `columns`, which takes one (batch,)
    float32 for each, named after it with "_" for whatever is no letter, digit or "_".
    `serving_default` is `columns` if it is there (order cannot be mistaken), else `matrix`;
    `features` takes the same.

    In assets.extra: model.json and MODEL_CARD.md, golden requests with their answers, and warm-up
    requests for TensorFlow Serving. Before the version appears, a fresh process without kerasmtl
    and Keras answers them as the model does, to 1e-5.

    Args:
        model: as `build_model` makes it.
        path: the folder of all versions of this model.
        tasks: the names of the outputs, in order.
        version: a positive number; by default one more than the highest there.
        columns: of a model of a table, the names of the inputs, in order.
        packed_bits: of a model of a table, its files hold the columns as packed bits, which
            `kerasmtl predict` then unpacks; the signatures take columns as ever.
        validation: batches as `evaluate` takes them, for what is fitted or measured here.
        thresholds: a rule of `fit_thresholds`, or a dict of task → rule; "f1" by default if there
            is `validation`, else "fixed", 0.5.
        calibrate: whether probabilities are calibrated by a temperature each; if not, they are
            those of `model.predict`.
        metrics: what `evaluate` gave; by default that of `validation`.
        require: scores without which nothing is published, such as {"macro_auc": 0.8,
            "car.auc": 0.7}: see `kerasmtl.exporting.gate.check_gate`.
        data: what the model was trained on, "sha256", "rows" and "source": see `data_of`.
        licence: of the model.
        name: of the model; by default that of the folder.
        max_pixels: of one picture; more are refused before they are decoded.
        proof: False leaves the fresh process out.

    Returns:
        The folder of the version. It appears whole or not at all.

    Raises:
        FileExistsError: the version exists; nothing is changed.
        NotGoodEnough: the model scores worse than `require`; the former version stays.
        ProofFailed: the export does not answer as the model does; nothing is published.
        ValueError: the model takes neither pictures nor these columns, tasks that differ from its
            outputs, or rules without the data set that they need.
    """
    chosen = as_tasks(tasks)
    kind = _kind(model, columns, packed_bits, max_pixels)
    check_outputs(model, chosen)
    check_names(chosen)
    base = Path(path)
    target = _target(base, version)
    scores = _scores(model, chosen, validation, metrics)
    check_gate(scores, require)
    cells = None if validation is None else known_cells(model, validation, chosen)
    decisions = decide(chosen, cells, thresholds, calibrate)
    about = {**kind, "metrics": scores, "data": data and dict(data), "licence": licence}
    called = base.absolute().name if name is None else name
    base.mkdir(parents=True, exist_ok=True)
    _sweep(base)
    with tempfile.TemporaryDirectory(dir=base, prefix=_ASIDE) as aside:
        written = Path(aside) / "model"
        described = (called, int(target.name), about)
        _make(model, chosen, decisions, written, described, Path(aside) if proof else None)
        _publish(written, target)
    return target


def _make(
    model: keras.Model,
    tasks: tuple[Task, ...],
    decisions: Mapping[str, Decision],
    folder: Path,
    described: tuple[str, int, Mapping[str, Any]],
    proof: Path | None,
) -> None:
    """Write the version into a folder, and prove it, unless `proof`, a folder for it, is None."""
    name, version, about = described
    live = Live(model, tasks, decisions)
    if about["columns"] is None:
        endpoints = picture_endpoints(model, tasks, decisions, about["max_pixels"])
        cases = picture_cases(live)
    else:
        endpoints = table_endpoints(model, tasks, decisions, about["columns"])
        cases = table_cases(live, about["columns"])
    _write(model, folder, endpoints)
    content = describe(folder, name, version, tasks, decisions, about)
    write_description(folder, content)
    write_card(folder, content)
    write_golden(folder, cases[0], name, version)
    write_warm_up(folder, cases, name)
    if proof is not None:
        prove(folder, cases, proof)


def _write(model: keras.Model, folder: Path, endpoints: list[Endpoint]) -> None:
    archive = keras.export.ExportArchive()
    archive.track(model)
    for name, serve, signature in endpoints:
        archive.add_endpoint(name, serve, signature)
    archive.write_out(str(folder), verbose=False)


def _publish(written: Path, target: Path) -> None:
    try:
        os.rename(written, target)
    except OSError as error:
        if not target.exists():
            raise
        raise _exists(target) from error


def _scores(
    model: keras.Model, tasks: tuple[Task, ...], validation: Any, metrics: Any
) -> dict[str, Any] | None:
    if metrics is None and validation is not None:
        metrics = evaluate(model, validation, tasks)
    if isinstance(metrics, Report):
        return metrics.to_dict()
    if metrics is not None and not isinstance(metrics, Mapping):
        raise ValueError(
            "`metrics` is no report. Expected what kerasmtl.evaluate gives, or its to_dict(). "
            f"Received: {type(metrics).__name__}"
        )
    return None if metrics is None else dict(metrics)


def _sweep(base: Path) -> None:
    """Remove what killed exports left behind."""
    for left in base.glob(f"{_ASIDE}*"):
        try:
            if time.time() - left.stat().st_mtime > _STALE:
                shutil.rmtree(left, ignore_errors=True)
        except OSError:
            continue  # another export has just removed it


def _kind(
    model: keras.Model, columns: Sequence[str] | None, packed_bits: bool, max_pixels: int
) -> dict[str, Any]:
    """What the model takes, as model.json has it."""
    if columns is not None:
        names = _checked_columns(model, columns)
        return {
            "kind": "table",
            "image_size": None,
            "columns": names,
            "packed_bits": packed_bits,
            "max_pixels": None,
        }
    if not isinstance(max_pixels, int) or max_pixels < 1:
        raise ValueError(
            f"`max_pixels` is no number of pixels. Expected 1 or more. Received: {max_pixels!r}"
        )
    return {
        "kind": "pictures",
        "image_size": list(_checked_size(model)),
        "columns": None,
        "packed_bits": False,
        "max_pixels": max_pixels,
    }


def _checked_size(model: keras.Model) -> tuple[int, int]:
    shape = model.input_shape
    if isinstance(shape, tuple) and len(shape) == 2:
        raise ValueError(
            "`model` takes no pictures but rows of numbers. Expected their names. Call with "
            "columns=table.columns."
        )
    if not isinstance(shape, tuple) or len(shape) != 4 or None in shape[1:] or shape[3] != 3:
        raise ValueError(
            "`model` takes no pictures of a fixed size. Expected input (batch, height, width, 3). "
            f"Received: {shape}"
        )
    return shape[1:3]


def _checked_columns(model: keras.Model, columns: Sequence[str]) -> tuple[str, ...]:
    if isinstance(columns, str) or len(set(columns)) != len(columns):
        raise ValueError(
            f"`columns` is no list of distinct names. Received: {str(columns)[:200]!r}"
        )
    if model.input_shape != (None, len(columns)):
        raise ValueError(
            f"`columns` does not fit the model. Expected input (batch, {len(columns)}). "
            f"Received: {model.input_shape}"
        )
    return tuple(columns)


def _target(base: Path, version: int | None) -> Path:
    if version is None:
        found = [int(p.name) for p in base.glob("*") if p.name.isdigit()] if base.is_dir() else []
        version = max(found, default=0) + 1
    elif not isinstance(version, int) or version < 1:
        raise ValueError(
            f"`version` is no version. Expected a whole number from 1. Received: {version!r}"
        )
    target = base / str(version)
    if target.exists():
        raise _exists(target)
    return target


def _exists(target: Path) -> FileExistsError:
    return FileExistsError(
        f"`version` {target.name} of {target.parent} exists, and is never overwritten. Leave "
        "version out for the next one."
    )
