"""The pictures of a report: weights and their codes, answers with and without quantization, latency."""

from __future__ import annotations

import math
from collections.abc import Sequence

from distqat.export.latency import LatencyMedians
from distqat.export.output_agreement import FloatAnswers
from distqat.export.svg_picture import BLUE, GREY, LINE, QUIET, RED, SvgPicture
from distqat.quant.weight_health import LEAST_RANGE, WeightHealth

MOST_ROWS = 60
"""Of the picture of weights: of a deeper model it shows the worst."""
_ROW, _TOP = 18, 92
_LOWEST, _DECADES = -3, 3  # errors from 0.1 % to 100 %
_NAME_LETTERS = 38
_BINS, _SIDE = 41, 330


def weights_picture(layers: Sequence[WeightHealth]) -> str:
    """A row per layer: relative error on a logarithmic scale, the range of codes in use, what is clipped."""
    shown = sorted(layers, key=lambda each: each.error / each.limits[0])[-MOST_ROWS:]
    rows = [layer for layer in layers if layer in shown]
    few = f"the worst {len(rows)} of {len(layers)} layers" if len(rows) < len(layers) else "by layer"
    picture = SvgPicture(860, _TOP + _ROW * len(rows) + 22, f"Weights and their codes, {few}")
    errors, ranges, wide, end = 290, 560, 190, _TOP + _ROW * len(rows)
    picture.text(errors, 56, "error: ||q - w|| / ||w||", color=QUIET)
    picture.text(ranges, 56, "largest code, median over channels", color=QUIET)
    picture.text(845, 74, "clipped", anchor="end", color=QUIET)
    for decade in range(_DECADES + 1):
        x = errors + wide * decade / _DECADES
        picture.line(x, _TOP - 10, x, end)
        picture.text(x, 74, f"{100 * 10.0 ** (_LOWEST + decade):g}%", size=11, anchor="middle", color=QUIET)
    for share in (0.0, LEAST_RANGE, 1.0):
        x = ranges + wide * share
        picture.text(x, 74, f"{share:.0%}", size=11, anchor="middle", color=QUIET)
        picture.line(x, _TOP - 10, x, end)
    for number, layer in enumerate(rows):
        y = _TOP + _ROW * number
        color = RED if layer.ailment else BLUE
        picture.text(20, y + 9, _shortened(layer.name), size=11)
        limit = errors + wide * _decades(layer.limits[0])
        picture.line(limit, y - 1, limit, y + 11, color=RED)
        picture.dots([(errors + wide * _decades(layer.error), y + 5)], color, radius=4)
        picture.bar(ranges, y, wide * layer.range_used, 10, color)
        picture.text(ranges + wide + 8, y + 9, f"{layer.largest_code:.0f}", size=11, color=QUIET)
        picture.text(845, y + 9, f"{layer.clipped:.1%}", size=11, anchor="end", color=QUIET)
    picture.text(20, 74, "red line: largest healthy error", size=11, color=QUIET)
    return picture.svg()


def answers_picture(answers: FloatAnswers) -> str:
    """Outputs of the quantized model over those of the float one, and how far they are apart."""
    picture = SvgPicture(860, _SIDE + 110, "Outputs: quantized against float")
    left, top, points = 60, 56, answers.points
    values = [value for point in points for value in point]
    low, high = min(values), max(values)
    span = (high - low) or 1.0

    def at(value: float) -> float:
        return _SIDE * (value - low) / span

    for tick in _ticks(low, high):
        picture.line(left + at(tick), top, left + at(tick), top + _SIDE)
        picture.line(left, top + _SIDE - at(tick), left + _SIDE, top + _SIDE - at(tick))
        picture.text(left + at(tick), top + _SIDE + 16, f"{tick:g}", size=11, anchor="middle", color=QUIET)
        picture.text(left - 6, top + _SIDE - at(tick) + 4, f"{tick:g}", size=11, anchor="end", color=QUIET)
    picture.line(left, top + _SIDE, left + _SIDE, top, color=GREY, dashed=True)
    places = [(left + at(x), top + _SIDE - at(y)) for x, y in points]
    picture.dots(places, BLUE, radius=1.8, opacity=0.45)
    picture.text(left + _SIDE / 2, top + _SIDE + 36, "float", anchor="middle", color=QUIET)
    picture.text(left, 50, "quantized", color=QUIET)
    _histogram(picture, [y - x for x, y in points], 470, top)
    return picture.svg()


def latency_picture(rows: Sequence[LatencyMedians]) -> str:
    """Two bars for each batch size, in shares of the slower one."""
    picture = SvgPicture(860, 56 + 64 * len(rows), "Latency, one thread: integer against float")
    for number, row in enumerate(rows):
        y, longest = 50 + 64 * number, max(row.float_ms, row.integer_ms) or 1.0
        picture.text(20, y + 24, f"batch of {row.batch}", bold=True)
        told = f"{row.integer_ms:.3g} ms, {row.ratio:.2f} of float"
        for below, milliseconds, color, words in (
            (0, row.float_ms, GREY, f"{row.float_ms:.3g} ms"),
            (22, row.integer_ms, BLUE if row.ratio <= 1 else RED, told),
        ):
            width = 480 * milliseconds / longest
            picture.text(175, y + below + 14, "integer" if below else "float", anchor="end", color=QUIET)
            picture.bar(185, y + below, width, 18, color)
            picture.text(193 + width, y + below + 14, words)
    return picture.svg()


def _histogram(picture: SvgPicture, differences: Sequence[float], left: float, top: float) -> None:
    """Of the differences, around zero; the few that lie far out are in the last bins."""
    spread = sorted(abs(each) for each in differences)
    bound = spread[math.ceil(0.99 * len(spread)) - 1] or 1e-9
    counts = [0] * _BINS
    for each in differences:
        place = (each / bound + 1) / 2 * _BINS
        counts[min(max(math.floor(place), 0), _BINS - 1)] += 1
    wide, tallest = _SIDE / _BINS, max(counts)
    for number, count in enumerate(counts):
        height = _SIDE * count / tallest
        picture.bar(left + number * wide, top + _SIDE - height, wide - 1, height if count else 0, BLUE)
    picture.line(left, top + _SIDE, left + _SIDE, top + _SIDE, color=LINE)
    for share in (-1, -0.5, 0, 0.5, 1):
        x = left + _SIDE * (share + 1) / 2
        picture.text(x, top + _SIDE + 16, f"{share * bound:.2g}", size=11, anchor="middle", color=QUIET)
    words = f"quantized - float (99% lie within ±{bound:.2g})"
    picture.text(left + _SIDE / 2, top + _SIDE + 36, words, anchor="middle", color=QUIET)
    picture.text(left, 50, "how many", color=QUIET)


def _decades(error: float) -> float:
    """Where an error is on the axis, 0 to 1."""
    place = (math.log10(max(error, 1e-9)) - _LOWEST) / _DECADES
    return min(max(place, 0.0), 1.0)


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers between them."""
    raw = (high - low) / 5 or 1.0
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * size for factor in (1, 2, 5, 10) if factor * size >= raw)
    first = math.ceil(low / step)
    return [round(number * step, 12) for number in range(first, math.floor(high / step) + 1)]


def _shortened(name: str) -> str:
    """A long name without its middle."""
    return name if len(name) <= _NAME_LETTERS else f"{name[:14]}...{name[17 - _NAME_LETTERS :]}"
