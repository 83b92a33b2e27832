"""What else stands or hangs in a street, often like the labelled objects in colour or shape."""

from __future__ import annotations

import math

from kerasmtl.datasets.street_scenes.canvas import Brush, Drawer
from kerasmtl.datasets.street_scenes.palette import (
    BLACK,
    GREYS,
    HAIR,
    LEAVES,
    LENSES,
    SIGN_RED,
    VIVID,
    WALLS,
    WHITE,
    Colour,
    Dice,
    shade,
    vary,
)


def tree(brush: Brush, dice: Dice) -> None:
    """A tree with a trunk and a crown, or a conifer."""
    leaf, bark = vary(dice, dice.choice(LEAVES)), vary(dice, (92, 70, 52), 14)
    brush.shadow(0.25)
    brush.polygon([(-0.05, 0), (-0.03, 0.5), (0.03, 0.5), (0.05, 0)], bark)
    if dice.random() < 0.25:
        for k in range(3):
            y, wide = 0.25 + 0.22 * k, 0.26 - 0.06 * k
            tone = shade(leaf, 0.85 + 0.1 * k)
            brush.polygon([(-wide, y), (0, y + 0.36), (wide, y)], tone)
        return
    brush.line([(0, 0.4), (0.12, 0.6)], 0.03, bark)
    for k in range(dice.randint(4, 7)):
        x, y = dice.uniform(-0.18, 0.18), dice.uniform(0.55, 0.85)
        radius = dice.uniform(0.1, 0.2)
        tone = shade(leaf, dice.uniform(0.75, 1.2) if k else 0.7)
        brush.oval(x, y, radius, radius * 0.85, tone)


def bush(brush: Brush, dice: Dice) -> None:
    """A low bush or a hedge."""
    leaf = vary(dice, dice.choice(LEAVES))
    for _ in range(dice.randint(3, 6)):
        radius = dice.uniform(0.25, 0.5)
        brush.oval(dice.uniform(-0.6, 0.6), radius, radius * 1.3, radius,
                   shade(leaf, dice.uniform(0.75, 1.2)))  # fmt: skip


def lamp_post(brush: Brush, dice: Dice) -> None:
    """A street lamp: a lantern, a globe or a curved arm."""
    metal = vary(dice, dice.choice(GREYS), 10)
    light = (250, 238, 190) if dice.random() < 0.5 else (206, 206, 198)
    brush.box(-0.022, 0, 0.022, 0.12, shade(metal, 0.8))
    kind = dice.random()
    if kind < 0.4:
        brush.line([(0, 0), (0, 0.86), (0.04, 0.95), (0.12, 0.98), (0.22, 0.97)], 0.022, metal)
        brush.box(0.15, 0.945, 0.3, 0.975, light)
        brush.glow(0.22, 0.93, 0.16, (255, 226, 160))
        return
    brush.line([(0, 0), (0, 0.86)], 0.022, metal)
    if kind < 0.7:
        brush.disc(0, 0.92, 0.065, light)
    else:
        brush.polygon([(-0.03, 0.85), (-0.06, 0.95), (0.06, 0.95), (0.03, 0.85)], light)
        brush.polygon([(-0.07, 0.95), (0, 1.0), (0.07, 0.95)], metal)
    brush.glow(0, 0.91, 0.16, (255, 226, 160))


def _pictogram(brush: Brush, dice: Dice, colour: Colour) -> None:
    """A mark for the middle of a sign of height 1, its centre at 0."""
    kind = dice.randrange(6)
    if kind == 0:
        brush.box(-0.3, -0.07, 0.3, 0.07, colour)
    elif kind == 1:
        text = "".join(dice.choice("AEFHKLMNOPSTXZ") for _ in range(dice.randint(1, 3)))
        brush.write(text, -0.13 * len(text), -0.16, 0.13 * len(text), 0.18, 0.07, colour)
    elif kind == 2:
        brush.line([(0, -0.26), (0, 0.2)], 0.09, colour)
        brush.polygon([(-0.16, 0.06), (0, 0.3), (0.16, 0.06)], colour)
    elif kind == 3:
        brush.line([(-0.22, -0.22), (0.22, 0.22)], 0.09, colour)
        if dice.random() < 0.5:
            brush.line([(-0.22, 0.22), (0.22, -0.22)], 0.09, colour)
    elif kind == 4:
        brush.line([(-0.18, -0.2), (-0.18, 0.05), (0.15, 0.05)], 0.09, colour)
        brush.polygon([(0.1, 0.2), (0.3, 0.05), (0.1, -0.1)], colour)
    else:
        brush.disc(-0.12, 0, 0.1, colour)
        brush.disc(0.14, 0, 0.1, colour)


def round_sign(brush: Brush, dice: Dice) -> None:
    """A round sign, its centre at 0: red, blue, or white within a red ring."""
    kind = dice.random()
    red, blue = vary(dice, SIGN_RED, 14), vary(dice, (34, 84, 168), 14)
    if kind < 0.4:
        brush.disc(0, 0, 0.5, WHITE)
        brush.disc(0, 0, 0.47, red)
        _pictogram(brush, dice, WHITE)
    elif kind < 0.7:
        brush.disc(0, 0, 0.5, red)
        brush.disc(0, 0, 0.36, WHITE)
        _pictogram(brush, dice, BLACK)
    else:
        brush.disc(0, 0, 0.5, WHITE)
        brush.disc(0, 0, 0.46, blue)
        _pictogram(brush, dice, WHITE)


def triangular_sign(brush: Brush, dice: Dice) -> None:
    """A triangular sign with a red border, point up or down, its centre at 0."""
    up = 1 if dice.random() < 0.65 else -1
    brush.regular(0, -0.08 * up, 0.6, 3, up * math.pi / 2, vary(dice, SIGN_RED, 14))
    fill = dice.choice((WHITE, (240, 208, 60)))
    brush.regular(0, -0.08 * up, 0.38, 3, up * math.pi / 2, fill)
    if up > 0:
        brush.box(-0.035, -0.1, 0.035, 0.12, BLACK)
        brush.disc(0, -0.17, 0.04, BLACK)


def square_sign(brush: Brush, dice: Dice) -> None:
    """A square, diamond or oblong sign of any colour, its centre at 0."""
    colours = [(34, 84, 168), (30, 120, 70), (236, 190, 50), SIGN_RED, (236, 236, 230)]
    fill = vary(dice, dice.choice(colours), 12)
    mark = BLACK if sum(fill) > 420 else WHITE
    kind = dice.random()
    if kind < 0.35:
        brush.regular(0, 0, 0.58, 4, 0, mark)
        brush.regular(0, 0, 0.51, 4, 0, fill)
    elif kind < 0.7:
        brush.box(-0.45, -0.45, 0.45, 0.45, mark)
        brush.box(-0.4, -0.4, 0.4, 0.4, fill)
    else:
        brush.box(-0.7, -0.3, 0.7, 0.3, mark)
        brush.box(-0.66, -0.26, 0.66, 0.26, fill)
        text = "".join(dice.choice("AEFHKLMNOPSTVXZ") for _ in range(4))
        brush.write(text, -0.55, -0.14, 0.6, 0.14, 0.06, mark)
        return
    _pictogram(brush, dice, mark)


def post_box(brush: Brush, dice: Dice) -> None:
    """A pillar box or a box on a leg."""
    colour = vary(dice, dice.choice([(190, 28, 34), (190, 28, 34), (236, 190, 40), (40, 84, 160)]))
    brush.shadow(0.3)
    if dice.random() < 0.5:
        brush.box(-0.18, 0.0, 0.18, 0.86, colour)
        brush.oval(0, 0.88, 0.21, 0.1, shade(colour, 0.85))
        brush.box(-0.2, 0.0, 0.2, 0.08, BLACK)
    else:
        brush.box(-0.04, 0, 0.04, 0.5, GREYS[0])
        brush.box(-0.22, 0.45, 0.22, 1.0, colour)
    brush.box(-0.12, 0.72, 0.12, 0.77, BLACK)
    brush.box(-0.1, 0.54, 0.1, 0.66, WHITE)


def bin_(brush: Brush, dice: Dice) -> None:
    """A litter bin or a bin on wheels."""
    colour = vary(dice, dice.choice(VIVID + GREYS))
    brush.shadow(0.4)
    brush.polygon([(-0.26, 0.04), (-0.34, 0.82), (0.34, 0.82), (0.26, 0.04)], colour)
    for x in (-0.16, 0, 0.16):
        brush.line([(x, 0.12), (x * 1.2, 0.74)], 0.03, shade(colour, 0.7))
    brush.polygon([(-0.38, 0.8), (-0.3, 0.98), (0.3, 0.98), (0.38, 0.8)], shade(colour, 0.75))
    if dice.random() < 0.5:
        brush.disc(-0.22, 0.08, 0.09, BLACK)
        brush.disc(0.22, 0.08, 0.09, BLACK)


def bench(brush: Brush, dice: Dice) -> None:
    """A bench with slats."""
    wood, metal = vary(dice, (138, 96, 60)), dice.choice(GREYS)
    brush.shadow(1.0)
    for x in (-0.75, 0.75):
        brush.line([(x, 0), (x, 0.5), (x * 1.02, 1.0)], 0.07, metal)
    for y in (0.62, 0.76, 0.9):
        brush.box(-0.95, y, 0.95, y + 0.09, shade(wood, 0.8 + 0.3 * y))
    brush.box(-0.98, 0.42, 0.98, 0.53, wood)
    brush.line([(-0.6, 0), (-0.6, 0.42)], 0.06, metal)
    brush.line([(0.6, 0), (0.6, 0.42)], 0.06, metal)


def advertising_column(brush: Brush, dice: Dice) -> None:
    """A round column covered with posters."""
    base = vary(dice, dice.choice(GREYS + WALLS))
    brush.shadow(0.3)
    brush.box(-0.22, 0, 0.22, 0.88, base)
    for k in range(2):
        for j in range(3):
            x, y = -0.2 + 0.135 * j, 0.14 + 0.36 * k
            brush.box(x, y, x + 0.125, y + 0.32, vary(dice, dice.choice(VIVID)))
            brush.box(x + 0.02, y + 0.1, x + 0.1, y + 0.14, vary(dice, dice.choice(VIVID)))
    brush.box(-0.26, 0.86, 0.26, 0.91, shade(base, 0.7))
    brush.arc(0, 0.9, 0.22, 0.1, 0, math.pi, shade(base, 0.6))


def hydrant(brush: Brush, dice: Dice) -> None:
    """A fire hydrant."""
    colour = vary(dice, dice.choice([(196, 36, 36), (230, 180, 40), (60, 110, 170)]))
    brush.shadow(0.35)
    brush.box(-0.26, 0, 0.26, 0.1, shade(colour, 0.7))
    brush.box(-0.17, 0.08, 0.17, 0.7, colour)
    brush.arc(0, 0.7, 0.22, 0.24, 0, math.pi, shade(colour, 1.15))
    brush.box(-0.05, 0.9, 0.05, 1.0, shade(colour, 0.8))
    brush.box(-0.34, 0.44, 0.34, 0.58, shade(colour, 0.85))
    brush.disc(0, 0.5, 0.12, shade(colour, 0.7))


def bicycle(brush: Brush, dice: Dice) -> None:
    """A bicycle from the side."""
    frame, tyre = vary(dice, dice.choice(VIVID)), shade(GREYS[0], dice.uniform(0.5, 1.3))
    radius = 0.33
    for x in (-0.55, 0.55):
        brush.ring(x, radius, radius, 0.05, tyre)
        if brush.unit > 40:
            for k in range(3):
                u, v = math.cos(k * 1.05) * radius, math.sin(k * 1.05) * radius
                brush.line([(x - u, radius - v), (x + u, radius + v)], 0.012, (170, 170, 170))
    crank, seat, bar = (-0.08, 0.32), (-0.22, 0.8), (0.4, 0.82)
    brush.line([(-0.55, radius), crank, bar, seat, crank], 0.05, frame)
    brush.line([(-0.55, radius), seat], 0.045, frame)
    brush.line([(0.55, radius), bar, (0.42, 0.98), (0.54, 0.98)], 0.05, frame)
    brush.oval(-0.24, 0.88, 0.13, 0.045, BLACK)


def bollard(brush: Brush, dice: Dice) -> None:
    """A bollard or a traffic cone."""
    if dice.random() < 0.5:
        colour = vary(dice, dice.choice(GREYS + [(190, 40, 40)]))
        brush.box(-0.1, 0, 0.1, 0.92, colour)
        brush.disc(0, 0.92, 0.1, shade(colour, 1.2))
        brush.box(-0.1, 0.66, 0.1, 0.78, WHITE)
        return
    orange = vary(dice, (230, 96, 34))
    brush.box(-0.4, 0, 0.4, 0.08, shade(orange, 0.8))
    brush.polygon([(-0.28, 0.08), (-0.05, 1.0), (0.05, 1.0), (0.28, 0.08)], orange)
    brush.polygon([(-0.2, 0.4), (-0.14, 0.62), (0.14, 0.62), (0.2, 0.4)], WHITE)


def cabinet(brush: Brush, dice: Dice) -> None:
    """A street cabinet or a vending machine, some with round vents or buttons in a row."""
    colour = vary(dice, dice.choice(GREYS + VIVID))
    brush.shadow(0.4)
    brush.box(-0.3, 0, 0.3, 1.0, colour)
    brush.box(-0.26, 0.06, 0.26, 0.94, shade(colour, 1.15))
    if dice.random() < 0.6:
        for k in range(3):
            brush.disc(0, 0.26 + 0.25 * k, 0.1, vary(dice, dice.choice(VIVID + GREYS)))
    else:
        for k in range(4):
            brush.box(-0.2, 0.2 + 0.16 * k, 0.2, 0.26 + 0.16 * k, shade(colour, 0.6))


def lantern_string(brush: Brush, dice: Dice) -> None:
    """Coloured lanterns hanging from a rope, the centre at 0."""
    brush.line([(-1.2, 0.5), (0, 0.3), (1.2, 0.5)], 0.03, BLACK)
    for k in range(5):
        x = -0.9 + 0.45 * k
        colour = vary(dice, dice.choice(LENSES + VIVID[:4]))
        brush.disc(x, 0.2 + 0.12 * abs(x), 0.15, colour)
        brush.glow(x, 0.2 + 0.12 * abs(x), 0.4, colour)


def banner(brush: Brush, dice: Dice) -> None:
    """A narrow sign hung from a bracket, often with discs or letters, its centre at 0."""
    colour = vary(dice, dice.choice(VIVID + [BLACK, BLACK, SIGN_RED]))
    mark = WHITE if sum(colour) < 380 else BLACK
    brush.box(-0.24, -0.5, 0.24, 0.5, colour)
    kind = dice.random()
    for k in range(3):
        y = 0.3 - 0.3 * k
        if kind < 0.4:
            brush.box(-0.13, y - 0.1, 0.13, y + 0.1, vary(dice, dice.choice(VIVID + LENSES)))
        elif kind < 0.8:
            brush.write(dice.choice("AEFHKLMNOPSTVXZ"), -0.11, y - 0.1, 0.17, y + 0.1, 0.05, mark)
        else:
            brush.regular(0, y, 0.14, dice.choice((3, 4, 5)), math.pi / 2, mark)


def dog(brush: Brush, dice: Dice) -> None:
    """A dog from the side."""
    fur = vary(dice, dice.choice(HAIR + [(210, 190, 160)]))
    brush.shadow(0.5)
    step = dice.uniform(0.0, 0.12)
    for x in (-0.42, -0.34, 0.3, 0.4):
        brush.line([(x, 0.5), (x + step, 0.25), (x - step / 2, 0)], 0.09, shade(fur, 0.85))
    brush.oval(0, 0.56, 0.5, 0.18, fur)
    brush.line([(-0.45, 0.62), (-0.7, 0.9)], 0.07, fur)
    brush.oval(0.5, 0.82, 0.17, 0.14, fur)
    brush.oval(0.66, 0.77, 0.12, 0.07, shade(fur, 0.9))
    brush.oval(0.42, 0.82, 0.06, 0.14, shade(fur, 0.7))
    brush.disc(0.75, 0.79, 0.03, BLACK)


def skip(brush: Brush, dice: Dice) -> None:
    """A builder's skip, a stall or a cart on wheels: as large as a car, and none."""
    colour = vary(dice, dice.choice(VIVID + GREYS))
    brush.shadow(1.2, 100)
    kind = dice.random()
    if kind < 0.4:
        brush.polygon([(-0.9, 0.08), (-1.35, 0.75), (1.35, 0.75), (0.9, 0.08)], colour)
        brush.box(-1.38, 0.7, 1.38, 0.78, shade(colour, 0.75))
        for x in (-0.7, 0, 0.7):
            brush.line([(x, 0.1), (x * 1.4, 0.7)], 0.05, shade(colour, 0.7))
        return
    brush.box(-1.1, 0.3, 1.1, 0.72, colour)
    brush.box(-1.1, 0.3, 1.1, 0.4, shade(colour, 0.7))
    if kind < 0.7:
        for k in range(6):
            tone = WHITE if k % 2 else shade(colour, 1.1)
            x = -1.2 + 0.4 * k
            brush.polygon([(x, 1.15), (x + 0.1, 1.4), (x + 0.4, 1.4), (x + 0.4, 1.15)], tone)
        for x in (-1.05, 1.05):
            brush.line([(x, 0.7), (x, 1.2)], 0.05, GREYS[0])
    for x in (-0.7, 0.7):
        brush.ring(x, 0.24, 0.22, 0.07, BLACK)


def planter(brush: Brush, dice: Dice) -> None:
    """A tub with flowers."""
    brush.polygon([(-0.35, 0), (-0.5, 0.5), (0.5, 0.5), (0.35, 0)], vary(dice, dice.choice(WALLS)))
    leaf, bloom = vary(dice, dice.choice(LEAVES[:4])), dice.choice(VIVID)
    for x in (-0.3, 0, 0.3):
        brush.oval(x, 0.65, 0.26, 0.24, leaf)
    for _ in range(5):
        brush.disc(dice.uniform(-0.45, 0.45), dice.uniform(0.55, 0.95), 0.09, bloom)


# Drawer and height in metres; what stands on the ground.
STANDING: list[tuple[Drawer, float]] = [
    (tree, 4.6), (bush, 1.1), (lamp_post, 4.2), (post_box, 1.6), (bin_, 1.1), (bench, 0.9),
    (advertising_column, 2.8), (hydrant, 0.9), (bicycle, 1.1), (bollard, 1.0), (cabinet, 1.7),
    (dog, 0.7), (skip, 1.4), (planter, 0.9),
]  # fmt: skip
MOUNTED: list[tuple[Drawer, float]] = [
    (round_sign, 0.8), (round_sign, 0.8), (triangular_sign, 0.85), (square_sign, 0.8),
    (banner, 1.0), (banner, 1.0), (lantern_string, 0.7),
]  # fmt: skip
