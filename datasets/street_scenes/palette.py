"""Colours of things in a street, and how they vary."""

from __future__ import annotations

import math
import random

Colour = tuple[int, int, int]
Dice = random.Random

WHITE, BLACK = (240, 240, 236), (24, 24, 28)
SIGN_RED = (196, 30, 38)
GREYS = [(60, 62, 66), (96, 98, 102), (132, 134, 136), (40, 42, 46), (158, 158, 154)]
VIVID = [
    (198, 36, 40), (226, 116, 30), (236, 196, 52), (70, 140, 62), (34, 100, 74), (44, 92, 170),
    (94, 160, 206), (112, 62, 134), (206, 110, 140), (122, 74, 46), (232, 228, 218), (30, 32, 40),
    (150, 26, 40), (118, 122, 128), (200, 186, 150), (24, 48, 92),
]  # fmt: skip
WALLS = [
    (170, 120, 98), (196, 176, 146), (150, 148, 144), (206, 198, 184), (126, 96, 84),
    (172, 178, 184), (140, 72, 62), (214, 186, 128), (112, 120, 128), (184, 150, 150),
]  # fmt: skip
SKIN = [(244, 208, 180), (226, 178, 144), (188, 132, 98), (140, 92, 64), (92, 60, 44)]
HAIR = [(36, 28, 24), (84, 56, 36), (150, 106, 62), (204, 172, 112), (140, 138, 136), (120, 52, 34)]
LEAVES = [(58, 98, 46), (84, 124, 52), (42, 80, 56), (120, 132, 58), (160, 116, 48), (150, 64, 44)]
LENSES = [(236, 52, 40), (250, 176, 46), (62, 214, 122)]


def shade(colour: Colour, factor: float) -> Colour:
    """The colour made darker (factor below 1) or lighter."""
    r, g, b = colour
    return min(255, int(r * factor)), min(255, int(g * factor)), min(255, int(b * factor))


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """`first` with a share of `second` in it."""
    keep = 1.0 - share
    r, g, b = (int(keep * a + share * c) for a, c in zip(first, second, strict=True))
    return r, g, b


def vary(dice: Dice, colour: Colour, spread: int = 18) -> Colour:
    """A colour near the given one."""
    r, g, b = (min(255, max(0, c + dice.randint(-spread, spread))) for c in colour)
    return r, g, b


def log_uniform(dice: Dice, low: float, high: float) -> float:
    """A number whose logarithm is uniform between the two bounds."""
    return math.exp(dice.uniform(math.log(low), math.log(high)))
