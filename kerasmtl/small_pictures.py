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
    import tensorflow as tf

    pixels = tf.TensorSpec((*size, 3), tf.float32)
    ways = way_of(files, size)

    def same() -> tf.Tensor:  # scaled all at once
        spec = tf.TensorSpec((*size, 3), tf.uint8)
        return scaled(
            _each(lambda one: tf.ensure_shape(_decode(one), spec.shape), files.data, spec)
        )

    def resized(resize: Callable[[tf.Tensor, tuple[int, int]], tf.Tensor]) -> tf.Tensor:
        return _each(
            lambda one: tf.ensure_shape(resize(_decode(one), size), pixels.shape),
            files.data,
            pixels,
        )

    branches = [
        lambda: _one_by_one(size)(files.data, ways, files.orientation),
        same,
        partial(resized, enlarged),
        partial(resized, reduced),
    ]
    smaller = tf.reduce_all(files.sides <= size, axis=-1)
    fit = [tf.reduce_all(files.sides == size), tf.reduce_all(smaller), tf.reduce_all(~smaller)]
    as_they_are = tf.reduce_all((ways == 0) & (files.orientation == 1))
    branch = tf.where(tf.reduce_any(fit) & as_they_are, tf.argmax(fit) + 1, 0)
    images = tf.switch_case(tf.cast(branch, tf.int32), branches)
    return tf.ensure_shape(images, (None, *size, 3))


@lru_cache(maxsize=16)
def _one_by_one(size: tuple[int, int]) -> Callable[..., tf.Tensor]:
    """From bytes, (batch,), ways and orientations to images, traced once.

    As a function of its own in the graph, which takes time only once it is called.
    """
    import tensorflow as tf

    pixels = tf.TensorSpec((*size, 3), tf.float32)

    def all_of_them(*given: tf.Tensor) -> tf.Tensor:
        return _each(lambda one: picture_of(*one, size), given, pixels)

    options = {"autograph": False, "experimental_attributes": {"_noinline": True}}
    return tf.function(all_of_them, **options)


def _each(function: Callable[..., tf.Tensor], items: Any, spec: tf.TensorSpec) -> tf.Tensor:
    import tensorflow as tf

    return tf.map_fn(function, items, fn_output_signature=spec, parallel_iterations=PARALLEL)


def _decode(data: tf.Tensor) -> tf.Tensor:
    import tensorflow as tf

    return tf.io.decode_image(data, channels=3, expand_animations=False)
