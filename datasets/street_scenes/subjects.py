"""The four labelled objects: pedestrian, car, stop sign and traffic light."""

from __future__ import annotations

import math

from kerasmtl.datasets.street_scenes.canvas import Brush, Point
from kerasmtl.datasets.street_scenes.palette import (
    BLACK,
    GREYS,
    HAIR,
    LENSES,
    SIGN_RED,
    SKIN,
    VIVID,
    WHITE,
    Colour,
    Dice,
    mix,
    shade,
    vary,
)


def pedestrian(brush: Brush, dice: Dice) -> None:
    """A person on foot: any pose, build, clothing and view."""
    top, bottom = vary(dice, dice.choice(VIVID)), vary(dice, dice.choice(VIVID + GREYS))
    skin, shoe = vary(dice, dice.choice(SKIN), 10), shade(dice.choice(GREYS), 0.7)
    build = dice.uniform(0.8, 1.3)
    sideways = dice.random() < 0.5
    stride = dice.uniform(0.03, 0.17) if sideways else dice.uniform(0.02, 0.06)
    wide = build * (0.075 if sideways else 0.105)
    hip, shoulder = 0.5, 0.81
    brush.shadow(0.2)
    _bag_behind(brush, dice, sideways, wide)
    arm = shade(top, 0.82)
    swing = stride * dice.uniform(0.4, 1.1) + (0 if sideways else wide * 0.5)
    _arm(brush, skin, arm, (-wide * (0.2 if sideways else 0.9), shoulder - 0.02), -swing, dice)
    for side in (-1, 1):
        root = side * wide * (0.15 if sideways else 0.5)
        foot = side * stride + root * 0.5
        knee = (root + foot) / 2 + (0.025 if sideways else 0)
        tone = bottom if side > 0 else shade(bottom, 0.8)
        brush.limb([(root, hip), (knee, 0.26), (foot, 0.035)], 0.075 * build, tone)
        brush.oval(foot + (0.03 if sideways else 0), 0.018, 0.048, 0.022, shoe)
    _clothes(brush, dice, top, bottom, wide)
    _arm(brush, skin, shade(top, 1.12), (wide * (0.2 if sideways else 0.9), shoulder - 0.02), swing,
         dice)  # fmt: skip
    _head(brush, dice, skin, sideways)


def _bag_behind(brush: Brush, dice: Dice, sideways: bool, wide: float) -> None:
    if dice.random() < 0.2:
        away = -wide - 0.02 if sideways else 0.0
        brush.oval(away, 0.68, 0.075, 0.12, vary(dice, dice.choice(VIVID)))


def _clothes(brush: Brush, dice: Dice, top: Colour, bottom: Colour, wide: float) -> None:
    waist = wide * dice.uniform(0.7, 0.95)
    brush.polygon(
        [(-waist, 0.47), (-wide, 0.79), (-wide * 0.5, 0.83), (wide * 0.5, 0.83), (wide, 0.79),
         (waist, 0.47)], top)  # fmt: skip
    kind = dice.random()
    if kind < 0.22:
        hem = dice.uniform(0.22, 0.34)
        brush.polygon(
            [(-waist, 0.56), (-wide * 1.25, hem), (wide * 1.25, hem), (waist, 0.56)], bottom
        )
    elif kind < 0.4:
        hem = dice.uniform(0.3, 0.42)
        brush.polygon([(-waist, 0.6), (-wide * 1.1, hem), (wide * 1.1, hem), (waist, 0.6)], top)
    elif kind < 0.55:
        for k in range(3):
            y = 0.55 + 0.08 * k
            brush.box(-wide * 0.85, y, wide * 0.85, y + 0.035, shade(bottom, 1.1))
    else:
        brush.box(-waist, 0.47, waist, 0.5, shade(bottom, 0.7))


def _arm(brush: Brush, skin: Colour, sleeve: Colour, start: Point, reach: float,
         dice: Dice) -> None:  # fmt: skip
    x, y = start
    hand = (x + reach * dice.uniform(1.0, 1.5), y - dice.uniform(0.3, 0.36))
    if dice.random() < 0.12:
        hand = (x + reach + 0.12 * (1 if reach > 0 else -1), y + dice.uniform(-0.1, 0.12))
    elbow = ((x + hand[0]) / 2 - 0.015, (y + hand[1]) / 2)
    brush.limb([(x, y), elbow, hand], 0.052, sleeve)
    brush.disc(hand[0], hand[1], 0.026, skin)
    if dice.random() < 0.1:
        colour = vary(dice, dice.choice(VIVID))
        brush.box(hand[0] - 0.055, hand[1] - 0.15, hand[0] + 0.055, hand[1] - 0.02, colour)


def _head(brush: Brush, dice: Dice, skin: Colour, sideways: bool) -> None:
    hair = vary(dice, dice.choice(HAIR), 12)
    radius = dice.uniform(0.062, 0.078)
    y = 0.985 - radius
    brush.box(-0.022, 0.8, 0.022, y, shade(skin, 0.88))
    if dice.random() < 0.35:
        brush.oval(-0.015 if sideways else 0, y - 0.035, radius * 0.98, radius * 1.35, hair)
    brush.oval(0, y, radius * 0.84, radius, skin)
    if dice.random() < 0.12:
        brush.oval(0, y, radius * 0.86, radius, hair)
    start = 0.9 if sideways else 0.15
    brush.arc(0, y + 0.008, radius * 0.92, radius, start, math.pi + (0.3 if sideways else -0.15),
              hair)  # fmt: skip
    if dice.random() < 0.25:
        hat = vary(dice, dice.choice(VIVID))
        brush.arc(0, y + 0.015, radius, radius, 0.1, math.pi - 0.1, hat)
        brush.box(-radius * 0.9, y + 0.015, radius * dice.uniform(0.9, 1.6), y + 0.032, hat)
    elif brush.unit > 110 and not sideways:
        for x in (-0.025, 0.025):
            brush.disc(x, y - 0.002, 0.008, BLACK)
        brush.line([(-0.02, y - 0.035), (0.02, y - 0.035)], 0.008, shade(skin, 0.6))


def car(brush: Brush, dice: Dice) -> None:
    """A car from the side, the front or the rear."""
    paint = vary(dice, dice.choice(VIVID + GREYS))
    if dice.random() < 0.55:
        _car_side(brush, dice, paint)
    else:
        _car_end(brush, dice, paint, rear=dice.random() < 0.5)


# Outlines of the body and of the windows above the waist line, height 1, the bonnet to the right.
SEDAN = (
    [(-1.5, 0.2), (-1.52, 0.5), (-1.42, 0.64), (-0.98, 0.66), (-0.6, 0.98), (0.2, 0.98),
     (0.66, 0.64), (1.32, 0.56), (1.5, 0.42), (1.5, 0.2)],
    [(-0.86, 0.66), (-0.56, 0.92), (0.17, 0.92), (0.54, 0.64)],
)  # fmt: skip
HATCHBACK = (
    [(-1.2, 0.2), (-1.24, 0.6), (-0.98, 0.97), (0.1, 0.98), (0.56, 0.62), (1.1, 0.54),
     (1.24, 0.4), (1.24, 0.2)],
    [(-1.06, 0.64), (-0.88, 0.91), (0.07, 0.92), (0.44, 0.62)],
)  # fmt: skip
ESTATE = (
    [(-1.5, 0.24), (-1.54, 0.6), (-1.38, 0.96), (0.2, 0.98), (0.6, 0.64), (1.2, 0.58),
     (1.4, 0.46), (1.42, 0.24)],
    [(-1.4, 0.64), (-1.28, 0.91), (0.16, 0.92), (0.48, 0.64)],
)  # fmt: skip
BEETLE = (
    [(-1.2, 0.22), (-1.22, 0.4), (-1.0, 0.62), (-0.66, 0.86), (-0.2, 0.99), (0.16, 0.96),
     (0.48, 0.66), (0.92, 0.6), (1.16, 0.42), (1.18, 0.22)],
    [(-0.68, 0.64), (-0.48, 0.84), (-0.16, 0.92), (0.12, 0.89), (0.36, 0.64)],
)  # fmt: skip


def _car_side(brush: Brush, dice: Dice, paint: Colour) -> None:
    body, windows = dice.choice((SEDAN, HATCHBACK, ESTATE, BEETLE))
    glass = mix((70, 88, 104), (190, 208, 220), dice.random())
    left, right = body[0][0], body[-1][0]
    brush.shadow(1.5, 110)
    brush.polygon(body, paint)
    brush.polygon([(left, 0.2), (left, 0.34), (right, 0.34), (right, 0.2)], shade(paint, 0.7))
    brush.polygon(windows, glass)
    for x in (-0.2, -0.75) if dice.random() < 0.6 else (-0.25,):
        brush.box(x - 0.03, 0.62, x + 0.03, 0.93, paint)
        brush.line([(x, 0.62), (x, 0.26)], 0.015, shade(paint, 0.6))
        brush.box(x + 0.08, 0.52, x + 0.2, 0.55, shade(paint, 0.5))
    radius = dice.uniform(0.2, 0.24)
    for x in (left + 0.44, right - 0.44):
        brush.disc(x, radius, radius + 0.05, shade(paint, 0.35))
        brush.disc(x, radius, radius, BLACK)
        brush.disc(x, radius, radius * 0.58, dice.choice(GREYS[1:]))
        brush.disc(x, radius, radius * 0.2, GREYS[0])
    brush.box(right - 0.16, 0.4, right - 0.02, 0.5, (244, 238, 200))
    brush.box(left + 0.02, 0.42, left + 0.12, 0.54, (180, 30, 30))
    if dice.random() < 0.5:
        brush.glow(right, 0.44, 0.3, (255, 236, 170))
    if dice.random() < 0.5:
        brush.disc(-0.05, 0.72, 0.09, BLACK)


def _car_end(brush: Brush, dice: Dice, paint: Colour, *, rear: bool) -> None:
    wide = dice.uniform(0.54, 0.66)
    glass = mix((56, 70, 84), (184, 204, 218), dice.random() * 0.8)
    brush.shadow(0.7, 120)
    for x in (-wide * 0.8, wide * 0.8):
        brush.box(x - 0.11, 0.0, x + 0.11, 0.3, BLACK)
    roof = wide * dice.uniform(0.66, 0.8)
    brush.polygon([(-wide, 0.58), (-roof, 0.97), (-roof * 0.8, 1.0), (roof * 0.8, 1.0),
                   (roof, 0.97), (wide, 0.58)], paint)  # fmt: skip
    brush.polygon([(-wide * 0.85, 0.62), (-roof * 0.9, 0.93), (roof * 0.9, 0.93),
                   (wide * 0.85, 0.62)], glass)  # fmt: skip
    brush.polygon([(-wide, 0.16), (-wide * 1.04, 0.4), (-wide, 0.6), (wide, 0.6),
                   (wide * 1.04, 0.4), (wide, 0.16)], shade(paint, 0.92))  # fmt: skip
    brush.box(-wide * 0.98, 0.14, wide * 0.98, 0.24, shade(paint, 0.5))
    lamp = (206, 30, 32) if rear else (248, 242, 210)
    high = dice.uniform(0.38, 0.44)
    for x in (-wide * 0.78, wide * 0.78):
        if dice.random() < 0.5:
            brush.disc(x, high + 0.05, 0.085, lamp)
        else:
            brush.box(x - 0.12, high, x + 0.12, high + 0.12, lamp)
        if dice.random() < 0.6:
            brush.glow(x, high + 0.05, 0.3, (255, 70, 50) if rear else (255, 238, 190))
    if not rear:
        brush.box(-wide * 0.5, 0.34, wide * 0.5, 0.46, BLACK)
    brush.box(-0.15, 0.25, 0.15, 0.33, dice.choice((WHITE, (236, 206, 70))))


def stop_sign(brush: Brush, dice: Dice) -> None:
    """The head of a stop sign: an octagon of height 1, its centre at 0."""
    red = mix(vary(dice, SIGN_RED, 14), (214, 150, 140), dice.random() * 0.35)
    eighth = math.pi / 8
    brush.regular(0, 0, 0.54, 8, eighth, vary(dice, (232, 230, 226), 10))
    brush.regular(0, 0, 0.48, 8, eighth, red)
    if brush.unit > 26:
        brush.write("STOP", -0.38, -0.15, 0.42, 0.15, 0.07, WHITE)
    else:
        brush.box(-0.36, -0.11, 0.36, 0.11, mix(WHITE, red, 0.35))


def traffic_light(brush: Brush, dice: Dice) -> None:
    """The head of a traffic light: a case of height 1 with two or three lenses, centre at 0."""
    case = vary(dice, dice.choice([(30, 32, 34), (30, 32, 34), (48, 66, 54), (206, 168, 40),
                                   (92, 94, 96)]), 8)  # fmt: skip
    count = 3 if dice.random() < 0.8 else 2
    wide = dice.uniform(0.17, 0.22) * (1 if count == 3 else 1.35)
    if dice.random() < 0.25:
        brush.box(-wide - 0.09, -0.58, wide + 0.09, 0.58, BLACK)
        brush.box(-wide - 0.05, -0.54, wide + 0.05, 0.54, shade(case, 0.8))
    brush.box(-wide, -0.5, wide, 0.5, case)
    lit = {dice.choice((0, 2)) if dice.random() < 0.8 else 1}
    if dice.random() < 0.1:
        lit = {0, 1}
    for k in range(count):
        y = (count - 1) / (2 * count) - k / count
        radius = min(wide * 0.78, 0.42 / count)
        colour = LENSES[k if count == 3 else 2 * k]
        on = k in lit or (count == 2 and k == count - 1 and 2 in lit)
        brush.disc(0, y, radius * 1.14, shade(case, 0.55))
        brush.disc(0, y, radius, colour if on else shade(colour, 0.27))
        brush.arc(0, y + 0.02, radius * 1.2, radius * 1.1, 0.3, math.pi - 0.3, shade(case, 0.7))
        if on:
            brush.disc(0, y - 0.02, radius * 0.75, colour)
            brush.glow(0, y, radius * 3.2, colour)
