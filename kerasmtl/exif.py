"""Which way up a JPEG is shown, read from its EXIF segment by TensorFlow operations alone.

Source: CIPA DC-008 (Exif 2.32), sections 4.5 and 4.6.4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorflow as tf

ORIENTATION = 0x0112
LONG = 4  # the type of a number of four bytes
EXIF = b"Exif\0\0"
ROOM = 16  # zeros behind the end, so that a place just behind it can be looked at


def orientation_of_jpeg(head: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Where a JPEG's APP and comment segments end, and its orientation, 1 to 8; int32 ().

    Shapes: head (bytes,) uint8, the beginning of the file. Where EXIF is absent or makes no sense
    it is 1, as it stands.
    """
    import tensorflow as tf

    head = tf.pad(head, [[0, ROOM]])
    start, exif = _segments(head)
    orientation = tf.cond(
        exif > 0, lambda: _orientation(head[exif : exif + 2**16]), lambda: tf.constant(1)
    )
    return start, orientation


def turned(pixels: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Pixels (height, width, 3) as they are shown; 5 to 8 swap height and width."""
    import tensorflow as tf

    def among(*orientations: int) -> tf.Tensor:
        return tf.reduce_any(orientation == tf.constant(orientations))

    pixels = tf.cond(
        orientation > 4, lambda: tf.transpose(pixels, (1, 0, 2)), lambda: tf.identity(pixels)
    )
    down = tf.where(among(3, 4, 7, 8), -1, 1)
    right = tf.where(among(2, 3, 6, 7), -1, 1)
    return pixels[::down, ::right]


def _segments(head: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Where the APP and comment segments end, and where the first EXIF begins, -1 if none does."""
    import tensorflow as tf

    length = tf.size(head) - ROOM
    mark = tf.io.decode_raw(tf.constant(EXIF), tf.uint8)

    def more(at: tf.Tensor, exif: tf.Tensor) -> tf.Tensor:
        kind = head[at + 1]
        return (at < length) & (head[at] == 0xFF) & ((kind >= 0xE0) & (kind < 0xF0) | (kind == 254))

    def step(at: tf.Tensor, exif: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        ours = (head[at + 1] == 0xE1) & tf.reduce_all(head[at + 4 : at + 10] == mark)
        exif = tf.where(ours & (exif < 0), at + 10, exif)
        return tf.minimum(at + 2 + tf.maximum(_big(head, at + 2), 2), length), exif

    return tf.while_loop(more, step, (tf.constant(2), tf.constant(-1)))


def _orientation(tiff: tf.Tensor) -> tf.Tensor:
    import tensorflow as tf

    little = tf.reduce_all(tiff[:2] == ord("I"))
    big = tf.reduce_all(tiff[:2] == ord("M"))

    def number(raw: tf.Tensor) -> tf.Tensor:
        """Bytes (…, 2 or 4) as numbers (…)."""
        powers = 256 ** tf.range(tf.shape(raw, tf.int64)[-1])
        powers = tf.where(little, powers, powers[::-1])
        return tf.reduce_sum(tf.cast(raw, tf.int64) * powers, axis=-1)

    first = number(tiff[4:8])
    count = number(tiff[first : first + 2])
    entries = tiff[first + 2 : first + 2 + 12 * count]
    entries = tf.reshape(entries[: tf.size(entries) // 12 * 12], (-1, 12))
    ours = tf.boolean_mask(entries, number(entries[:, :2]) == ORIENTATION)[:1]
    long = number(ours[:, 2:4]) == LONG
    values = tf.where(long, number(ours[:, 8:12]), number(ours[:, 8:10]))
    value = tf.cast(tf.reduce_sum(values), tf.int32)
    known = (little | big) & (value >= 1) & (value <= 8)
    return tf.where(known, value, 1)


def _big(head: tf.Tensor, at: tf.Tensor | int) -> tf.Tensor:
    """The number in two bytes, the high one first, int32 ()."""
    import tensorflow as tf

    high, low = tf.unstack(tf.cast(head[at : at + 2], tf.int32), num=2)
    return high * 256 + low
