"""Boxes, arrows and sequences as SVG on a light card, so that they read on light and on dark pages."""

from __future__ import annotations

from dataclasses import dataclass, field
from xml.sax.saxutils import escape

INK, QUIET, LINE = "#1f2933", "#52606d", "#7b8794"
FILLS = {
    "plain": "#eef2f7", "role": "#d9e8fb", "server": "#dcf1e4", "accent": "#fdebc8", "bad": "#fad4d4",
    "done": "#e4e7eb", "host": "#f7f9fb",
}  # fmt: skip


@dataclass
class Picture:
    """Elements are added in the order in which they are painted. Lengths are pixels."""

    width: int
    height: int
    title: str
    _parts: list[str] = field(default_factory=list)

    def text(self, x: float, y: float, words: str, *, size: int = 13, anchor: str = "middle",
             bold: bool = False, color: str = INK, kind: str = "") -> None:  # fmt: skip
        """A line of text; `kind` is its class, by which a test finds it."""
        weight = ' font-weight="600"' if bold else ""
        named = f' class="{kind}"' if kind else ""
        self._parts.append(
            f'<text{named} x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" fill="{color}"'
            f"{weight}>"
            f"{escape(words)}</text>"
        )

    def box(self, x: float, y: float, w: float, h: float, lines: str = "", *, fill: str = "plain",
            top: bool = False, size: int = 13) -> None:  # fmt: skip
        """A rectangle with lines of text in the middle, or at its top; the first line is bold."""
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="6" fill="{FILLS[fill]}"'
            f' stroke="{LINE}"/>'
        )
        rows = lines.split("\n") if lines else []
        first = y + 18 if top else y + h / 2 - (len(rows) - 1) * (size + 3) / 2 + size * 0.36
        for number, row in enumerate(rows):
            color = INK if number == 0 else QUIET
            row_size = size if number == 0 else size - 1
            self.text(
                x + w / 2, first + number * (size + 3), row, size=row_size, bold=number == 0, color=color
            )

    def arrow(self, x1: float, y1: float, x2: float, y2: float, words: str = "", *, dashed: bool = False,
              both: bool = False, at: tuple[float, float] | None = None, anchor: str = "middle",
              kind: str = "") -> None:  # fmt: skip
        """A line with a head at its end; the label stands above its middle, or `at`."""
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        start = ' marker-start="url(#head)"' if both else ""
        self._parts.append(
            f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{QUIET}"'
            f' stroke-width="1.4"{dash}{start}'
            ' marker-end="url(#head)"/>'
        )
        if words:
            x, y = at or ((x1 + x2) / 2, (y1 + y2) / 2 - 5)
            self.text(x, y, words, size=12, anchor=anchor, kind=kind)

    def line(self, x1: float, y1: float, x2: float, y2: float, *, dashed: bool = False) -> None:
        dash = ' stroke-dasharray="4 4"' if dashed else ""
        self._parts.append(
            f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{LINE}" stroke-width="1"{dash}/>'
        )

    def svg(self) -> str:
        """The whole file."""
        return "\n".join([
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" height="{self.height}" role="img" '
            'font-family="system-ui, -apple-system, Segoe UI, Roboto, sans-serif">',
            f"<title>{escape(self.title)}</title>",
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
            f'orient="auto-start-reverse"><path d="M0,0 L8,4 L0,8 z" fill="{QUIET}"/></marker></defs>',
            f'<rect x="1" y="1" width="{self.width - 2}" height="{self.height - 2}" rx="10" fill="#ffffff" '
            f'stroke="{FILLS["done"]}"/>',
            *self._parts,
            "</svg>",
            "",
        ])  # fmt: skip


@dataclass
class Sequence:
    """Who sends what to whom, one row after the other."""

    title: str
    lanes: dict[str, str]
    """A short name of each lane, and what is written above it."""
    spacing: int = 230
    rows: list[tuple[str, str, str, str]] = field(default_factory=list)

    def send(self, start: str, end: str, words: str, *, reply: bool = False) -> None:
        """A call, or the reply to one."""
        self.rows.append(("reply" if reply else "call", start, end, words))

    def note(self, lane: str, words: str) -> None:
        """What happens at one lane."""
        self.rows.append(("note", lane, lane, words))

    def picture(self) -> Picture:
        at = {name: 110 + self.spacing * number for number, name in enumerate(self.lanes)}
        height = 74 + 34 * len(self.rows) + 16
        picture = Picture(220 + self.spacing * (len(self.lanes) - 1), height, self.title)
        for name, words in self.lanes.items():
            picture.line(at[name], 56, at[name], height - 12, dashed=True)
            picture.box(at[name] - 90, 14, 180, 42, words, fill="role")
        for number, (kind, start, end, words) in enumerate(self.rows):
            y = 86 + 34 * number
            if kind == "note":
                width = 7.0 * len(words) + 20
                left = min(max(at[start] - width / 2, 8), picture.width - width - 8)
                picture.box(left, y - 15, width, 24)
                picture.text(left + width / 2, y + 1, words, size=12)
            elif start == end:
                picture.arrow(at[start], y - 4, at[start] + 34, y - 4)
                picture.text(at[start] + 42, y, words, size=12, anchor="start", kind=kind)
            else:
                picture.arrow(at[start], y, at[end], y, words, dashed=kind == "reply", kind=kind)
        return picture
