"""The place: sky, buildings or trees, and the ground."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from kerasmtl.datasets.street_scenes.canvas import Brush, Canvas
from kerasmtl.datasets.street_scenes.palette import (
    LEAVES,
    VIVID,
    WALLS,
    WHITE,
    Dice,
    mix,
    shade,
    vary,
)


def sky(canvas: Canvas, dice: Dice, horizon: float) -> None:
    """Fill the upper part with a gradient and a few clouds."""
    high, low = dice.choice(
        [((92, 148, 212), (196, 216, 232)), ((150, 158, 168), (196, 200, 204)),
         ((70, 110, 180), (236, 196, 160)), ((120, 170, 220), (230, 236, 238)),
         ((64, 66, 110), (226, 140, 96)), ((186, 190, 194), (220, 220, 218))]
    )  # fmt: skip
    share = np.linspace(0, 1, max(2, round(canvas.side * horizon)))[:, None, None]
    rows = (1 - share) * np.array(high) + share * np.array(low)
    ramp = Image.fromarray(rows.astype(np.uint8)).resize((canvas.side, len(rows)))
    canvas.image.paste(ramp, (0, 0))
    for _ in range(dice.randint(0, 3)):
        x, y = dice.random(), dice.uniform(0, horizon * 0.8)
        brush = Brush(canvas, x, y, dice.uniform(0.03, 0.1))
        for _ in range(3):
            brush.oval(dice.uniform(-1.5, 1.5), dice.uniform(-0.2, 0.3), 1.2, 0.4,
                       mix(low, WHITE, 0.5))  # fmt: skip


def house_front(canvas: Canvas, dice: Dice, left: float, right: float, top: float,
                base: float) -> None:  # fmt: skip
    """A building with rows of windows, and often a shop below."""
    side = canvas.side
    wall = vary(dice, dice.choice(WALLS))
    x0, x1, y0, y1 = left * side, right * side, top * side, base * side
    pen = canvas.pen
    pen.rectangle((x0, y0, x1, y1), fill=wall)
    if dice.random() < 0.3:
        peak = y0 - (x1 - x0) * dice.uniform(0.2, 0.5)
        roof = vary(dice, dice.choice([(120, 60, 48), (84, 84, 92), (100, 84, 70)]))
        pen.polygon([(x0 - 4, y0), ((x0 + x1) / 2, peak), (x1 + 4, y0)], fill=roof)
    if dice.random() < 0.3:
        for y in range(int(y0), int(y1), 5):
            pen.line((x0, y, x1, y), fill=shade(wall, 0.9))
    step = side * dice.uniform(0.06, 0.14)
    glass = mix((52, 60, 74), (196, 210, 220), dice.random())
    lit = dice.random() * 0.4
    wide, high = step * dice.uniform(0.35, 0.65), step * dice.uniform(0.5, 0.8)
    shop = y1 - step * 1.2 if dice.random() < 0.5 else y1
    for row in range(int((shop - y0) / (step * 1.15))):
        for column in range(int((x1 - x0) / step)):
            x, y = x0 + step * (column + 0.2), y0 + step * (0.25 + 1.15 * row)
            pane = (246, 214, 138) if dice.random() < lit else glass
            pen.rectangle((x, y, x + wide, y + high), fill=pane, outline=shade(wall, 0.7))
    if shop < y1:
        _shop(pen, dice, (x0, shop, x1, y1))


def _shop(pen: ImageDraw.ImageDraw, dice: Dice, box: tuple[float, float, float, float]) -> None:
    x0, y0, x1, y1 = box
    high = y1 - y0
    colour = vary(dice, dice.choice(VIVID))
    pen.rectangle((x0, y0, x1, y1), fill=shade(colour, 0.6))
    pen.rectangle((x0 + 4, y0 + high * 0.3, x1 - 4, y1 - high * 0.12), fill=(150, 162, 168))
    stripes = max(2, int((x1 - x0) / 12))
    for k in range(stripes):
        tone = colour if k % 2 else WHITE
        u, v = x0 + (x1 - x0) * k / stripes, x0 + (x1 - x0) * (k + 1) / stripes
        pen.rectangle((u, y0 + high * 0.05, v, y0 + high * 0.28), fill=tone)
    door = x0 + (x1 - x0) * dice.uniform(0.1, 0.8)
    pen.rectangle((door, y0 + high * 0.35, door + high * 0.35, y1), fill=shade(colour, 0.45))


def ground(canvas: Canvas, dice: Dice, horizon: float) -> None:
    """Fill the lower part: grass, paving, a road along the view or across it."""
    side, pen, y = canvas.side, canvas.pen, horizon * canvas.side
    paving = vary(dice, dice.choice([(150, 146, 140), (128, 126, 124), (176, 164, 148)]))
    grass = vary(dice, dice.choice([(96, 128, 66), (120, 136, 74), (80, 108, 60)]))
    tar = vary(dice, dice.choice([(84, 84, 88), (104, 102, 100), (66, 68, 74)]), 10)
    kind = dice.random()
    pen.rectangle((0, y, side, side), fill=grass if kind < 0.3 else paving)
    if kind < 0.6:
        away, bottom = dice.uniform(0.2, 0.8) * side, dice.uniform(0.1, 0.9) * side
        wide = dice.uniform(0.25, 0.9) * side
        kerb = shade(paving, 1.2)
        pen.polygon([(away - 8, y), (away + 8, y), (bottom + wide * 1.1, side),
                     (bottom - wide * 1.1, side)], fill=kerb)  # fmt: skip
        pen.polygon([(away - 6, y), (away + 6, y), (bottom + wide, side), (bottom - wide, side)],
                    fill=tar)  # fmt: skip
        for k in range(5):
            u, v = (k / 5) ** 1.6, ((k + 0.5) / 5) ** 1.6
            p = (away + (bottom - away) * u, y + (side - y) * u)
            q = (away + (bottom - away) * v, y + (side - y) * v)
            pen.line((p, q), fill=(222, 220, 212), width=max(1, int(6 * v)))
    elif kind < 0.85:
        top = y + (side - y) * dice.uniform(0.1, 0.4)
        low = top + (side - top) * dice.uniform(0.4, 0.9)
        pen.rectangle((0, top - 3, side, low + 4), fill=shade(paving, 1.2))
        pen.rectangle((0, top, side, low), fill=tar)
        if dice.random() < 0.4:
            _crossing(pen, dice, side, top, low)
    else:
        step = dice.randint(10, 24)
        for k, line in enumerate(range(int(y), side, step)):
            pen.line((0, line, side, line), fill=shade(paving, 0.88))
            for x in range((k % 2) * step, side, 2 * step):
                pen.line((x, line, x, line + step), fill=shade(paving, 0.88))


def _crossing(pen: ImageDraw.ImageDraw, dice: Dice, side: int, top: float, low: float) -> None:
    x, step = dice.uniform(-0.1, 0.7) * side, dice.uniform(0.04, 0.07) * side
    for k in range(5):
        u = x + 2 * step * k
        pen.polygon([(u + 6, top), (u + 6 + step, top), (u + step, low), (u, low)],
                    fill=(214, 212, 206))  # fmt: skip


def scenery(canvas: Canvas, dice: Dice) -> float:
    """Draw the place, and return the height of its horizon (0 top, 1 bottom)."""
    horizon = dice.uniform(0.35, 0.65)
    sky(canvas, dice, horizon)
    kind = dice.random()
    if kind < 0.65:
        x = dice.uniform(-0.25, 0.0)
        while x < 1:
            wide = dice.uniform(0.18, 0.5)
            if dice.random() < 0.88:
                top = horizon - dice.uniform(0.1, 0.62)
                house_front(canvas, dice, x, x + wide, top, horizon + 0.01)
            x += wide
    else:
        leaf = dice.choice(LEAVES)
        for _ in range(dice.randint(5, 12)):
            brush = Brush(canvas, dice.random(), horizon + 0.02, dice.uniform(0.06, 0.3))
            brush.oval(0, 0.4, dice.uniform(0.4, 1.2), 0.6, shade(leaf, dice.uniform(0.7, 1.2)))
    ground(canvas, dice, horizon)
    return horizon
