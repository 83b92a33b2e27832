"""Small picture files by the batch.

To decode a small picture takes less time than to start the operations that look at it, so these
work on a whole batch. Each picture is what `prepare_image` makes of it alone, bit for bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from kerasmtl.decoding import PARALLEL
from kerasmtl.graphs import traced
from kerasmtl.inputs import enlarged, picture_of, reduced, scaled, way_of
from kerasmtl.mending import Examined

if TYPE_CHECKING:
    import tensorflow as tf

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


def prepare_files(files: Examined, size: tuple[int, int]) -> tf.Tensor:
    """Pictures, `mended`, as float32 (batch, *size, 3) in [0, 1]."""
    return _prepared(size)(*files)


@lru_cache(maxsize=16)
def _prepared(size: tuple[int, int]) -> Callable[..., tf.Tensor]:
    return traced(lambda *files: _prepare(Examined(*files), size))


def _prepare(files: Examined, size: tuple[int, int]) -> tf.Tensor:
    import tensorflow as tf

    ways = way_of(files, size)
    smaller = tf.reduce_all(files.sides <= size, axis=-1)
    fit = [tf.reduce_all(files.sides == size), tf.reduce_all(smaller), tf.reduce_all(~smaller)]
    known = tf.reduce_all(files.sides > 0, axis=-1)
    as_they_are = tf.reduce_all(known & (ways == 0) & (files.orientation == 1))
    branch = tf.where(tf.reduce_any(fit) & as_they_are, tf.argmax(fit, output_type=tf.int32), 3)
    given = (files.data, ways, files.orientation)
    branches = [partial(traced(each, on_call=True), *given) for each in _branches(size)]
    return tf.ensure_shape(tf.switch_case(branch, branches), (None, *size, 3))


def _branches(size: tuple[int, int]) -> list[Callable[..., tf.Tensor]]:
    """From bytes, (batch,), ways and orientations to images: all of the size, no larger, none of
    them smaller, or anything.
    """
    import tensorflow as tf

    pixels = tf.TensorSpec((*size, 3), tf.float32)

    def same(data: tf.Tensor, *more: tf.Tensor) -> tf.Tensor:  # scaled all at once
        spec = tf.TensorSpec((*size, 3), tf.uint8)
        return scaled(_each(lambda one: tf.ensure_shape(_decode(one), spec.shape), data, spec))

    def resized(
        resize: Callable[[tf.Tensor, tuple[int, int]], tf.Tensor], data: tf.Tensor, *more: tf.Tensor
    ) -> tf.Tensor:
        return _each(
            lambda one: tf.ensure_shape(resize(_decode(one), size), pixels.shape), data, pixels
        )

    def one_by_one(*given: tf.Tensor) -> tf.Tensor:
        return _each(lambda one: picture_of(*one, size), given, pixels)

    return [same, partial(resized, enlarged), partial(resized, reduced), one_by_one]


def _each(function: Callable[..., tf.Tensor], items: Any, spec: tf.TensorSpec) -> tf.Tensor:
    import tensorflow as tf

    return tf.map_fn(function, items, fn_output_signature=spec, parallel_iterations=PARALLEL)


def _decode(data: tf.Tensor) -> tf.Tensor:
    import tensorflow as tf

    return tf.io.decode_image(data, channels=3, expand_animations=False)
