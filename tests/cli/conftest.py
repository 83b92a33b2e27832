"""Labels files for tests of commands."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def labels_csv(tmp_path):
    """Eight images and their labels; tasks `bright`, of which one is missing, and `odd`."""
    folder = tmp_path / "data"
    folder.mkdir()
    lines = ["image,bright,odd"]
    for number in range(8):
        pixels = np.full((20, 20, 3), 30 + 25 * number, "uint8")
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
        bright = "?" if number == 3 else int(number > 3)
        lines.append(f"{number}.jpg,{bright},{number % 2}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder / "labels.csv"
