"""Draw cluttered images of everyday objects, for training the embedded extractor.

None of the four labels of the street scenes is among the objects, nor a part of one: no people,
no cars, no octagons, no traffic lights. Places, street furniture and the camera are those of the
street scenes.
"""

from __future__ import annotations

import math
import random

import numpy as np
from PIL import Image

from kerasmtl.datasets.street_scenes.camera import photograph
from kerasmtl.datasets.street_scenes.canvas import CLEARLY_SEEN, HARDLY_SEEN, Brush, Canvas, Drawer
from kerasmtl.datasets.street_scenes.furniture import (
    bench,
    bicycle,
    bin_,
    dog,
    hydrant,
    lamp_post,
    round_sign,
    square_sign,
    tree,
    triangular_sign,
)
from kerasmtl.datasets.street_scenes.palette import (
    BLACK,
    GREYS,
    LEAVES,
    VIVID,
    WALLS,
    WHITE,
    Dice,
    log_uniform,
    mix,
    shade,
    vary,
)
from kerasmtl.datasets.street_scenes.place import scenery

HALF_HIDDEN = -1
LETTERS = "AEFHKLMNVXZ"


def _paint(dice: Dice) -> tuple[int, int, int]:
    return vary(dice, dice.choice(VIVID + WALLS + GREYS))


def house(brush: Brush, dice: Dice) -> None:
    """A small house with a pitched roof."""
    wall, roof = _paint(dice), _paint(dice)
    brush.box(-0.45, 0, 0.45, 0.58, wall)
    brush.polygon([(-0.55, 0.56), (0, 1.0), (0.55, 0.56)], roof)
    brush.box(0.22, 0.75, 0.32, 1.0, shade(roof, 0.7))
    brush.box(-0.1, 0, 0.1, 0.34, shade(roof, 0.8))
    for x in (-0.32, 0.18):
        brush.box(x, 0.22, x + 0.15, 0.42, (206, 222, 232))


def sailboat(brush: Brush, dice: Dice) -> None:
    """A boat with two sails."""
    hull, sail = _paint(dice), mix(_paint(dice), WHITE, 0.5)
    brush.polygon([(-0.5, 0.2), (-0.35, 0), (0.35, 0), (0.55, 0.22)], hull)
    brush.line([(0, 0.2), (0, 1.0)], 0.03, GREYS[0])
    brush.polygon([(0.03, 0.26), (0.03, 0.98), (0.45, 0.28)], sail)
    brush.polygon([(-0.04, 0.26), (-0.04, 0.86), (-0.36, 0.28)], shade(sail, 0.85))


def bird(brush: Brush, dice: Dice) -> None:
    """A bird standing on its legs."""
    body = _paint(dice)
    brush.line([(-0.05, 0.35), (-0.05, 0)], 0.04, (200, 140, 50))
    brush.line([(0.1, 0.35), (0.1, 0)], 0.04, (200, 140, 50))
    brush.polygon([(-0.3, 0.5), (-0.75, 0.36), (-0.7, 0.56)], shade(body, 0.7))
    brush.oval(0, 0.52, 0.4, 0.24, body)
    brush.oval(-0.08, 0.54, 0.26, 0.13, shade(body, 0.75))
    brush.disc(0.34, 0.82, 0.17, body)
    brush.polygon([(0.48, 0.87), (0.72, 0.8), (0.48, 0.75)], (230, 160, 40))
    brush.disc(0.4, 0.86, 0.035, BLACK)


def fish(brush: Brush, dice: Dice) -> None:
    """A fish from the side."""
    body = _paint(dice)
    brush.polygon([(-0.55, 0.5), (-1.0, 0.85), (-0.9, 0.5), (-1.0, 0.15)], shade(body, 0.8))
    brush.polygon([(-0.3, 0.8), (0.1, 1.05), (0.3, 0.8)], shade(body, 0.75))
    brush.oval(0, 0.5, 0.7, 0.38, body)
    for k in range(dice.randint(0, 3)):
        brush.line([(-0.2 + 0.22 * k, 0.2), (-0.2 + 0.22 * k, 0.8)], 0.07, shade(body, 1.25))
    brush.disc(0.42, 0.6, 0.08, WHITE)
    brush.disc(0.44, 0.6, 0.04, BLACK)


def cat(brush: Brush, dice: Dice) -> None:
    """A cat that sits."""
    fur = _paint(dice)
    brush.line([(0.2, 0.08), (0.5, 0.1), (0.55, 0.4)], 0.09, shade(fur, 0.8))
    brush.oval(0, 0.3, 0.3, 0.32, fur)
    brush.oval(0, 0.72, 0.25, 0.21, shade(fur, 1.08))
    for side in (-1, 1):
        brush.polygon([(side * 0.24, 0.74), (side * 0.23, 1.02), (side * 0.06, 0.9)], fur)
        brush.disc(side * 0.09, 0.75, 0.045, (210, 220, 90))
        brush.oval(side * 0.12, 0.06, 0.1, 0.07, shade(fur, 1.2))
    brush.polygon([(-0.04, 0.68), (0.04, 0.68), (0, 0.63)], BLACK)


def horse(brush: Brush, dice: Dice) -> None:
    """A horse or, with a long neck, a giraffe."""
    fur = _paint(dice)
    tall = dice.random() < 0.4
    step = dice.uniform(0, 0.1)
    back = 0.48 if tall else 0.66
    for x in (-0.34, -0.22, 0.18, 0.3):
        brush.limb([(x, back), (x + step, back / 2), (x - step / 2, 0.02)], 0.065, shade(fur, 0.8))
    brush.oval(0, back, 0.4, 0.15, fur)
    brush.polygon([(0.18, back + 0.06), (0.42, 0.95), (0.56, 0.9), (0.38, back - 0.04)], fur)
    brush.oval(0.57, 0.89, 0.17, 0.075, fur)
    brush.line([(0.24, back + 0.1), (0.4, 0.97)], 0.06, shade(fur, 0.5))
    brush.line([(-0.38, back + 0.06), (-0.52, back - 0.22)], 0.06, shade(fur, 0.5))
    if tall:
        for _ in range(6):
            brush.disc(dice.uniform(-0.3, 0.3), back + dice.uniform(-0.09, 0.09), 0.04,
                       shade(fur, 0.55))  # fmt: skip


def penguin(brush: Brush, dice: Dice) -> None:
    """A penguin."""
    coat = shade(_paint(dice), 0.5)
    brush.oval(0, 0.45, 0.27, 0.44, coat)
    brush.oval(0, 0.4, 0.19, 0.36, WHITE)
    for side in (-1, 1):
        spread = dice.uniform(0.02, 0.2)
        brush.polygon([(side * 0.2, 0.68), (side * (0.3 + spread), 0.3), (side * 0.22, 0.4)], coat)
        brush.oval(side * 0.12, 0.03, 0.11, 0.04, (236, 150, 40))
    brush.disc(0, 0.84, 0.16, coat)
    brush.polygon([(-0.05, 0.83), (0.05, 0.83), (0.0, 0.74)], (236, 150, 40))
    brush.disc(-0.06, 0.88, 0.03, WHITE)
    brush.disc(0.06, 0.88, 0.03, WHITE)


def cup(brush: Brush, dice: Dice) -> None:
    """A cup with a handle."""
    colour = _paint(dice)
    brush.ring(0.42, 0.5, 0.24, 0.09, shade(colour, 0.8))
    brush.polygon([(-0.32, 0.05), (-0.42, 0.95), (0.42, 0.95), (0.32, 0.05)], colour)
    brush.oval(0, 0.95, 0.42, 0.09, shade(colour, 0.55))
    if dice.random() < 0.5:
        brush.box(-0.37, 0.4, 0.37, 0.6, _paint(dice))


def teapot(brush: Brush, dice: Dice) -> None:
    """A teapot with a spout and a lid."""
    colour = _paint(dice)
    brush.ring(-0.5, 0.45, 0.24, 0.09, shade(colour, 0.75))
    brush.polygon([(0.3, 0.2), (0.85, 0.8), (0.72, 0.85), (0.3, 0.55)], shade(colour, 0.85))
    brush.oval(0, 0.4, 0.5, 0.4, colour)
    brush.arc(0, 0.7, 0.3, 0.16, 0, math.pi, shade(colour, 0.8))
    brush.disc(0, 0.92, 0.08, shade(colour, 0.6))


def chair(brush: Brush, dice: Dice) -> None:
    """A chair with four legs and a back."""
    wood = _paint(dice)
    for x in (-0.28, -0.12, 0.18, 0.32):
        brush.line([(x, 0.45), (x * 1.1, 0)], 0.06, shade(wood, 0.75))
    brush.polygon([(-0.34, 0.4), (-0.22, 0.52), (0.38, 0.52), (0.34, 0.4)], wood)
    brush.line([(-0.26, 0.5), (-0.32, 1.0)], 0.07, wood)
    brush.line([(0.3, 0.5), (0.26, 1.0)], 0.07, wood)
    for y in (0.68, 0.82, 0.95):
        brush.line([(-0.3, y), (0.28, y)], 0.07, shade(wood, 1.1))


def clock(brush: Brush, dice: Dice) -> None:
    """A round clock with two hands, or an alarm clock on feet."""
    rim, hand = _paint(dice), dice.uniform(0, 2 * math.pi)
    if dice.random() < 0.5:
        for side in (-1, 1):
            brush.disc(side * 0.3, 0.9, 0.14, rim)
            brush.line([(side * 0.2, 0.2), (side * 0.34, 0)], 0.08, rim)
    brush.disc(0, 0.5, 0.46, rim)
    brush.disc(0, 0.5, 0.38, WHITE)
    for k in range(12):
        u, v = math.cos(k * math.pi / 6), math.sin(k * math.pi / 6)
        brush.line([(0.3 * u, 0.5 + 0.3 * v), (0.35 * u, 0.5 + 0.35 * v)], 0.03, BLACK)
    brush.line([(0, 0.5), (0.3 * math.cos(hand), 0.5 + 0.3 * math.sin(hand))], 0.04, BLACK)
    brush.line([(0, 0.5), (0.2 * math.cos(hand * 5), 0.5 + 0.2 * math.sin(hand * 5))], 0.06, BLACK)


def key(brush: Brush, dice: Dice) -> None:
    """A key, its bow up."""
    metal = vary(dice, dice.choice([(206, 168, 60), (170, 170, 176), (120, 80, 50)]))
    brush.ring(0, 0.8, 0.16, 0.08, metal)
    brush.line([(0, 0.64), (0, 0.02)], 0.08, metal)
    for y in (0.06, 0.16, 0.26):
        brush.line([(0, y), (dice.uniform(0.1, 0.22), y)], 0.06, metal)


def umbrella(brush: Brush, dice: Dice) -> None:
    """An open umbrella with a hooked handle."""
    first, second = _paint(dice), _paint(dice)
    brush.line([(0, 0.6), (0, 0.08), (0.06, 0.0), (0.14, 0.06)], 0.04, GREYS[0])
    for k in range(6):
        start = math.pi * k / 6
        brush.polygon(
            [(0, 0.55), (0.55 * math.cos(start), 0.55 + 0.42 * math.sin(start)),
             (0.55 * math.cos(start + 0.27), 0.55 + 0.44 * math.sin(start + 0.27)),
             (0.55 * math.cos(start + 0.53), 0.55 + 0.42 * math.sin(start + 0.53))],
            second if k % 2 else first)  # fmt: skip
    brush.line([(0, 0.96), (0, 1.03)], 0.03, GREYS[0])


def flower(brush: Brush, dice: Dice) -> None:
    """A flower on a stalk with two leaves."""
    petal, leaf = _paint(dice), vary(dice, dice.choice(LEAVES[:4]))
    brush.line([(0, 0), (0.02, 0.4), (0, 0.7)], 0.04, leaf)
    brush.oval(0.12, 0.24, 0.13, 0.05, leaf)
    brush.oval(-0.12, 0.34, 0.13, 0.05, leaf)
    count = dice.randint(5, 9)
    for k in range(count):
        turn = 2 * math.pi * k / count
        brush.disc(0.17 * math.cos(turn), 0.76 + 0.17 * math.sin(turn), 0.1, petal)
    brush.disc(0, 0.76, 0.1, (236, 196, 60))


def mushroom(brush: Brush, dice: Dice) -> None:
    """A mushroom with a spotted cap."""
    cap = _paint(dice)
    brush.polygon([(-0.14, 0), (-0.1, 0.5), (0.1, 0.5), (0.14, 0)], (226, 214, 190))
    brush.arc(0, 0.46, 0.48, 0.52, 0, math.pi, cap)
    for x, y in ((-0.22, 0.62), (0.05, 0.8), (0.24, 0.58), (-0.04, 0.56)):
        brush.disc(x, y, 0.06, WHITE)


def aeroplane(brush: Brush, dice: Dice) -> None:
    """An aeroplane from the side."""
    body, trim = mix(_paint(dice), WHITE, 0.5), _paint(dice)
    brush.polygon([(-0.95, 0.55), (-1.15, 1.0), (-0.9, 1.0), (-0.6, 0.6)], trim)
    brush.oval(0, 0.5, 1.1, 0.17, body)
    brush.polygon([(0.1, 0.5), (-0.5, 0.0), (-0.25, 0.0), (0.4, 0.46)], shade(trim, 0.9))
    brush.polygon([(0.1, 0.6), (-0.3, 0.9), (-0.12, 0.9), (0.35, 0.6)], shade(trim, 0.7))
    for k in range(6):
        brush.disc(-0.5 + 0.2 * k, 0.56, 0.035, BLACK)


def helicopter(brush: Brush, dice: Dice) -> None:
    """A helicopter."""
    body = _paint(dice)
    brush.polygon([(-0.2, 0.55), (-1.1, 0.68), (-1.1, 0.58), (-0.2, 0.35)], shade(body, 0.85))
    brush.line([(-1.1, 0.45), (-1.1, 0.85)], 0.05, GREYS[0])
    brush.oval(0.1, 0.45, 0.5, 0.28, body)
    brush.arc(0.2, 0.45, 0.4, 0.24, -0.1, 1.5, (180, 206, 222))
    brush.line([(0.05, 0.7), (0.05, 0.9)], 0.06, GREYS[0])
    brush.line([(-0.85, 0.92), (0.95, 0.9)], 0.05, GREYS[3])
    brush.line([(-0.4, 0.04), (0.6, 0.04)], 0.05, GREYS[0])
    brush.line([(-0.1, 0.2), (-0.15, 0.04)], 0.05, GREYS[0])
    brush.line([(0.3, 0.2), (0.35, 0.04)], 0.05, GREYS[0])


def ladder(brush: Brush, dice: Dice) -> None:
    """A ladder."""
    wood = _paint(dice)
    for x in (-0.16, 0.16):
        brush.line([(x, 0), (x * 0.8, 1.0)], 0.045, wood)
    for k in range(7):
        y = 0.1 + 0.135 * k
        brush.line([(-0.15, y), (0.15, y)], 0.035, shade(wood, 0.85))


def guitar(brush: Brush, dice: Dice) -> None:
    """A guitar standing upright."""
    wood = _paint(dice)
    brush.line([(0, 0.45), (0, 0.95)], 0.06, shade(wood, 0.45))
    brush.box(-0.06, 0.9, 0.06, 1.02, shade(wood, 0.6))
    brush.oval(0, 0.2, 0.24, 0.2, wood)
    brush.oval(0, 0.43, 0.18, 0.15, wood)
    brush.disc(0, 0.35, 0.075, BLACK)
    brush.box(-0.1, 0.12, 0.1, 0.15, BLACK)


def butterfly(brush: Brush, dice: Dice) -> None:
    """A butterfly with spread wings."""
    wing, spot = _paint(dice), _paint(dice)
    for side in (-1, 1):
        brush.polygon([(0, 0.5), (side * 0.25, 0.95), (side * 0.6, 0.95), (side * 0.5, 0.55)], wing)
        brush.oval(side * 0.25, 0.28, 0.24, 0.22, shade(wing, 0.8))
        brush.disc(side * 0.38, 0.76, 0.09, spot)
        brush.line([(0, 0.8), (side * 0.12, 1.0)], 0.02, BLACK)
    brush.oval(0, 0.5, 0.05, 0.35, BLACK)


def locomotive(brush: Brush, dice: Dice) -> None:
    """A steam engine on many wheels."""
    paint = _paint(dice)
    brush.box(-0.9, 0.22, -0.3, 0.95, paint)
    brush.box(-0.98, 0.9, -0.24, 1.0, shade(paint, 0.6))
    brush.box(-0.76, 0.6, -0.44, 0.84, (196, 214, 224))
    brush.box(-0.3, 0.26, 0.85, 0.66, shade(paint, 0.85))
    brush.polygon([(0.5, 0.64), (0.44, 1.0), (0.76, 1.0), (0.7, 0.64)], shade(paint, 0.5))
    brush.polygon([(0.85, 0.26), (1.1, 0.02), (0.8, 0.1)], GREYS[0])
    for x in (-0.7, -0.34, 0.0, 0.34, 0.66):
        brush.disc(x, 0.15, 0.15, BLACK)
        brush.disc(x, 0.15, 0.07, shade(paint, 1.2))


def loudspeaker(brush: Brush, dice: Dice) -> None:
    """A loudspeaker: a box with a large cone below a small one."""
    case, cone = _paint(dice), dice.choice(GREYS)
    brush.box(-0.28, 0, 0.28, 1.0, case)
    brush.disc(0, 0.32, 0.22, shade(cone, 0.6))
    brush.disc(0, 0.32, 0.15, cone)
    brush.disc(0, 0.32, 0.06, BLACK)
    brush.disc(0, 0.76, 0.13, shade(cone, 0.6))
    brush.disc(0, 0.76, 0.06, cone)


def bottle(brush: Brush, dice: Dice) -> None:
    """A bottle with a label."""
    glass = _paint(dice)
    brush.polygon([(-0.16, 0), (-0.16, 0.55), (-0.06, 0.74), (-0.06, 0.95), (0.06, 0.95),
                   (0.06, 0.74), (0.16, 0.55), (0.16, 0)], glass)  # fmt: skip
    brush.box(-0.16, 0.15, 0.16, 0.42, mix(_paint(dice), WHITE, 0.5))
    brush.box(-0.07, 0.93, 0.07, 1.0, shade(glass, 0.5))


def table_lamp(brush: Brush, dice: Dice) -> None:
    """A table lamp with a shade."""
    foot, cover = _paint(dice), _paint(dice)
    brush.oval(0, 0.04, 0.2, 0.05, foot)
    brush.line([(0, 0.05), (0, 0.6)], 0.06, foot)
    brush.polygon([(-0.36, 0.52), (-0.18, 0.98), (0.18, 0.98), (0.36, 0.52)], cover)
    brush.glow(0, 0.55, 0.5, (255, 226, 160))


def cactus(brush: Brush, dice: Dice) -> None:
    """A cactus with two arms."""
    green = vary(dice, dice.choice(LEAVES[:4]))
    brush.limb([(0, 0), (0, 0.9)], 0.2, green)
    for side in (-1, 1):
        y = dice.uniform(0.3, 0.5)
        brush.limb([(0, y), (side * 0.28, y), (side * 0.28, y + 0.28)], 0.13, shade(green, 0.85))
    brush.line([(0, 0.05), (0, 0.9)], 0.025, shade(green, 1.3))


def letter(brush: Brush, dice: Dice) -> None:
    """A large letter."""
    brush.write(dice.choice(LETTERS), -0.35, 0.05, 0.57, 0.95, dice.uniform(0.1, 0.2), _paint(dice))


def pentagon(brush: Brush, dice: Dice) -> None:
    """A five-sided badge."""
    first, second = _paint(dice), _paint(dice)
    brush.regular(0, 0.5, 0.52, 5, math.pi / 2, first)
    brush.regular(0, 0.5, 0.42, 5, math.pi / 2, second)
    brush.write(dice.choice(LETTERS), -0.15, 0.34, 0.23, 0.66, 0.08, first)


def star(brush: Brush, dice: Dice) -> None:
    """A five-pointed star."""
    radii = [0.52 if k % 2 == 0 else 0.22 for k in range(10)]
    brush.polygon(
        [(r * math.sin(k * math.pi / 5), 0.5 + r * math.cos(k * math.pi / 5))
         for k, r in enumerate(radii)], _paint(dice))  # fmt: skip


def wheelbarrow(brush: Brush, dice: Dice) -> None:
    """A wheelbarrow."""
    tub = _paint(dice)
    brush.line([(-1.0, 0.62), (0.55, 0.3)], 0.07, shade(tub, 0.5))
    brush.polygon([(-0.4, 0.35), (-0.6, 0.95), (0.75, 1.0), (0.3, 0.3)], tub)
    brush.line([(-0.35, 0.4), (-0.45, 0.0)], 0.07, GREYS[0])
    brush.disc(0.6, 0.24, 0.24, BLACK)
    brush.disc(0.6, 0.24, 0.1, GREYS[4])


OBJECTS: tuple[Drawer, ...] = (
    aeroplane, bench, bicycle, bin_, bird, bottle, butterfly, cactus, cat, chair, clock, cup, dog,
    fish, flower, guitar, helicopter, horse, house, hydrant, key, ladder, lamp_post, letter,
    locomotive, loudspeaker, mushroom, penguin, pentagon, round_sign, sailboat, square_sign, star,
    table_lamp, teapot, tree, triangular_sign, umbrella, wheelbarrow,
)  # fmt: skip
CLASSES = tuple(drawer.__name__.strip("_") for drawer in OBJECTS)
CENTRED = {"round_sign", "square_sign", "triangular_sign"}
AS_DRAWN = {"letter", "pentagon"}


def draw_image(rng: np.random.Generator, size: int = 128) -> tuple[Image.Image, dict[str, int]]:
    """Draw one image of several objects.

    The labels are 1, 0, or -1 for a class of which no more than a half hidden object is seen.
    """
    dice = random.Random(int(rng.integers(1 << 62)))
    canvas = Canvas(size)
    _background(canvas, dice)
    if dice.random() < 0.5:
        _clutter(canvas, dice, dice.randint(2, 10))
    for _ in range(dice.randint(3, 8)):
        _place(canvas, dice, dice.randrange(len(OBJECTS)))
    if dice.random() < 0.3:
        _clutter(canvas, dice, dice.randint(1, 3))
    best = dict.fromkeys(CLASSES, 0.0)
    for kind, share in canvas.visible():
        best[kind] = max(best[kind], share)
    return photograph(canvas, dice, rng), {kind: _label(share) for kind, share in best.items()}


def _label(share: float) -> int:
    if share >= CLEARLY_SEEN:
        return 1
    return HALF_HIDDEN if share > HARDLY_SEEN else 0


def _place(canvas: Canvas, dice: Dice, number: int) -> None:
    name = CLASSES[number]
    height = log_uniform(dice, 0.11, 0.7)
    x, y = dice.uniform(0.05, 0.95), dice.uniform(0.2, 1.1)
    if name in CENTRED:
        y = dice.uniform(0.05, 0.95)
        if dice.random() < 0.7:
            pole = Brush(canvas, x, y, 1.0)
            pole.line([(0, 0), (0, -1)], max(0.008, height * 0.07), dice.choice(GREYS))
    elif height > y:
        y = min(1.1, height)
    mirror = dice.random() < 0.5 and name not in AS_DRAWN and name not in CENTRED
    brush = Brush(canvas, x, y, height, mirror=mirror, squeeze=dice.uniform(0.7, 1.15),
                  tilt=dice.gauss(0, 0.1))  # fmt: skip
    canvas.begin(name)
    OBJECTS[number](brush, dice)
    canvas.end()


def _background(canvas: Canvas, dice: Dice) -> None:
    kind = dice.random()
    if kind < 0.5:
        scenery(canvas, dice)
        return
    side = canvas.side
    first, second = _paint(dice), _paint(dice)
    canvas.pen.rectangle((0, 0, side, side), fill=first)
    if kind < 0.65:
        canvas.pen.rectangle((0, dice.uniform(0.3, 0.8) * side, side, side), fill=second)
    elif kind < 0.8:
        step = dice.randint(8, 48)
        for k in range(0, side, step):
            canvas.pen.rectangle((0, k, side, k + step / 2), fill=mix(first, second, 0.5))
    else:
        _clutter(canvas, dice, 25)


def _clutter(canvas: Canvas, dice: Dice, count: int) -> None:
    """Shapes of no class: discs, sticks and corners."""
    for _ in range(count):
        brush = Brush(canvas, dice.random(), dice.random(), log_uniform(dice, 0.04, 0.3),
                      tilt=dice.uniform(-1, 1))  # fmt: skip
        kind, colour = dice.random(), _paint(dice)
        if kind < 0.3:
            brush.oval(0, 0, 0.5, dice.uniform(0.2, 0.5), colour)
        elif kind < 0.6:
            brush.box(-0.5, -0.5, 0.5, dice.uniform(-0.4, 0.5), colour)
        elif kind < 0.8:
            brush.line([(-0.5, 0), (0, dice.uniform(-0.5, 0.5)), (0.5, 0)], 0.12, colour)
        else:
            brush.polygon([(dice.uniform(-0.6, 0.6), dice.uniform(-0.6, 0.6)) for _ in range(4)],
                          colour)  # fmt: skip
