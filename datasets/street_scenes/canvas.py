"""A canvas that knows which object is seen at each pixel, and a brush in an object's own frame."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from PIL import Image, ImageDraw

from kerasmtl.datasets.street_scenes.palette import Colour, Dice

SUPERSAMPLE = 2
# The visible share of an object from which it counts as seen, and up to which it does not.
CLEARLY_SEEN, HARDLY_SEEN = 0.5, 0.06

Point = tuple[float, float]
# Where (as a share of the image), how far, and in which colour a lamp shines.
Glow = tuple[float, float, float, Colour]

CIRCLE = [(math.cos(k * math.pi / 10), math.sin(k * math.pi / 10)) for k in range(20)]
# Letters as pen strokes in a unit box, y up.
STROKES: dict[str, list[list[Point]]] = {
    "A": [[(0, 0), (0.5, 1), (1, 0)], [(0.2, 0.4), (0.8, 0.4)]],
    "E": [[(1, 0), (0, 0), (0, 1), (1, 1)], [(0, 0.5), (0.8, 0.5)]],
    "F": [[(0, 0), (0, 1), (1, 1)], [(0, 0.5), (0.8, 0.5)]],
    "H": [[(0, 0), (0, 1)], [(1, 0), (1, 1)], [(0, 0.5), (1, 0.5)]],
    "K": [[(0, 0), (0, 1)], [(1, 1), (0, 0.45)], [(0.25, 0.6), (1, 0)]],
    "L": [[(0, 1), (0, 0), (1, 0)]],
    "M": [[(0, 0), (0, 1), (0.5, 0.4), (1, 1), (1, 0)]],
    "N": [[(0, 0), (0, 1), (1, 0), (1, 1)]],
    "O": [[(0.2, 0), (0, 0.25), (0, 0.75), (0.2, 1), (0.8, 1), (1, 0.75), (1, 0.25), (0.8, 0),
           (0.2, 0)]],
    "P": [[(0, 0), (0, 1), (0.8, 1), (1, 0.85), (1, 0.6), (0.8, 0.45), (0, 0.45)]],
    "S": [[(0, 0.1), (0.2, 0), (0.8, 0), (1, 0.2), (0.9, 0.45), (0.1, 0.55), (0, 0.8), (0.2, 1),
           (0.8, 1), (1, 0.9)]],
    "T": [[(0, 1), (1, 1)], [(0.5, 1), (0.5, 0)]],
    "V": [[(0, 1), (0.5, 0), (1, 1)]],
    "X": [[(0, 0), (1, 1)], [(0, 1), (1, 0)]],
    "Z": [[(0, 1), (1, 1), (0, 0), (1, 0)]],
}  # fmt: skip


class Canvas:
    """An image at twice its final size, and a map of which object is seen at each pixel.

    Owner 0 is scenery; every object whose visibility matters gets an owner of its own.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.side = size * SUPERSAMPLE
        self.image = Image.new("RGB", (self.side, self.side))
        self.owners = Image.new("L", (self.side, self.side))
        self.pen = ImageDraw.Draw(self.image)
        self.glass = ImageDraw.Draw(self.image, "RGBA")
        self.owner_pen = ImageDraw.Draw(self.owners)
        self.owner = 0
        self.kinds: list[str] = []
        self.areas: list[float] = []
        self.extent = [0.0, 0.0, 0.0, 0.0]
        self.glows: list[Glow] = []

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        """Fill a polygon given in pixels."""
        self.pen.polygon(points, fill=colour)
        if self.kinds:
            self.owner_pen.polygon(points, fill=self.owner)
        if self.owner:
            self._extend(points)

    def line(self, points: Sequence[Point], width: float, colour: Colour) -> None:
        """Draw a line given in pixels."""
        whole = max(1, round(width))
        joint = "curve" if whole > 4 else None
        self.pen.line(points, fill=colour, width=whole, joint=joint)
        if self.kinds:
            self.owner_pen.line(points, fill=self.owner, width=whole)
        if self.owner:
            self._extend(points)

    def _extend(self, points: Sequence[Point]) -> None:
        xs = [p[0] for p in points]
        ys = [p[1] for p in points]
        e = self.extent
        self.extent = [min(e[0], *xs), min(e[1], *ys), max(e[2], *xs), max(e[3], *ys)]

    def begin(self, kind: str) -> None:
        """What is drawn until `end` belongs to one object of this kind."""
        self.kinds.append(kind)
        self.owner = len(self.kinds)
        self.extent = [math.inf, math.inf, -math.inf, -math.inf]

    def end(self) -> None:
        """Close the object and note the area it would have with nothing before it or cut off."""
        left, top, right, bottom = self.extent
        inside = max(0.0, min(right, self.side) - max(left, 0.0)) * max(
            0.0, min(bottom, self.side) - max(top, 0.0)
        )
        share = inside / max(1e-6, (right - left) * (bottom - top))
        painted = self.owners.histogram()[self.owner]
        self.areas.append(painted / share if share > 0.02 else math.inf)
        self.owner = 0

    def visible(self) -> list[tuple[str, float]]:
        """For every object its kind and the share of it that is still seen."""
        counts = self.owners.histogram()
        seen = zip(self.kinds, self.areas, counts[1:], strict=False)
        return [(kind, count / area if area else 0.0) for kind, area, count in seen]


class Brush:
    """Draws in the frame of one object: x to the right, y up, its foot at 0 and its height 1."""

    def __init__(
        self,
        canvas: Canvas,
        x: float,
        y: float,
        height: float,
        *,
        mirror: bool = False,
        squeeze: float = 1.0,
        tilt: float = 0.0,
    ) -> None:
        self.canvas = canvas
        self.unit = height * canvas.side
        self.x, self.y = x * canvas.side, y * canvas.side
        across = self.unit * squeeze * (-1 if mirror else 1)
        self.a, self.c = across * math.cos(tilt), across * math.sin(tilt)
        self.b, self.d = self.unit * math.sin(tilt), -self.unit * math.cos(tilt)

    def at(self, x: float, y: float) -> Point:
        """The pixel of a point of the object."""
        return self.x + self.a * x + self.b * y, self.y + self.c * x + self.d * y

    def polygon(self, points: Iterable[Point], colour: Colour) -> None:
        """Fill a polygon."""
        x0, y0, a, b, c, d = self.x, self.y, self.a, self.b, self.c, self.d
        pixels = [(x0 + a * x + b * y, y0 + c * x + d * y) for x, y in points]
        self.canvas.polygon(pixels, colour)

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: Colour) -> None:
        """Fill a rectangle."""
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], colour)

    def oval(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        """Fill an ellipse."""
        circle = CIRCLE if max(rx, ry) * self.unit > 5 else CIRCLE[::2]
        self.polygon([(x + rx * u, y + ry * v) for u, v in circle], colour)

    def disc(self, x: float, y: float, radius: float, colour: Colour) -> None:
        """Fill a circle."""
        self.oval(x, y, radius, radius, colour)

    def arc(self, x: float, y: float, rx: float, ry: float, start: float, stop: float,
            colour: Colour) -> None:  # fmt: skip
        """Fill part of an ellipse between two angles, anticlockwise from the right."""
        steps = [start + (stop - start) * k / 8 for k in range(9)]
        self.polygon([(x + rx * math.cos(t), y + ry * math.sin(t)) for t in steps], colour)

    def regular(self, x: float, y: float, radius: float, corners: int, turn: float,
                colour: Colour) -> None:  # fmt: skip
        """Fill a regular polygon, `turn` being the angle of one corner."""
        angles = [turn + 2 * math.pi * k / corners for k in range(corners)]
        self.polygon([(x + radius * math.cos(t), y + radius * math.sin(t)) for t in angles], colour)

    def line(self, points: Iterable[Point], width: float, colour: Colour) -> None:
        """Draw a line of a width in the object's units."""
        self.canvas.line([self.at(x, y) for x, y in points], width * self.unit, colour)

    def ring(self, x: float, y: float, radius: float, width: float, colour: Colour) -> None:
        """Draw a circle."""
        points = [(x + radius * u, y + radius * v) for u, v in CIRCLE]
        self.line([*points, points[0], points[1]], width, colour)

    def limb(self, joints: Sequence[Point], width: float, colour: Colour) -> None:
        """Draw a line with round joints and ends."""
        self.line(joints, width, colour)
        if width * self.unit > 3:
            for x, y in joints:
                self.disc(x, y, width / 2, colour)

    def write(self, text: str, x0: float, y0: float, x1: float, y1: float, width: float,
              colour: Colour) -> None:  # fmt: skip
        """Write letters into a box."""
        step = (x1 - x0) / len(text)
        for k, letter in enumerate(text):
            left = x0 + k * step
            for stroke in STROKES[letter]:
                points = [(left + 0.76 * step * u, y0 + (y1 - y0) * v) for u, v in stroke]
                self.line(points, width, colour)

    def shadow(self, half_width: float, strength: int = 70) -> None:
        """Darken the ground under the object."""
        x, y, rx = self.x, self.y, half_width * self.unit
        ry = max(1.5, rx * 0.18)
        self.canvas.glass.ellipse((x - rx, y - ry, x + rx, y + ry), fill=(0, 0, 0, strength))

    def glow(self, x: float, y: float, radius: float, colour: Colour) -> None:
        """Shine: seen in the dark."""
        u, v = self.at(x, y)
        side = self.canvas.side
        self.canvas.glows.append((u / side, v / side, radius * self.unit / side, colour))


Drawer = Callable[[Brush, Dice], None]
