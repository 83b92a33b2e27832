"""Small images of random colours, with labels, made where they are needed."""

import numpy as np
from PIL import Image

LABELS = """\
image,cat,dog,bird
00.jpg,1,0,?
01.png,0,1,
02.jpg,1,,0
03.png,0,0,1
04.jpg,,1,1
05.png,1,0,0
06.jpg,0,?,?
07.png,1,1,0
08.jpg,0,,1
09.png,?,0,0
10.jpg,1,1,NA
11.png,0,0,1
"""
HEIGHT, WIDTH = 20, 24


def write_images(folder, names, size=(HEIGHT, WIDTH), seed=0):
    """Images of random smooth colours, in the formats of their names."""
    rng = np.random.default_rng(seed)
    for name in names:
        coarse = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype="uint8"))
        coarse.resize(size[::-1], Image.Resampling.BILINEAR).save(folder / name)


def write_image_folder(folder):
    """Twelve images, JPEG and PNG by turns, and `labels.csv`: three tasks, with missing labels."""
    names = [line.split(",")[0] for line in LABELS.splitlines()[1:]]
    write_images(folder, names)
    (folder / "labels.csv").write_text(LABELS)
    return folder
