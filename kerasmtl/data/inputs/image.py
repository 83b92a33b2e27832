"""`Image`, the input kind of image files.

It ties together what concerns images: `image_files` finds invalid ones with Pillow, `images`
decodes in the graph, `leaks` looks for near-duplicates, and `augmentation` varies them. The values
of a manifest are paths; pixels are only in memory batch by batch, or in a cache. TensorFlow is
imported in the methods that need it: a labels file is read and checked without it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from kerasmtl.data.duplicates import by_threads, identical_files, path_keys
from kerasmtl.data.image_files import image_fault
from kerasmtl.data.inputs.base import Input, Rows, Signature
from kerasmtl.data.leaks import near_duplicates
from kerasmtl.data.readers import LabelsFile, as_text
from kerasmtl.utils.files import file_sha256
from kerasmtl.utils.tf import as_written, traced
from kerasmtl.utils.validation import check_count

if TYPE_CHECKING:
    import keras
    import tensorflow as tf


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
    suffixes: ClassVar[tuple[str, ...]] = tuple(
        ".jpg .jpeg .png .gif .bmp .webp .tif .tiff".split()
    )
    in_memory: ClassVar[bool] = False
    has_backbone: ClassVar[bool] = True
    settings: ClassVar[frozenset[str]] = frozenset(
        {
            *("backbone", "backbone_sha256", "input_range", "image_size"),
            *("plan", "fine_tune_epochs", "fine_tune_learning_rate", "augment", "flip"),
        }
    )
    model_signature: ClassVar[str] = "pixels_float"
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    column: str = "image"
    root: str | os.PathLike[str] | None = None
    allow_outside: bool = False
    size: tuple[int, int] | None = None
    max_pixels: int = 100_000_000

    def __post_init__(self) -> None:
        check_count("max_pixels", self.max_pixels)
        if self.size is not None:
            object.__setattr__(self, "size", tuple(self.size))

    def claimed(self) -> dict[str, tuple[str, ...]]:
        """Return the column of the paths."""
        return {"column": (self.column,)}

    def read(self, file: LabelsFile, taken: set[str]) -> Rows:
        """Read the paths as they are written.

        Args:
            file: the cells of the labels file.
            taken: not used: the column of the paths is named.

        Returns:
            This input with an absolute root, and the paths, (rows,) str, as values and as names.

        Raises:
            ValueError: a row has no path, or one that leaves the root; names its line.
        """
        images = as_text(file.cells[[self.column]])[self.column].str.strip()
        root = self._root(file.source.parent)
        wrong, must = images[images == ""], "the path of an image"
        if wrong.empty and not self.allow_outside:
            # With a separator at the end, or /data would count as the root of /database. Symbolic
            # links are not resolved: what is compared is the path as written, without "..".
            inside = os.path.join(root, "")
            whole = [os.path.normpath(os.path.join(root, image)) for image in images]
            wrong = images[[not path.startswith(inside) for path in whole]]
            must = f"a path inside {root} (or allow_outside=True; command line: --allow-outside)"
        if len(wrong):
            raise ValueError(
                f"`images` in {file.source}, line {wrong.index[0]}, column {self.column!r} must be "
                f"{must}, got {wrong.iloc[0]!r} ({len(wrong)} such rows)"
            )
        paths = images.to_numpy(dtype=object)
        return Rows(replace(self, root=root), paths, paths)

    def adopt(self, values: Any) -> tuple[Image, np.ndarray]:
        """Take paths that start from `root`, by default the working folder.

        Args:
            values: (rows,) str or `os.PathLike`.

        Returns:
            This input with an absolute root, and the paths, (rows,) str.
        """
        paths = np.asarray([str(each) for each in values], dtype=object)
        return replace(self, root=self._root(os.curdir)), paths

    def _root(self, default: str | os.PathLike[str]) -> str:
        """Return the folder that paths start from, absolute."""
        return os.path.abspath(default if self.root is None else self.root)

    def like(self, trained: Input) -> Image:
        """Return this input at the model's size and limit; columns and folders may change."""
        super().like(trained)
        return replace(self, size=trained.size, max_pixels=trained.max_pixels)

    def paths(self, values: Sequence[str] | np.ndarray) -> list[str]:
        """Return the paths of the files, from `root` on."""
        return [os.path.join(self.root or "", value) for value in values]

    def known_by(self, names: np.ndarray) -> np.ndarray:
        """Return one key for all ways to write a path; reads no disk."""
        return path_keys(names, Path(self.root or ""))

    def identical(self, values: np.ndarray) -> np.ndarray:
        """Give files numbers by their bytes, (rows,) int; an absent file is like no other."""
        return identical_files(self.paths(values))

    def identities(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """Return keys for the same file under two names, and for files of the same bytes.

        Args:
            values: (rows,) paths.

        Returns:
            By kind of leak, keys (rows,).
        """
        paths = self.paths(values)
        real = np.array([os.path.realpath(path) for path in paths], dtype=object)
        return {"same file": real, "same bytes": identical_files(paths)}

    def near_duplicates(
        self, values: np.ndarray, parts: np.ndarray, progress: Callable[[], None] | None
    ) -> Iterable[tuple[int, int]]:
        """Find pairs of images that look nearly the same, see `kerasmtl.data.leaks`.

        Args:
            values: (rows,) paths.
            parts: (rows,), the part of each row; only pairs in different parts are found.
            progress: called per image.
        """
        return near_duplicates(self.paths(values), parts, progress)

    def absent(self, values: np.ndarray) -> dict[int, str]:
        """Find the rows whose file does not exist."""
        paths = enumerate(self.paths(values))
        return {row: "missing" for row, path in paths if not os.path.isfile(path)}

    def faults(
        self, values: np.ndarray, progress: Callable[[], None] | None = None
    ) -> dict[int, str]:
        """Find the rows whose image cannot be decoded.

        Args:
            values: (rows,) paths; each file is read and decoded whole.
            progress: called per image, from several threads.

        Returns:
            By row, the reason, such as "missing" or "truncated".
        """

        def check(path: str) -> str | None:
            reason = image_fault(path)
            if progress is not None:
                progress()
            return reason

        reasons = by_threads(check, self.paths(values))
        return {row: why for row, why in enumerate(reasons) if why}

    def content_sha256(self, values: np.ndarray) -> str:
        """Hash the bytes of all files, in order, with what prepares them: size, code, TensorFlow.

        Digests are kept per process, and files read again when their inode, size or times have
        changed: a run asks for the hash several times.

        Args:
            values: (rows,) paths.

        Raises:
            FileNotFoundError: an image is absent.
        """
        import tensorflow as tf

        from kerasmtl.data.images import PREPROCESSING

        def digest(path: str) -> str:
            of = os.stat(path)
            return _sha256(path, of.st_ino, of.st_size, of.st_mtime_ns, of.st_ctime_ns)

        head = repr(("images", PREPROCESSING, tf.__version__, self.size, len(values)))
        digests = by_threads(digest, self.paths(values))
        return hashlib.sha256("".join([head, *digests]).encode()).hexdigest()

    def sized(self, size: Any) -> Image:
        """Return this input at (height, width), or at one number for both; None keeps the size.

        Raises:
            ValueError: not one or two positive whole numbers, or None without a size so far.
        """
        from kerasmtl.data.images import as_size

        if size is None and self.size is not None:
            return self
        return replace(self, size=as_size(size, "size"))

    def for_model(self, model: keras.Model) -> Image:
        """Return this input at the size of the model's input.

        Args:
            model: with one input, (batch, height, width, 3), whose sides are fixed.

        Raises:
            ValueError: the model takes something else.
        """
        shape = model.input_shape
        if not isinstance(shape, tuple) or len(shape) != 4 or None in shape[1:] or shape[3] != 3:
            raise ValueError(
                "`model` must take images of a fixed size, input (batch, height, width, 3), got "
                f"input shape {shape}. For another kind call with input=manifest.input, such as "
                "kt.data.Table(…); for several inputs use keras.Model.export."
            )
        return replace(self, size=tuple(shape[1:3]))

    @property
    def spec(self) -> tf.TensorSpec:
        """(batch, height, width, 3) float32."""
        import tensorflow as tf

        return tf.TensorSpec((None, *(self.size or (None, None)), 3), tf.float32)

    def load(self, values: np.ndarray) -> np.ndarray:
        """Read the files whole.

        Args:
            values: (rows,) paths.

        Returns:
            (rows,) bytes, as objects: NumPy's own strings would lose zeros at their end.

        Raises:
            OSError: a file cannot be read.
        """
        return np.array([Path(path).read_bytes() for path in self.paths(values)], dtype=object)

    def prepare(self, raw: tf.Tensor) -> tf.Tensor:
        """Decode and resize the bytes of images; the error names the bad ones.

        Args:
            raw: (batch,) string.

        Returns:
            (batch, height, width, 3) float32, RGB in [0, 1].
        """
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
        """Return batches as `Input.batches` says, reading image by image, in parallel."""
        import tensorflow as tf

        paths, prepare = tf.constant(self.paths(values)), _prepared(self.size)

        def read(epoch: tf.Tensor, row: tf.Tensor) -> tuple[tf.Tensor, ...]:
            """Read and prepare one image; the labels are gathered later, by its row."""
            data = tf.io.read_file(tf.gather(paths, row))
            return epoch, prepare(data, where(row)), row

        # Row by row, unlike tables: to read and decode one image outweighs what a dataset's element
        # costs, and rows of different batches are decoded at the same time.
        images = rows.unbatch().map(as_written(read), tf.data.AUTOTUNE, deterministic=deterministic)
        return images.batch(batch_size)

    def augmentation(self, augment: Any) -> keras.layers.Layer | None:
        """Return the layer that `kerasmtl.data.augmentation.as_layer` makes."""
        if augment is None:
            return None
        from kerasmtl.data.augmentation import as_layer

        return as_layer(augment, self.size)

    def signatures(self) -> list[Signature]:
        """Return `serving_default` of bytes, `pixels` (uint8) and `pixels_float` of any size."""
        import tensorflow as tf

        from kerasmtl.data.images import resize_image

        def resized(raw: dict[str, tf.Tensor]) -> tf.Tensor:
            return tf.map_fn(
                lambda image: resize_image(image, self.size),
                raw["pixels"],
                fn_output_signature=tf.TensorSpec((*self.size, 3), tf.float32),
            )

        def pixels(seed: int) -> np.ndarray:
            return np.random.default_rng(seed).integers(0, 256, (2, 33, 47, 3), "uint8")

        files = {"image_bytes": tf.TensorSpec((None,), tf.string, name="image_bytes")}
        uint8, floats = (
            {"pixels": tf.TensorSpec((None, None, None, 3), dtype, name="pixels")}
            for dtype in (tf.uint8, tf.float32)
        )
        return [
            Signature(
                "serving_default",
                files,
                lambda raw: self.prepare(raw["image_bytes"]),
                lambda seed: {"image_bytes": np.array(_example_files(seed), object)},
            ),
            Signature("pixels", uint8, resized, lambda seed: {"pixels": pixels(seed)}),
            Signature(
                "pixels_float",
                floats,
                resized,
                lambda seed: {"pixels": (pixels(seed) / 255).astype("float32")},
            ),
        ]

    def described(self) -> str:
        """Say which formats and sizes are taken."""
        height, width = self.size
        return (
            f"Images, which the model itself resizes to {height} x {width} pixels without keeping "
            "the aspect ratio: JPEG (EXIF orientation is applied), PNG, GIF (first frame), BMP, "
            "still WebP; grey, palette, CMYK and alpha (which is dropped) too. More than "
            f"{self.max_pixels} pixels are refused."
        )

    def config(self) -> dict[str, Any]:
        """Return this input as JSON takes it, without the folder.

        The folder belongs to the machine of the training, and may say more than an export should.
        """
        found = super().config()
        del found["root"]
        return found


@lru_cache(maxsize=2**17)
def _sha256(path: str, *state: int) -> str:
    """Hash a file, which is read again only once its state has changed."""
    return file_sha256(path)


@lru_cache(maxsize=16)
def _prepared(size: tuple[int, int]) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Return `prepare_image` of bytes and a name, traced once for all data sets of this size."""
    from kerasmtl.data.images import prepare_image

    return traced(lambda data, name: prepare_image(data, size, name=name))


def _example_files(seed: int) -> list[bytes]:
    """Make a JPEG, a PNG with an alpha channel and a grey JPEG: noise on smooth colours."""
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
