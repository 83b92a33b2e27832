"""`Image`, the input kind of image files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from kerasmtl.data.duplicates import identical_files, path_keys
from kerasmtl.data.image_files import image_fault
from kerasmtl.data.inputs.base import Input, Rows, Signature
from kerasmtl.data.leaks import near_duplicates
from kerasmtl.data.readers import LabelsFile, as_text
from kerasmtl.utils.tf import as_written, traced

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

_BLOCK = 64  # files that a thread looks at in one go
_HASHED: dict[str, str] = {}  # content hashes by the state of the files


@dataclass(frozen=True)
class Image(Input):
    """Image files: values are paths, model input is (batch, height, width, 3) float32 in [0, 1].

    Args:
        column: the column with the paths.
        root: the folder that the paths start from; by default the folder of the labels file.
        allow_outside: accept images outside of `root`.
        size: (height, width) of the model input, in pixels; `make_dataset` and a model set it.
        max_pixels: of one image that is served; larger ones are refused before they are decoded.

    Example:
        >>> import kerasmtl as kt
        >>> kt.data.Image(column="file").sized(224)
        Image(column='file', root=None, allow_outside=False, size=(224, 224), max_pixels=100000000)
    """

    kind: ClassVar[str] = "image"
    noun: ClassVar[str] = "images"
    in_memory: ClassVar[bool] = False
    has_backbone: ClassVar[bool] = True
    model_signature: ClassVar[str] = "pixels_float"
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    column: str = "image"
    root: str | os.PathLike[str] | None = None
    allow_outside: bool = False
    size: tuple[int, int] | None = None
    max_pixels: int = 100_000_000

    def __post_init__(self) -> None:
        if isinstance(self.max_pixels, bool) or not isinstance(self.max_pixels, int):
            raise ValueError(f"`max_pixels` must be a whole number, got {self.max_pixels!r}")
        if self.max_pixels < 1:
            raise ValueError(f"`max_pixels` must be 1 or more, got {self.max_pixels}")
        if self.size is not None:
            object.__setattr__(self, "size", tuple(self.size))

    def claimed(self) -> dict[str, tuple[str, ...]]:
        """The column of the paths."""
        return {"column": (self.column,)}

    def read(self, file: LabelsFile, taken: Mapping[str, set[str]]) -> Rows:
        """The paths as they are written; raises ValueError for one that leaves the root."""
        images = as_text(file.cells[[self.column]])[self.column].str.strip()
        root = os.path.abspath(self.root if self.root is not None else file.source.parent)
        _check_paths(images, file.source, self.column, root, self.allow_outside)
        paths = images.to_numpy(dtype=object)
        return Rows(replace(self, root=root), paths, paths)

    def adopt(self, values: Any) -> tuple[Image, np.ndarray]:
        """Paths from `root` on, by default the working folder."""
        root = os.path.abspath(self.root if self.root is not None else os.curdir)
        return replace(self, root=root), np.asarray([str(each) for each in values], dtype=object)

    def like(self, trained: Input) -> Image:
        """Columns and folders may change after a training: size and limit are the model's."""
        super().like(trained)
        return replace(self, size=trained.size, max_pixels=trained.max_pixels)

    def paths(self, values: Sequence[str] | np.ndarray) -> list[str]:
        """The images' paths below `root`."""
        return [os.path.join(self.root or "", value) for value in values]

    def known_by(self, names: np.ndarray) -> np.ndarray:
        """One key for all ways to write a path; no disk is read."""
        return path_keys(names, Path(self.root or ""))

    def identical(self, values: np.ndarray) -> np.ndarray:
        """The same number for files of the same bytes; an absent file is like no other."""
        return identical_files(self.paths(values))

    def identities(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """The same file under two names, and files of the same bytes."""
        paths = self.paths(values)
        real = np.array([os.path.realpath(path) for path in paths], dtype=object)
        return {"same file": real, "same bytes": identical_files(paths)}

    def near_duplicates(
        self, values: np.ndarray, parts: np.ndarray, progress: Callable[[], None] | None
    ) -> Iterable[tuple[int, int]]:
        """Pairs of images that look nearly the same, see `kerasmtl.data.leaks`."""
        return near_duplicates(self.paths(values), parts, progress)

    def absent(self, values: np.ndarray) -> dict[int, str]:
        """The rows whose file does not exist."""
        paths = enumerate(self.paths(values))
        return {row: "missing" for row, path in paths if not os.path.isfile(path)}

    def faults(
        self, values: np.ndarray, progress: Callable[[], None] | None = None
    ) -> dict[int, str]:
        """The rows whose image cannot be decoded, and why."""
        paths = self.paths(values)

        def check(rows: range) -> dict[int, str]:
            found = {}
            for row in rows:
                reason = image_fault(paths[row])
                if reason:
                    found[row] = reason
                if progress is not None:
                    progress()
            return found

        # Blocks, since every call that waits in the pool takes memory.
        ends = range(0, len(paths), _BLOCK)
        with ThreadPoolExecutor() as pool:
            blocks = pool.map(check, (range(at, min(at + _BLOCK, len(paths))) for at in ends))
            return {row: why for block in blocks for row, why in block.items()}

    def content_sha256(self, values: np.ndarray) -> str:
        """A hash over the bytes of all files; they are read once while they stay the same.

        Raises:
            FileNotFoundError: an image is absent.
        """
        import tensorflow as tf

        from kerasmtl.data.images import PREPROCESSING

        paths = self.paths(values)
        head = repr(("images", PREPROCESSING, tf.__version__, self.size, len(paths)))
        state = _state_of(paths) + head
        if state not in _HASHED:
            if len(_HASHED) > 15:
                _HASHED.clear()
            whole = hashlib.sha256(head.encode())
            with ThreadPoolExecutor() as threads:
                for digest in threads.map(_file_sha256, paths):
                    whole.update(digest)
            _HASHED[state] = whole.hexdigest()
        return _HASHED[state]

    def sized(self, size: Any) -> Image:
        """This input at (height, width), or at one number for both; None keeps the size.

        Raises:
            ValueError: not one or two positive whole numbers, or None without a size so far.
        """
        from kerasmtl.data.images import as_size

        if size is None and self.size is not None:
            return self
        return replace(self, size=as_size(size, "size"))

    def for_model(self, model: keras.Model) -> Image:
        """This input at the size of the model's input."""
        shape = model.input_shape
        if isinstance(shape, tuple) and len(shape) == 2:
            raise ValueError(
                "`model` must take images, got one that takes rows of numbers. Call with "
                "input=manifest.input, or input=kt.data.Table(features=[…])."
            )
        if not isinstance(shape, tuple) or len(shape) != 4 or None in shape[1:] or shape[3] != 3:
            raise ValueError(
                "`model` must take images of a fixed size, input (batch, height, width, 3), got "
                f"input shape {shape}. For other kinds pass input=…; models of several inputs have "
                "no signatures here: use keras.Model.export for them."
            )
        return replace(self, size=tuple(shape[1:3]))

    @property
    def spec(self) -> tf.TensorSpec:
        """(batch, height, width, 3) float32."""
        import tensorflow as tf

        return tf.TensorSpec((None, *(self.size or (None, None)), 3), tf.float32)

    def load(self, values: np.ndarray) -> np.ndarray:
        """The bytes of the files, (rows,)."""
        return np.array([Path(path).read_bytes() for path in self.paths(values)], dtype=object)

    def prepare(self, raw: tf.Tensor) -> tf.Tensor:
        """Bytes of images, (batch,), decoded and resized; the error names the bad ones."""
        from kerasmtl.data.images import prepare_images

        return prepare_images(raw, self.size, self.max_pixels)

    def batches(
        self,
        values: np.ndarray,
        rows: tf.data.Dataset,
        batch_size: int,
        deterministic: bool,
        where: Callable[[tf.Tensor], tf.Tensor],
    ) -> tf.data.Dataset:
        """As `Input.batches`, image by image, in parallel."""
        import tensorflow as tf

        paths, prepare = tf.constant(self.paths(values)), _prepared(self.size)

        def read(epoch: tf.Tensor, row: tf.Tensor) -> tuple[tf.Tensor, ...]:
            data = tf.io.read_file(tf.gather(paths, row))
            return epoch, prepare(data, where(row)), row

        images = rows.unbatch().map(as_written(read), tf.data.AUTOTUNE, deterministic=deterministic)
        return images.batch(batch_size)

    def augmentation(self, augment: Any) -> keras.layers.Layer | None:
        """See `kerasmtl.data.augmentation.as_layer`."""
        if augment is None:
            return None
        from kerasmtl.data.augmentation import as_layer

        return as_layer(augment, self.size)

    def signatures(self) -> list[Signature]:
        """`serving_default` takes bytes, `pixels` uint8 and `pixels_float` [0, 1] of any size."""
        import tensorflow as tf

        from kerasmtl.data.images import resize_image

        def resized(raw: dict[str, tf.Tensor]) -> tf.Tensor:
            return tf.map_fn(
                lambda image: resize_image(image, self.size),
                raw["pixels"],
                fn_output_signature=tf.TensorSpec((*self.size, 3), tf.float32),
            )

        def pixels(seed: int) -> dict[str, np.ndarray]:
            return {"pixels": np.random.default_rng(seed).integers(0, 256, (2, 33, 47, 3), "uint8")}

        def floats(seed: int) -> dict[str, np.ndarray]:
            return {"pixels": (pixels(seed)["pixels"] / 255).astype("float32")}

        def specs(name: str, shape: tuple[int | None, ...], dtype: tf.DType) -> dict[str, Any]:
            return {name: tf.TensorSpec(shape, dtype, name=name)}

        shape, files = (None, None, None, 3), specs("image_bytes", (None,), tf.string)
        return [
            Signature(
                "serving_default",
                files,
                lambda raw: self.prepare(raw["image_bytes"]),
                lambda seed: {"image_bytes": np.array(_example_files(seed), object)},
            ),
            Signature("pixels", specs("pixels", shape, tf.uint8), resized, pixels),
            Signature("pixels_float", specs("pixels", shape, tf.float32), resized, floats),
        ]

    def described(self) -> str:
        """Formats and limits."""
        height, width = self.size
        return (
            f"Images, which the model itself resizes to {height} x {width} pixels without keeping "
            "the aspect ratio: JPEG (EXIF orientation is applied), PNG, GIF (first frame), BMP, "
            "still WebP; grey, palette, CMYK and alpha (which is dropped) too. More than "
            f"{self.max_pixels} pixels are refused."
        )

    def config(self) -> dict[str, Any]:
        """As of every input; the folder is not part of it."""
        found = super().config()
        del found["root"]
        return found


@lru_cache(maxsize=16)
def _prepared(size: tuple[int, int]) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """`prepare_image` of bytes and a name, traced once for all data sets of this size."""
    from kerasmtl.data.images import prepare_image

    return traced(lambda data, name: prepare_image(data, size, name=name))


def _check_paths(
    images: pd.Series, source: Path, column: str, root: str, allow_outside: bool
) -> None:
    """Raise ValueError for a row without an image, or with one outside of the root."""
    unnamed = images.index[images == ""]
    if len(unnamed):
        raise ValueError(
            f"`images` in {source}, line {unnamed[0]}, column {column!r} must be the path of an "
            f"image, got an empty cell ({len(unnamed)} such rows)"
        )
    if allow_outside:
        return
    inside = os.path.join(root, "")
    for line, image in zip(images.index, images, strict=True):
        if image != "." and ".." not in image and ":" not in image and image[0] not in "/\\":
            continue  # a plain name below the root, without a look at every part of the path
        if not os.path.normpath(os.path.join(root, image)).startswith(inside):
            raise ValueError(
                f"`images` in {source}, line {line}, column {column!r} must be a path inside "
                f"{root}, got {image!r}. If that is meant: allow_outside=True (in a project: "
                "allow_outside = true; command line: --allow-outside)."
            )


def _state_of(paths: Sequence[str]) -> str:
    """A hash over what changes with a file: where it is on disk, its size and its times."""
    whole = hashlib.sha256()
    for path in paths:
        found = os.stat(path)
        now = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        whole.update(repr(now).encode())
    return whole.hexdigest()


def _file_sha256(path: str) -> bytes:
    return hashlib.sha256(Path(path).read_bytes()).digest()


def _example_files(seed: int) -> list[bytes]:
    """A JPEG, a PNG with an alpha channel and a grey JPEG: noise on smooth colours."""
    import tensorflow as tf

    rng = np.random.default_rng(seed)

    def pixels(height: int, width: int, channels: int) -> np.ndarray:
        coarse = rng.integers(0, 256, (3, 4, channels)).astype("float32")
        smooth = np.asarray(tf.image.resize(coarse, (height, width)))
        return (smooth + rng.normal(0, 4, smooth.shape)).clip(0, 255).astype("uint8")

    return [
        tf.io.encode_jpeg(pixels(48, 64, 3), quality=90).numpy(),
        tf.io.encode_png(pixels(40, 30, 4)).numpy(),
        tf.io.encode_jpeg(pixels(31, 57, 1), quality=90).numpy(),
    ]
