"""Small picture files by the batch.

To decode a small picture takes less time than to start the operations that look at it, so these
work on a whole batch. Each picture is what `prepare_image` makes of it alone, bit for bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from kerasmtl.decoding import PARALLEL
from kerasmtl.graphs import traced
from kerasmtl.inputs import enlarged, picture_of, reduced, scaled, way_of
from kerasmtl.mending import Examined

if TYPE_CHECKING:
    import tensorflow as tf

Fit = Literal["same", "smaller", "larger"]

SMALL = 2**16  # bytes of a file, on average, up to which reading by the batch pays
_SAMPLE = 64  # files whose length is looked up


def are_small(paths: Sequence[str]) -> bool:
    """Whether files are small enough that it pays to read them by the batch."""
    chosen = [paths[at] for at in range(0, len(paths), -(-len(paths) // _SAMPLE))]
    return sum(os.path.getsize(path) for path in chosen) <= SMALL * len(chosen)


def read_files(paths: tf.Tensor) -> tf.Tensor:
    """The bytes of files, (batch,) string."""
    import tensorflow as tf

    return _each(tf.io.read_file, paths, tf.TensorSpec((), tf.string))


def likely(path: str, size: tuple[int, int]) -> Fit:
    """How the pictures of a data set fit the wanted size, if all are as large as this one."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            sides = picture.height, picture.width
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return "larger"  # what is wrong with it is said when it is read
    if sides == size:
        return "same"
    return "smaller" if sides[0] <= size[0] and sides[1] <= size[1] else "larger"


def prepare_files(files: Examined, size: tuple[int, int], fit: Fit) -> tf.Tensor:
    """Pictures, `mended`, as float32 (batch, *size, 3) in [0, 1].

    A batch of which all pictures fit as `fit` says takes less time; it changes nothing else. Only
    one fit is provided for, since each takes its time to be made ready, in every epoch.
    """
    return _prepared(size, fit)(*files)


@lru_cache(maxsize=16)
def _prepared(size: tuple[int, int], fit: Fit) -> Callable[..., tf.Tensor]:
    return traced(lambda *files: _prepare(Examined(*files), size, fit))


def _prepare(files: Examined, size: tuple[int, int], fit: Fit) -> tf.Tensor:
    import tensorflow as tf

    pixels = tf.TensorSpec((*size, 3), tf.float32)
    ways = way_of(files, size)
    smaller = tf.reduce_all(files.sides <= size, axis=-1)
    fits = {
        "same": tf.reduce_all(files.sides == size, axis=-1),
        "smaller": smaller & tf.reduce_all(files.sides > 0, axis=-1),
        "larger": ~smaller,
    }
    as_they_are = (ways == 0) & (files.orientation == 1)

    def same() -> tf.Tensor:  # scaled all at once
        spec = tf.TensorSpec((*size, 3), tf.uint8)
        return scaled(
            _each(lambda one: tf.ensure_shape(_decode(one), spec.shape), files.data, spec)
        )

    def resized() -> tf.Tensor:
        resize = enlarged if fit == "smaller" else reduced
        return _each(
            lambda one: tf.ensure_shape(resize(_decode(one), size), pixels.shape),
            files.data,
            pixels,
        )

    def one_by_one(*given: tf.Tensor) -> tf.Tensor:
        return _each(lambda one: picture_of(*one, size), given, pixels)

    each = traced(one_by_one, on_call=True)
    images = tf.cond(
        tf.reduce_all(fits[fit] & as_they_are),
        same if fit == "same" else resized,
        lambda: each(files.data, ways, files.orientation),
    )
    return tf.ensure_shape(images, (None, *size, 3))


def _each(function: Callable[..., tf.Tensor], items: Any, spec: tf.TensorSpec) -> tf.Tensor:
    import tensorflow as tf

    return tf.map_fn(function, items, fn_output_signature=spec, parallel_iterations=PARALLEL)


def _decode(data: tf.Tensor) -> tf.Tensor:
    import tensorflow as tf

    return tf.io.decode_image(data, channels=3, expand_animations=False)
