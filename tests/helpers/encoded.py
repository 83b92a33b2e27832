"""Small images in every format that is decoded, and in every way that is refused."""

import io
import struct

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 24, 32
SIZE = (HEIGHT, WIDTH)


def image(height=HEIGHT, width=WIDTH, seed=0, noise=0.0):
    """Smooth colours, so that JPEG keeps them, which look different in every orientation."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (3, 4, 3), dtype="uint8")
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(smooth, "float32") + rng.normal(0, noise, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype("uint8"))


def encoded(image, suffix="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, suffix, **options)
    return buffer.getvalue()


def with_alpha():
    found = image()
    found.putalpha(image(seed=1).convert("L"))
    return found


def with_palette(colors=256):
    return image().convert("P", palette=Image.Palette.ADAPTIVE, colors=colors)


def of_sixteen_bits():
    return Image.fromarray(np.asarray(image().convert("L")).astype("uint16") * 257)


def exif(orientation, order="<", kind=3, before=0):
    """An EXIF block with the orientation behind other entries; kind 3 is SHORT, 4 is LONG."""
    value = struct.pack(order + ("H" if kind == 3 else "I"), orientation).ljust(4, b"\0")
    one = struct.pack(order + "I", 1)
    entries = [struct.pack(order + "HHI4s", 0x0100 + n, 4, 1, one) for n in range(before)]
    entries.append(struct.pack(order + "HHI4s", 0x0112, kind, 1, value))
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HI", 42, 8)
    body = struct.pack(order + "H", len(entries)) + b"".join(entries) + b"\0" * 4
    return b"Exif\0\0" + head + body


def segment(payload, kind=0xE1):
    return bytes([0xFF, kind]) + struct.pack(">H", len(payload) + 2) + payload


def with_segments(jpeg, *segments):
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


JPEG = encoded(image(), quality=95)
TURNED = with_segments(JPEG, segment(exif(6)))
FRAMES = {"save_all": True, "append_images": [image(seed=1), image(seed=2)]}

# Decoded exactly as Pillow decodes them.
EXACT = {
    "png": encoded(image(), "PNG"),
    "png with alpha": encoded(with_alpha(), "PNG"),
    "palette png": encoded(with_palette(16), "PNG"),
    "palette png with transparency": encoded(with_palette(), "PNG", transparency=3),
    "gray png with alpha": encoded(with_alpha().convert("LA"), "PNG"),
    "black and white png": encoded(image().convert("1"), "PNG"),
    "16-bit png": encoded(of_sixteen_bits(), "PNG"),
    "gif": encoded(with_palette(), "GIF"),
    "animated gif": encoded(image(), "GIF", **FRAMES),
    "bmp": encoded(image(), "BMP"),
    "bmp with alpha": encoded(with_alpha(), "BMP"),
    "webp": encoded(image(), "WEBP", lossless=True),
    "webp with alpha": encoded(with_alpha(), "WEBP", lossless=True, exact=True),
    "lossy webp": encoded(image(), "WEBP", quality=80),
    "bytes after the end": encoded(image(), "PNG") + b"\r\n" * 50,
    "1 x 1 png": encoded(image(1, 1), "PNG"),
    "1 x 1 webp": encoded(image(1, 1), "WEBP", lossless=True),
}
# As near as TensorFlow's fast inverse transform comes.
NEAR = {
    "jpeg": JPEG,
    "progressive jpeg": encoded(image(), quality=95, progressive=True),
    "gray jpeg": encoded(image().convert("L"), quality=95),
    "cmyk jpeg": with_segments(encoded(image().convert("CMYK"), quality=95), segment(exif(6))),
    "two images in one file": encoded(image(), "MPO", **FRAMES),
    "bytes after the end of a jpeg": JPEG + b"\0" * 9,
}
DECODED = EXACT | NEAR


def large(suffix="PNG", mode="1", **options):
    return encoded(Image.new(mode, (101, 50)), suffix, **options)


# What is refused, and how the reason begins: of files, and by the graph. Damage inside of a file is
# found by the decoder, whose message does not say which file it is: None.
REFUSED = {
    "empty": (b"", "empty"),
    "one byte": (b"x", "not an image"),
    "text": (b"image,a\nx.jpg,1\n" * 9, "not an image"),
    "sound": (b"RIFF\x24\0\0\0WAVEfmt " + b"\0" * 40, "not an image"),
    "tiff": (encoded(image(), "TIFF"), "not an image"),
    "start of a jpeg": (JPEG[:50], "truncated"),
    "cut jpeg": (JPEG[:-40], "truncated"),
    "jpeg without its end": (JPEG[:-2], "truncated"),
    "cut jpeg with a thumbnail": (
        with_segments(JPEG, segment(exif(1) + JPEG))[:-40],
        "truncated",
    ),
    "cut png": (encoded(image(), "PNG")[:-40], "truncated"),
    "cut bmp": (encoded(image(), "BMP")[:-40], "truncated"),
    "cut webp": (encoded(image(), "WEBP")[:-40], None),
    "cut gif": (encoded(with_palette(), "GIF")[:-40], None),
    "damaged png": (b"!".join([EXACT["png"][:200], EXACT["png"][201:]]), None),
    "gif without a size": (
        EXACT["gif"][:6] + bytes(4) + EXACT["gif"][10:],
        "damaged (width or height is 0)",
    ),
    "animated webp": (encoded(image(), "WEBP", **FRAMES), "an animated WebP"),
    "palette bmp": (encoded(with_palette(), "BMP"), "a BMP with a palette"),
}
