"""A trained model as one file for LiteRT or ONNX, proven in that runtime before it has a name."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kerasmtl._version import __version__
from kerasmtl.formats import FORMATS, Format
from kerasmtl.formats.exported import ExportedModel
from kerasmtl.formats.face import Face, Model
from kerasmtl.formats.litert import litert_bytes
from kerasmtl.formats.onnx import onnx_bytes
from kerasmtl.formats.parity import compare
from kerasmtl.formats.runtimes import ConvertedModel, check_runtime, describe, runner
from kerasmtl.formats.samples import COUNT, draw_samples, noise
from kerasmtl.tasks import Task, as_tasks

CALIBRATING = 2 / 3  # of the samples set the ranges of int8; the others are for the check
AGREEMENT = 0.98  # of decisions, below which there is a warning


def convert_model(
    model: keras.Model | str | os.PathLike[str],
    path: str | os.PathLike[str],
    tasks: Iterable[Task | str] | None = None,
    to: str = "litert",
    columns: Sequence[str] | None = None,
    samples: Any = None,
    sample_count: int = COUNT,
    uint8: bool = False,
    thresholds: Mapping[str, float] | None = None,
    seed: int = 0,
    float_layers: int | None = None,
) -> ConvertedModel:
    """Write a model, or an exported version, as one file for another runtime, and prove it there.

    Shapes: the input is `pixels` (batch, height, width, 3) float32 in [0, 1], of the model's size,
    or `features` (batch, columns) float32, NaN = missing. The outputs, float32, are called as the
    tasks: (batch,) probability or number, (batch, classes) of a multiclass task. LiteRT's
    signature is `serving_default`. The file carries its description (`ConvertedModel.description`).

    Before the file gets its name it runs in its own runtime on samples, or on noise without: a
    probability of "litert" or "onnx" that is more than 1e-5 from the model's is refused, and a
    number that is more than 1e-4 (relative, above 1); the other two lose precision, and the
    description says how much.

    Args:
        model: as `build_model` makes it; or the folder of an exported version, whose tasks,
            columns, temperatures and thresholds the file then has.
        path: the file to write, .tflite or .onnx.
        tasks: of a model, the names of the outputs, in order.
        to: "litert", float32; "litert-dynamic", weights of 8 bits; "litert-int8", integers of 8
            bits, see `float_layers`; or "onnx", float32.
        columns: of a model of a table, the names of the inputs, in order.
        samples: rows that stand for what the model will see, which "litert-int8" needs: an array, a
            data set of `make_dataset`, a `Manifest` or `Table`, or a labels file, of which rows
            that are not test rows are drawn. Two thirds set the ranges, the others are checked.
        sample_count: the most rows of `samples` to take.
        uint8: of "litert-int8" for pictures, the input is uint8 pixels from 0 to 255.
        thresholds: by binary task, from which probability on the answer is yes; 0.5 by default. The
            description carries them, and the check counts decisions by them.
        seed: of drawing samples.
        float_layers: of "litert-int8", how many convolutions compute in float32, counted from the
            input; by default five eighths, which keeps 98 % of decisions where integers alone do
            not. 0: integers throughout, for hardware that has nothing else; temperatures are
            computed in float32 all the same.

    Raises:
        FileExistsError: the file exists; nothing is changed.
        ImportError: the extra is not installed; says which one.
        ValueError: an unknown format or a wrong ending, a model that this format cannot hold, or
            one that gives other numbers there, tasks or columns or samples that do not fit.
    """
    kind, target = _checked(to, Path(path))
    check_runtime(kind.runtime)
    origin, face = _origin(model, tasks, columns)
    _check_options(to, face, samples, uint8, float_layers)
    limits = _limits(face, {**getattr(origin, "thresholds", {}), **(thresholds or {})})
    rows = None if samples is None else draw_samples(samples, face, sample_count, seed)
    cut = 0 if rows is None or len(rows) < 2 else round(len(rows) * CALIBRATING)
    ranges = None if rows is None else rows[: cut or None]
    made = _bytes(origin, face, to, ranges, uint8, float_layers)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".convert-") as aside:
        file = Path(aside) / target.name
        file.write_bytes(made)
        checked = noise(face) if rows is None else rows[cut:]
        run = runner(file, face.name)
        check = compare(origin, run, face, checked, limits, uint8, kind.exact)
        check["on"] = "noise" if rows is None else "samples"
        describe(file, _description(origin, face, to, uint8, limits, check))
        _place(file, target)
    _warn(check, target, noisy=rows is None)
    return ConvertedModel(target)


def _origin(
    model: keras.Model | str | os.PathLike[str],
    tasks: Iterable[Task | str] | None,
    columns: Sequence[str] | None,
) -> tuple[Model, Face]:
    if isinstance(model, str | os.PathLike):
        if tasks is not None or columns is not None:
            raise ValueError(
                "`tasks` and `columns` are those of the export. Expected neither with the folder "
                f"of one. Received: {model}"
            )
        exported = ExportedModel(model)
        return exported, Face.of_export(exported)
    if tasks is None:
        raise ValueError(
            "`tasks` are missing. Expected the names of the model's outputs, in order."
        )
    return model, Face.of(model, as_tasks(tasks), columns)


def _checked(to: str, target: Path) -> tuple[Format, Path]:
    if to not in FORMATS:
        raise ValueError(f"`to` is no format. Expected one of {list(FORMATS)}. Received: {to!r}")
    if target.suffix != FORMATS[to].ending:
        raise ValueError(
            f"`path` does not end as a file of {to}. Expected {FORMATS[to].ending}. Received: "
            f"{target}"
        )
    if os.path.lexists(target):
        raise _exists(target)
    return FORMATS[to], target


def _exists(target: Path) -> FileExistsError:
    return FileExistsError(
        f"`path` {target} exists, and is never overwritten. Choose another name, or remove it."
    )


def _check_options(
    to: str, face: Face, samples: Any, uint8: bool, float_layers: int | None
) -> None:
    integers = to == "litert-int8"
    if float_layers is not None and (not integers or float_layers < 0):
        raise ValueError(
            "`float_layers` is for litert-int8. Expected 0 or more with it. Received: "
            f"{float_layers} with to={to!r}"
        )
    if uint8 and not integers:
        raise ValueError(f"`uint8` is for litert-int8. Expected False. Received: to={to!r}")
    if integers and face.columns is not None:
        raise ValueError(
            "`to` litert-int8 is for pictures. A table's columns have no range in common, and no "
            "integer stands for a missing one. Expected litert, litert-dynamic or onnx."
        )
    if integers and samples is None:
        raise ValueError(
            "`samples` are missing: they set the ranges of litert-int8. Expected training "
            "pictures: a data set, a Manifest or a labels file."
        )


def _limits(face: Face, thresholds: Mapping[str, float] | None) -> dict[str, float]:
    given, binary = dict(thresholds or {}), [t.name for t in face.tasks if t.kind == "binary"]
    wrong = {k: v for k, v in given.items() if k not in binary or not 0 <= v <= 1}
    if wrong:
        raise ValueError(
            f"`thresholds` do not fit. Expected numbers in [0, 1] by binary task, of {binary}. "
            f"Received: {wrong}"
        )
    return {name: float(given.get(name, 0.5)) for name in binary}


def _bytes(
    model: Model,
    face: Face,
    to: str,
    samples: np.ndarray | None,
    uint8: bool,
    float_layers: int | None,
) -> bytes:
    if to == "onnx":
        return onnx_bytes(model, face)
    quantize = to.partition("-")[2] or None
    return litert_bytes(model, face, quantize, samples, uint8, float_layers)


def _description(
    model: Model,
    face: Face,
    to: str,
    uint8: bool,
    limits: Mapping[str, float],
    check: dict[str, Any],
) -> dict[str, Any]:
    import tensorflow as tf

    export = model.described if isinstance(model, ExportedModel) else None
    warm = {task["name"]: task.get("temperature") for task in (export or {}).get("tasks", ())}
    pictures = face.columns is None
    inputs: dict[str, Any] = {
        "dtype": "uint8" if uint8 else "float32",
        "shape": [None, *face.shape],
    }
    if pictures:
        inputs["range"] = [0, 255] if uint8 else [0, 1]
    return {
        "format": 1,
        "to": to,
        "kind": "pictures" if pictures else "table",
        "image_size": list(face.shape[:2]) if pictures else None,
        "columns": None if pictures else list(face.columns or ()),
        "inputs": {face.name: inputs},
        "tasks": [
            {
                "name": task.name,
                "kind": task.kind,
                "classes": list(task.classes),
                "threshold": limits.get(task.name),
                "temperature": warm.get(task.name),
            }
            for task in face.tasks
        ],
        "check": check,
        "export": export and {key: export[key] for key in ("name", "version", "created")},
        "versions": {
            "kerasmtl": __version__,
            "keras": keras.__version__,
            "tensorflow": tf.__version__,
        },
    }


def _place(file: Path, target: Path) -> None:
    try:
        os.link(file, target)  # which, unlike a rename, never replaces what came there meanwhile
    except FileExistsError:
        raise _exists(target) from None
    except OSError:  # a file system without links
        if os.path.lexists(target):
            raise _exists(target) from None
        os.rename(file, target)


def _warn(check: dict[str, Any], target: Path, noisy: bool) -> None:
    agree = check["decisions_agree"]
    if not noisy and agree is not None and agree < AGREEMENT:
        warnings.warn(
            f"{target} decides otherwise than the model in {1 - agree:.1%} of the cases checked. "
            "litert keeps the model's decisions.",
            stacklevel=3,
        )
