"""A folder of real photographs as strangers have them: of every size, shape, depth and format."""

from pathlib import Path

import numpy as np
from modules import shared
from PIL import Image

COUNT = 80
SKIES = ("clear", "clouds", "rain")
LARGE, SMALL = (640, 480), (60, 45)


def write_photographs(folder: Path) -> Path:
    """Write 80 images made from real photographs, and labels.csv with missing labels.

    Large ones are resized down and small ones up; portrait, grayscale, 16 bits, CMYK, turned by
    EXIF, a palette, an alpha channel, GIF, BMP and WebP are among them. Columns: `bright` and
    `wide` (1, 0, ?), `sky` (three classes), `light` (a number), each with cells missing, and
    `split`.
    """
    source = shared("data", "street_photos", "images")
    photos = sorted(source.glob("*.jpg"))[:COUNT]
    images = folder / "images"
    images.mkdir(parents=True)
    rng = np.random.default_rng(0)
    names, lights = [], []
    for number, path in enumerate(photos):
        with Image.open(path) as photo:
            image = photo.convert("RGB").resize(LARGE if number % 3 == 0 else SMALL)
        names.append(_save(image, images, number))
        lights.append(float(np.asarray(image.convert("L")).mean()))
    parts = [("train", "train", "val", "test")[number // 2 % 4] for number in range(COUNT)]
    of = {part: [lights[n] for n in range(COUNT) if parts[n] == part] for part in parts}
    lines = ["image,split,bright,wide,sky,light"]
    for number, (name, split, light) in enumerate(zip(names, parts, lights, strict=True)):
        bright = int(light > np.median(of[split]))  # so that each part has both answers
        cells = [bright, number % 2, SKIES[number % 3], f"{light:.2f}"]
        known = [str(cell) if rng.random() > 0.15 else "?" for cell in cells]
        lines.append(",".join([name, split, *known]))
    labels = folder / "labels.csv"
    labels.write_text("\n".join(lines) + "\n")
    return labels


def _save(image: Image.Image, folder: Path, number: int) -> str:
    """Save in one of twelve ways, by turns; returns the name from the folder of the labels."""
    way = number % 12
    name, options = f"{number:02}.jpg", {}
    if way == 1:  # portrait
        image = image.rotate(90, expand=True)
    elif way == 2:
        image = image.convert("L")
    elif way == 3:  # 16 bits
        name, grey = f"{number:02}.png", np.asarray(image.convert("L")).astype("uint16") * 257
        image = Image.fromarray(grey)
    elif way == 4:
        image = image.convert("CMYK")
    elif way == 5:  # a telephone's: stored lying, shown upright
        exif = Image.Exif()
        exif[0x0112] = 6
        image, options = image.rotate(90, expand=True), {"exif": exif}
    elif way == 6:
        name, image = f"{number:02}.png", image.convert("P")
    elif way == 7:
        name, image = f"{number:02}.png", image.convert("RGBA")
    elif way == 8:
        name = f"{number:02}.gif"
    elif way == 9:
        name = f"{number:02}.bmp"
    elif way == 10:
        name = f"{number:02}.webp"
    elif way == 11:
        options = {"progressive": True, "quality": 60}
    image.save(folder / name, **options)
    return f"images/{name}"
