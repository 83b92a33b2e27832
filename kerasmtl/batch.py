"""Predictions for any number of pictures or rows, into a file, that can be interrupted."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kerasmtl.batch_inputs import PictureInputs, Piece, RowInputs
from kerasmtl.batch_outputs import check_out, folder_of, unfinished
from kerasmtl.predictors import BATCH, Predictor, joined
from kerasmtl.progress_bars import progress_bar

BLOCK = 512  # pictures that are lost at most by an interruption
BLOCK_OF_ROWS = 8192

Bad = tuple[str, int | None, str]


@dataclass(frozen=True)
class Done:
    """What a batch prediction did: the file, its rows, how many inputs were bad, and their list.

    `resumed`: inputs that an earlier call had dealt with.
    """

    out: Path
    rows: int
    bad: int
    quarantine: Path | None
    resumed: int


def predict_to_file(
    predictor: Predictor,
    inputs: PictureInputs | RowInputs,
    out: str | os.PathLike[str],
    batch_size: int = BATCH,
    resume: bool = True,
    overwrite: bool = False,
    progress: bool = False,
    block: int | None = None,
) -> Done:
    """Write predictions for all inputs to a CSV, Parquet or JSON lines file, in their order.

    Columns: image, or row or id; line, where the inputs have lines; by task its probability or
    number, and the decision if the model has one; of a multiclass task the likeliest class and
    `task:class`, a probability each. Memory does not depend on the number of inputs.

    Predictions are kept in finished blocks in `<out>.unfinished/` until all are there; the same
    call goes on from them after an interruption. Inputs that cannot be used are listed with the
    reason in `<out>.quarantine.csv`.

    Args:
        predictor: as `model_predictor` or `export_predictor` makes it.
        inputs: pictures or rows, as the predictor takes them.
        out: ends in .csv, .parquet or .jsonl.
        batch_size: inputs in one call of the model.
        resume: False forgets the blocks of an interrupted call.
        overwrite: replace a file of that name.
        progress: show a bar on a terminal.
        block: inputs in a block; by default 512 pictures or 8192 rows.

    Raises:
        FileExistsError: `out` or its list of bad inputs exists; nothing is changed.
        FileNotFoundError: an input file is absent.
        ValueError: no inputs, a wrong batch size or ending, or blocks of another model or of
            other inputs.
    """
    target = Path(out)
    if batch_size < 1:
        raise ValueError(f"`batch_size` is too small. Expected at least 1. Received: {batch_size}")
    check_out(target, overwrite)
    columns = _columns(predictor, inputs)
    total, digest = inputs.measure()
    size = block or (BLOCK if predictor.columns is None else BLOCK_OF_ROWS)
    identity = {"model": predictor.sha256, "inputs": digest, "columns": columns, "block": size}
    bar = progress_bar("predicting", total, progress, transient=False)
    with unfinished(target, columns) as kept, bar as advance:
        before = kept.published(identity, overwrite)
        if before is not None:
            return Done(target, total - before[1], before[1], before[0], total)
        finished = kept.begin(identity, resume, total)
        resumed = min(finished * size, total)
        advance(resumed)
        seen = resumed
        pieces = inputs.pieces(size, skip=finished * size)
        for number, (piece, outputs, bad) in enumerate(
            _predicted(predictor, pieces, batch_size, advance), start=finished
        ):
            kept.write(number, _values(predictor, inputs, piece, outputs, bad), _listed(piece, bad))
            seen += len(piece)
        if seen != total:
            raise ValueError(f"`inputs` changed meanwhile. Expected {total}. Received: {seen}")
        quarantine, count = kept.publish(overwrite)
    return Done(target, total - count, count, quarantine, resumed)


def how_to_go_on(out: str | os.PathLike[str]) -> str:
    """What to tell somebody who has interrupted a prediction."""
    kept = folder_of(Path(out))
    if not kept.is_dir():
        return "Interrupted before anything was predicted."
    return f"Interrupted. What is finished is in {kept}; the same command goes on from there."


def _predicted(
    predictor: Predictor,
    pieces: Iterator[Piece],
    batch_size: int,
    advance: Callable[[int], None],
) -> Iterator[tuple[Piece, dict[str, np.ndarray], dict[int, str]]]:
    """By piece the outputs of its good inputs, and by position why the others are bad."""
    if predictor.columns is None:
        from kerasmtl.batch_pictures import predict_pieces

        yield from predict_pieces(predictor, pieces, batch_size, advance)
        return
    for piece in pieces:
        good = np.array([row for row in range(len(piece)) if row not in piece.faults], int)
        parts = [
            predictor.call(piece.features[good[start : start + batch_size]])
            for start in range(0, len(good), batch_size)
        ]
        advance(len(piece))
        yield piece, joined(parts), piece.faults


def _columns(predictor: Predictor, inputs: PictureInputs | RowInputs) -> list[list[str]]:
    columns = [[inputs.first, "str"], *([["line", "int64"]] if inputs.has_lines else [])]
    for task in predictor.tasks:
        if task.kind == "multiclass":
            columns.append([task.name, "str"])
            columns += [[f"{task.name}:{label}", "float32"] for label in task.classes]
        else:
            columns.append([task.name, "float32"])
            if task.name in predictor.decided:
                columns.append([f"{task.name}_decision", "int32"])
    names = [name for name, _ in columns]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"`tasks` give columns of the same name. Received twice: {twice}")
    return columns


def _values(
    predictor: Predictor,
    inputs: PictureInputs | RowInputs,
    piece: Piece,
    outputs: Mapping[str, np.ndarray],
    bad: Mapping[int, str],
) -> dict[str, Any]:
    good = [row for row in range(len(piece)) if row not in bad]
    values: dict[str, Any] = {inputs.first: [piece.names[row] for row in good]}
    if inputs.has_lines:
        values["line"] = np.array([piece.lines[row] for row in good], "int64")
    for task in predictor.tasks:
        found = outputs[task.name] if good else np.empty((0, len(task.classes) or 1), "float32")
        if task.kind == "multiclass":
            labels = np.array(task.classes, object)
            values[task.name] = labels[found.argmax(axis=1)]
            values |= {f"{task.name}:{label}": found[:, n] for n, label in enumerate(labels)}
        else:
            values[task.name] = np.asarray(found, "float32").reshape(len(good))
            if task.name in predictor.decided:
                decided = f"{task.name}_decision"
                values[decided] = np.asarray(outputs[decided] if good else [], "int32")
    return values


def _listed(piece: Piece, bad: Mapping[int, str]) -> list[Bad]:
    return [(piece.names[row], piece.lines[row], bad[row]) for row in sorted(bad)]
