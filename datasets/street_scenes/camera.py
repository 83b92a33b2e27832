"""The camera: light, weather, blur and noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageFilter

from kerasmtl.datasets.street_scenes.canvas import SUPERSAMPLE, Canvas, Glow
from kerasmtl.datasets.street_scenes.palette import Dice, log_uniform


def photograph(canvas: Canvas, dice: Dice, rng: np.random.Generator) -> Image.Image:
    """Reduce the canvas to its final size under some light, weather and camera."""
    image = canvas.image.reduce(SUPERSAMPLE)
    scale = canvas.size / 128
    if dice.random() < 0.4:
        image = image.filter(ImageFilter.GaussianBlur(scale * log_uniform(dice, 0.3, 1.2)))
    light = np.asarray(image, np.float32)
    light = _daylight(light, canvas, dice, rng)
    if dice.random() < 0.25:
        fog = np.float32(dice.uniform(120, 225))
        down = np.linspace(dice.uniform(0.2, 0.5), dice.uniform(0.0, 0.35), canvas.size)
        share = down.astype(np.float32)[:, None, None]
        light = light + share * (fog - light)
    steady = min(1.0, float(light.mean()) / 110)
    noise = rng.standard_normal(light.shape[:2] + (1,), np.float32)
    light += np.float32(steady * log_uniform(dice, 1.0, 11.0)) * noise
    if dice.random() < 0.4:
        tint = np.roll(noise[::-1], 1, axis=1) * np.array([[[1.0, -0.4, -0.8]]], np.float32)
        light += np.float32(steady * log_uniform(dice, 1.0, 7.0)) * tint
    return Image.fromarray(np.clip(light, 0, 255, out=light).astype(np.uint8))


def _daylight(light: np.ndarray, canvas: Canvas, dice: Dice,
              rng: np.random.Generator) -> np.ndarray:  # fmt: skip
    """Time of day, white balance, contrast, and light falling unevenly."""
    hour = dice.random()
    gain = np.array([dice.uniform(0.88, 1.12) for _ in range(3)], np.float32)
    if hour < 0.16:
        gain *= np.array([0.5, 0.55, 0.72], np.float32) * np.float32(dice.uniform(0.8, 1.2))
    elif hour < 0.3:
        gain *= np.array([0.92, 0.68, 0.56], np.float32) * np.float32(dice.uniform(0.75, 1.1))
    elif hour < 0.4:
        gain *= np.float32(0.55)
    else:
        gain *= np.float32(dice.uniform(0.75, 1.2))
    coarse = rng.normal(1.0, dice.uniform(0.02, 0.12), (5, 5)).astype(np.float32)
    patches = Image.fromarray(coarse).resize((canvas.size, canvas.size), Image.Resampling.BICUBIC)
    middle = np.float32(light.mean())
    contrast = np.float32(dice.uniform(0.65, 1.1))
    light = (middle + (light - middle) * contrast) * np.asarray(patches)[:, :, None] * gain
    if hour < 0.3:
        _shine(light, canvas.glows[:12])
    elif hour < 0.4:
        _shine(light, [(dice.random(), 0.2, 0.45, (170, 160, 140))])
    return light


def _shine(light: np.ndarray, glows: Sequence[Glow]) -> None:
    """Add light around the lamps."""
    side = len(light)
    along = (np.arange(side, dtype=np.float32) + 0.5) / side
    for x, y, radius, colour in glows:
        spread = np.float32(-2.0 / max(radius, 0.01) ** 2)
        spot = np.exp(spread * (along[:, None] - y) ** 2) * np.exp(spread * (along - x) ** 2)
        light += spot[:, :, None] * (np.array(colour, np.float32) * np.float32(0.5))
