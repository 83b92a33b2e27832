"""Pictures through a model, read and decoded side by side, with the bad ones left aside."""

from __future__ import annotations

import os
import stat
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from kerasmtl.batch_inputs import Piece
from kerasmtl.batch_paths import is_address
from kerasmtl.graphs import as_written
from kerasmtl.inputs import read_image
from kerasmtl.mending import picture_fault
from kerasmtl.predictors import Predictor, joined

# What TensorFlow says of bytes that it cannot make a picture of.
_BAD = (tf.errors.InvalidArgumentError, tf.errors.DataLossError, tf.errors.UnimplementedError)

Outputs = dict[str, np.ndarray]


def predict_pieces(
    predictor: Predictor,
    pieces: Iterator[Piece],
    batch_size: int,
    advance: Callable[[int], None],
) -> Iterator[tuple[Piece, Outputs, dict[int, str]]]:
    """By piece the outputs of its good pictures, and by position why the others are bad.

    Reading runs on from one piece to the next; a batch never does, so that a call which goes on
    after an interruption makes the same batches, and gets the same last digits.
    """
    waiting: list[Piece] = []  # handed to TensorFlow, and not whole yet
    failed: list[Exception] = []
    kept: list[tuple[np.ndarray, Outputs]] = []
    whys: dict[int, str] = {}
    first = passed = 0
    for places, batch in _batches(predictor, _remembered(pieces, waiting, failed), batch_size):
        advance(int(places[-1]) + 1 - passed)
        passed = int(places[-1]) + 1
        good, outputs, wrong = _on_good(predictor.call, batch)
        whys |= {int(places[row]): why for row, why in wrong.items()}
        if len(good):
            kept.append((places[good], outputs))
        # In order: of a piece that is passed, what has not come is bad.
        while waiting and passed >= first + len(waiting[0]):
            piece = waiting.pop(0)
            found, kept = _split(kept, first + len(piece))
            yield _finished(piece, first, found, whys, predictor.image_size)
            first += len(piece)
    if failed:
        raise failed[0]
    for piece in waiting:
        found, kept = _split(kept, first + len(piece))
        yield _finished(piece, first, found, whys, predictor.image_size)
        first += len(piece)
    advance(first - passed)


def _remembered(
    pieces: Iterator[Piece], waiting: list[Piece], failed: list[Exception]
) -> Iterator[Piece]:
    try:
        for piece in pieces:
            waiting.append(piece)
            yield piece
    except Exception as error:  # which TensorFlow would take for a bad picture, and ignore
        failed.append(error)


def _batches(
    predictor: Predictor, pieces: Iterator[Piece], batch_size: int
) -> Iterator[tuple[np.ndarray, tf.Tensor]]:
    """Positions and pictures, decoded or as bytes; what cannot be read is left out."""

    ends: list[int] = []

    def named() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        start = 0
        for piece in pieces:
            ends.append(start + len(piece))
            rows = [row for row, path in enumerate(piece.paths) if _special(path) is None]
            paths = np.array([os.fsencode(piece.paths[row]) for row in rows], object)
            yield start + np.array(rows, "int64"), paths
            start += len(piece)

    def read(place: tf.Tensor, path: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        if predictor.image_size is None:
            return place, tf.io.read_file(path)
        return place, read_image(path, predictor.image_size)

    kinds = (tf.TensorSpec((None,), tf.int64), tf.TensorSpec((None,), tf.string))
    found = tf.data.Dataset.from_generator(named, output_signature=kinds).unbatch()
    found = found.map(as_written(read), tf.data.AUTOTUNE, deterministic=True).ignore_errors()
    yield from _within(found.batch(batch_size).prefetch(tf.data.AUTOTUNE), ends, batch_size)


def _within(
    found: Iterable[tuple[tf.Tensor, tf.Tensor]], ends: list[int], batch_size: int
) -> Iterator[tuple[np.ndarray, tf.Tensor]]:
    """The same in batches that do not run over the end of a piece."""
    places: np.ndarray = np.empty(0, "int64")
    waiting: list[tf.Tensor] = []
    for more, batch in found:
        places = np.concatenate([places, more.numpy()])
        waiting.append(batch)
        while len(places):
            end = ends[bisect_right(ends, places[0])]
            inside = int(np.searchsorted(places, end))
            if inside < batch_size and inside == len(places):
                break  # more of this piece may come
            whole = waiting[0] if len(waiting) == 1 else tf.concat(waiting, 0)
            count = min(inside, batch_size)
            yield places[:count], whole if count == len(places) else whole[:count]
            places = places[count:]
            waiting = [whole[count:]] if len(places) else []
    if len(places):
        yield places, waiting[0] if len(waiting) == 1 else tf.concat(waiting, 0)


def _on_good(
    call: Callable[[Any], Any], batch: tf.Tensor
) -> tuple[np.ndarray, Outputs, dict[int, str]]:
    """Which of a batch are good, their outputs, and why the others are not.

    A batch that fails is halved until the bad ones stand alone.
    """
    rows = len(batch)
    try:
        return np.arange(rows), dict(call(batch)), {}
    except _BAD as error:
        if rows == 1:
            return np.arange(0), {}, {0: _plain(error)}
    half = rows // 2
    good, outputs, wrong = _on_good(call, batch[:half])
    more, others, worse = _on_good(call, batch[half:])
    whys = wrong | {half + row: why for row, why in worse.items()}
    parts = [part for part in (outputs, others) if part]
    return np.concatenate([good, half + more]), joined(parts), whys


def _split(
    kept: list[tuple[np.ndarray, Outputs]], end: int
) -> tuple[list[tuple[np.ndarray, Outputs]], list[tuple[np.ndarray, Outputs]]]:
    """The batches before a position, and those from it on."""
    before, after = [], []
    for places, outputs in kept:
        at = int(np.searchsorted(places, end))
        if at:
            before.append((places[:at], {name: part[:at] for name, part in outputs.items()}))
        if at < len(places):
            after.append((places[at:], {name: part[at:] for name, part in outputs.items()}))
    return before, after


def _finished(
    piece: Piece,
    first: int,
    found: list[tuple[np.ndarray, Outputs]],
    whys: dict[int, str],
    size: tuple[int, int] | None,
) -> tuple[Piece, Outputs, dict[int, str]]:
    good = {int(place) - first for places, _ in found for place in places}
    bad = {
        row: _why(piece.names[row], piece.paths[row], whys.pop(first + row, None), size)
        for row in range(len(piece))
        if row not in good
    }
    return piece, joined([outputs for _, outputs in found]), bad


def _why(name: str, path: str, said: str | None, size: tuple[int, int] | None) -> str:
    """Why a picture is bad: what Pillow finds, else what TensorFlow said, or says now."""
    if is_address(name):
        return "an address, and nothing is fetched"
    fault = _special(path) or picture_fault(path)
    if fault or said:
        return fault or str(said)
    try:
        data = tf.io.read_file(path)
        if size is not None:
            read_image(tf.constant(os.fsencode(path)), size)
    except tf.errors.OpError as error:
        return _plain(error)
    return f"could not be read at first, and can be now ({len(data.numpy())} bytes)"


def _special(path: str) -> str | None:
    """What a path is that is no file: a pipe, say, on which a reader waits for ever."""
    try:
        mode = os.stat(path).st_mode
    except ValueError:
        return "no name that a file can have"
    except OSError:
        return None  # the reader says why
    if stat.S_ISDIR(mode):
        return "a folder" if os.access(path, os.R_OK | os.X_OK) else "a folder that cannot be read"
    return None if stat.S_ISREG(mode) else "no regular file"


def _plain(error: tf.errors.OpError) -> str:
    text = (error.message or type(error).__name__).strip().splitlines()[0]
    return text.partition("{{")[0].strip()[:300] or type(error).__name__
