"""Example data and a feature extractor that come with the package, found by name.

"tiny" is for trying things out and for tests, since it needs no network; `TOY` is the note that
`kerasmtl new` and a run print where it is used on other data. The data sets are those that
`kerasmtl new` and project.toml know by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

DATASETS = {
    "street_scenes": "street_scenes/labels.csv",
    "pump_faults": "pump_faults/labels.csv",
}


@dataclass(frozen=True)
class Extractor:
    """An embedded SavedModel, and the image size it was trained for, (height, width)."""

    folder: str
    image_size: tuple[int, int]


EXTRACTORS = {"tiny": Extractor("tiny/1", (128, 128))}
# What its users need to know; the scores are means of benchmarks/street_photos.py.
TOY = (
    "tiny was trained on drawings: on 230 street photographs it reached a macro AUC of 0.650, "
    "MobileNetV1-0.25 with ImageNet weights 0.847. For photographs write backbone = "
    '"MobileNetV2" in project.toml (9 MB, downloaded once), or name any trained module.'
)


def dataset_csv(name: str) -> Path:
    """Return the labels.csv of an embedded data set."""
    return Path(str(files("kerasmtl.datasets"))) / DATASETS[name]


def extractor_folder(name: str) -> Path:
    """Return the folder of an embedded SavedModel."""
    return Path(str(files("kerasmtl.saved_models"))) / EXTRACTORS[name].folder
