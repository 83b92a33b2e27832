"""Finds trained backbones on this machine, without TensorFlow, Keras or a network.

Keras keeps downloaded weights in ~/.keras/models, TF-Hub modules are in `TFHUB_CACHE_DIR`, Kaggle
models in `KAGGLEHUB_CACHE`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kerasmtl.models.hub.cache import cache_root, is_module
from kerasmtl.models.hub.handles import is_whole, kaggle_cache

# Of keras.applications, what Keras calls the weights without the last layer; in the order in which
# a network is preferred: accurate for its size, and quick on a CPU.
WEIGHTS = {
    "EfficientNetV2B0": "efficientnetv2-b0_notop.h5",
    "EfficientNetB0": "efficientnetb0_notop.h5",
    "MobileNetV3Large": "weights_mobilenet_v3_large_224_1.0_float_no_top_v2.h5",
    "MobileNetV2": "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5",
    "MobileNetV3Small": "weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5",
    "MobileNet": "mobilenet_1_0_224_tf_no_top.h5",
    "ConvNeXtTiny": "convnext_tiny_notop.h5",
    "DenseNet121": "densenet121_weights_tf_dim_ordering_tf_kernels_notop.h5",
    "ResNet50V2": "resnet50v2_weights_tf_dim_ordering_tf_kernels_notop.h5",
    "ResNet50": "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
    "InceptionV3": "inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5",
    "Xception": "xception_weights_tf_dim_ordering_tf_kernels_notop.h5",
}
# Of modules, whose names say what they give: image feature vectors.
_VECTORS = re.compile(r"feature[-_]vector", re.IGNORECASE)
_FAMILIES = ("efficientnet", "mobilenet", "resnet", "inception")


@dataclass(frozen=True)
class AtHand:
    """A trained image backbone on this machine: its handle in project.toml, and where it is."""

    handle: str
    place: Path


def trained_backbones() -> list[AtHand]:
    """Find trained image backbones that need no network, the preferred one first.

    Example:
        >>> for found in trained_backbones():
        ...     assert found.place.exists()
    """
    modules = sorted([*_from_tfhub(), *_from_kaggle()], key=lambda found: _rank(found.handle))
    return [*_from_keras(), *modules]


def _rank(handle: str) -> tuple[int, str]:
    low = handle.lower()
    ranks = [number for number, family in enumerate(_FAMILIES) if family in low]
    return min(ranks, default=len(_FAMILIES)), handle


def _from_keras() -> Iterator[AtHand]:
    home = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras").expanduser()
    for name, file in WEIGHTS.items():
        weights = home / "models" / file
        if weights.is_file() and weights.stat().st_size > 1e6:  # an interrupted download is short
            yield AtHand(name, weights)


def _from_tfhub() -> Iterator[AtHand]:
    """Modules in our cache, whose entries have a note beside them that names the handle."""
    root = cache_root()
    for note in sorted(root.glob("*.descriptor.txt")) if root.is_dir() else ():
        entry = root / note.name.removesuffix(".descriptor.txt")
        named = re.search(r"^Module: (\S+)", note.read_text("utf-8", "replace"), re.MULTILINE)
        if named and _VECTORS.search(named[1]) and is_module(entry):
            yield AtHand(named[1], entry)


def _from_kaggle() -> Iterator[AtHand]:
    """Models in kagglehub's cache: models/OWNER/MODEL/FRAMEWORK/VARIATION/VERSION."""
    root = kaggle_cache() / "models"
    for folder in sorted(root.glob("*/*/*/*/*")) if root.is_dir() else ():
        path = folder.relative_to(root).as_posix()
        if is_whole(folder) and _VECTORS.search(path) and is_module(folder):
            yield AtHand(f"kaggle:{path}", folder)
