"""A small SVG: text, bars, lines and dots on a light card, which reads on light and on dark pages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal
from xml.sax.saxutils import escape

INK, QUIET, LINE, EDGE = "#1f2933", "#52606d", "#cbd2d9", "#e4e7eb"
BLUE, GREY, RED = "#2f6fb5", "#9aa5b1", "#c0392b"

Anchor = Literal["start", "middle", "end"]


class SvgPicture:
    """Elements are painted in the order in which they are added. Lengths are pixels, y points down."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self._parts: list[str] = []
        self.text(20, 30, title, size=15, bold=True)

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: int = 12,
        anchor: Anchor = "start",
        bold: bool = False,
        color: str = INK,
    ) -> None:
        """A line of text on the baseline `y`."""
        weight = ' font-weight="600"' if bold else ""
        self._parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" fill="{color}"{weight}>'
            f"{escape(words)}</text>"
        )

    def bar(self, x: float, y: float, width: float, height: float, color: str) -> None:
        """A filled rectangle."""
        self._parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{height:.1f}" '
            f'fill="{color}"/>'
        )

    def line(
        self, x1: float, y1: float, x2: float, y2: float, *, color: str = LINE, dashed: bool = False
    ) -> None:
        """A thin line."""
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        self._parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}"{dash}/>'
        )

    def dots(
        self, points: Iterable[Sequence[float]], color: str, *, radius: float, opacity: float = 1
    ) -> None:
        """Circles of one size, as one element."""
        path = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in points)
        self._parts.append(
            f'<path d="{path}" stroke="{color}" stroke-width="{2 * radius:g}" stroke-linecap="round" '
            f'stroke-opacity="{opacity:g}"/>'
        )

    def svg(self) -> str:
        """The whole file."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" height="{self.height}" role="img" '
            'font-family="system-ui, -apple-system, Segoe UI, Roboto, sans-serif">'
        )
        card = (
            f'<rect x="0.5" y="0.5" width="{self.width - 1}" height="{self.height - 1}" rx="10" '
            f'fill="#ffffff" stroke="{EDGE}"/>'
        )
        return "\n".join([head, f"<title>{escape(self.title)}</title>", card, *self._parts, "</svg>", ""])
