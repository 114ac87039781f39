"""A picture drawn with Pillow, which is here anyway: crisp at twice the width that a page shows it in.

All lengths are those of the page, in CSS pixels. The font is the one that Pillow brings (Aileron, ASCII
only), so that a picture is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

Point = tuple[float, float]

SHOWN = 2  # pixels of the file for one of the page: for screens of twice the density
DRAWN = 4  # pixels drawn for one of the page; made smaller at the end, which smooths lines


@dataclass(frozen=True)
class Box:
    """A rectangle: its left, top, right and bottom edge."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        return self.right - self.left

    @property
    def height(self) -> float:
        return self.bottom - self.top


class Canvas:
    """A white card with round corners and a thin edge, transparent around them: for light and dark pages."""

    def __init__(self, width: int, height: int, *, radius: int = 10, edge: str = "#d0d7de") -> None:
        self._image = Image.new("RGBA", (width * DRAWN, height * DRAWN), "#ffffff00")
        self._draw = ImageDraw.Draw(self._image)
        self.size = (width, height)
        self.box(Box(0, 0, width - 0.25, height - 0.25), fill="#ffffff", outline=edge, radius=radius)

    def text(
        self, at: Point, words: str, size: float = 12, *, colour: str = "#1f2328", anchor: str = "ls",
        bold: bool = False,
    ) -> None:  # fmt: skip
        """Words at a point of their baseline: anchor "ls" starts there, "ms" is centred, "rs" ends there."""
        if not words.isascii():
            raise ValueError(f"the font has no letters for {words!r}")
        stroke = round(size * DRAWN / 38) if bold else 0
        self._draw.text(_drawn(at), words, colour, _font(size), anchor=anchor, stroke_width=stroke)

    def width_of(self, words: str, size: float = 12, *, bold: bool = False) -> float:
        """How wide words are."""
        stroke = 2 * round(size * DRAWN / 38) if bold else 0
        return (float(_font(size).getlength(words)) + stroke) / DRAWN

    def line(self, points: Sequence[Point], colour: str, width: float = 1) -> None:
        """Through points, in order."""
        where = [_drawn(point) for point in points]
        self._draw.line(where, colour, round(width * DRAWN), joint="curve")

    def dashed(self, x: float, top: float, bottom: float, colour: str, width: float = 1) -> None:
        """A vertical line of dashes."""
        y = top
        while y < bottom:
            self.line([(x, y), (x, min(y + 4, bottom))], colour, width)
            y += 7

    def area(self, corners: Sequence[Point], colour: str) -> None:
        """A filled polygon."""
        self._draw.polygon([_drawn(corner) for corner in corners], colour)

    def dot(self, at: Point, radius: float, colour: str) -> None:
        """A filled circle."""
        (x, y), r = _drawn(at), radius * DRAWN
        self._draw.ellipse((x - r, y - r, x + r, y + r), colour)

    def cross(self, at: Point, radius: float, colour: str, width: float = 2) -> None:
        """What was struck out."""
        x, y = at
        self.line([(x - radius, y - radius), (x + radius, y + radius)], colour, width)
        self.line([(x - radius, y + radius), (x + radius, y - radius)], colour, width)

    def box(
        self, box: Box, *, fill: str | None = None, outline: str | None = None, radius: float = 0
    ) -> None:
        """A rectangle, filled or not, with round corners."""
        where = [_drawn((box.left, box.top)), _drawn((box.right, box.bottom))]
        self._draw.rounded_rectangle(where, radius * DRAWN, fill, outline, DRAWN if outline else 0)

    def pixels(self, box: Box, rows: Sequence[Sequence[float]]) -> None:
        """A small grey picture of values in [0, 1], 0 white as ink on paper."""
        high, wide = box.height / len(rows), box.width / len(rows[0])
        for y, row in enumerate(rows):
            for x, value in enumerate(row):
                grey = round(255 * (1 - value))
                left, top = box.left + x * wide, box.top + y * high
                cell = Box(left, top, left + wide, top + high)
                self.box(cell, fill=f"#{grey:02x}{grey:02x}{grey:02x}")

    def save(self, path: Path) -> None:
        """As PNG. Shades of edges are rounded, which nobody sees and halves the file."""
        width, height = self.size
        small = self._image.resize((width * SHOWN, height * SHOWN), Image.Resampling.BOX)
        small = small.point([min(255, round(value / 10) * 10) for value in range(256)] * 4)
        path.parent.mkdir(parents=True, exist_ok=True)
        small.save(path, optimize=True)


def _drawn(point: Point) -> Point:
    return point[0] * DRAWN, point[1] * DRAWN


@cache
def _font(size: float) -> Any:
    return ImageFont.load_default(size * DRAWN)
