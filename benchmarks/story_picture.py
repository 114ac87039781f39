"""The picture of a story: what was measured while it trained, the kill, and what came out at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.canvas import Box, Canvas, Point
from benchmarks.story_record import BIN_S, Story

WIDTH, HEIGHT, MARGIN = 880, 594, 22
INK, GREY, RULE = "#1f2328", "#59636e", "#d8dee4"
RED, GREEN = "#cf222e", "#1a7f37"
BLUES = ("#0969da", "#80ccff")  # of pipelines; the first is also that of int8
FLOAT, BAR = "#afb8c1", "#8c959f"
PANEL_LEFT, PANEL_RIGHT = MARGIN + 62.0, WIDTH - MARGIN - 4.0
ACCURACY = Box(PANEL_LEFT, 96, PANEL_RIGHT, 196)
SPEED = Box(PANEL_LEFT, 226, PANEL_RIGHT, 290)
SERVERS = Box(PANEL_LEFT, 320, PANEL_RIGHT, 384)
CARDS_TOP, CARDS_BOTTOM = 420.0, 574.0


@dataclass(frozen=True)
class Panel:
    """A plot over the time of the run, up to a largest value."""

    box: Box
    seconds: float
    low: float
    high: float

    def x(self, second: float) -> float:
        return self.box.left + self.box.width * second / self.seconds

    def y(self, value: float) -> float:
        return self.box.bottom - self.box.height * (value - self.low) / (self.high - self.low)


def draw_story(story: Story, path: Path) -> None:
    """Write the picture as PNG."""
    canvas = Canvas(WIDTH, HEIGHT)
    seconds = max(when for when, _ in story.evaluations)
    _head(canvas, story)
    _accuracy(canvas, story, Panel(ACCURACY, seconds, 0.0, 1.0))
    _speed(canvas, story, seconds)
    _servers(canvas, story, seconds)
    _time_axis(canvas, Panel(SERVERS, seconds, 0, 1))
    _kill(canvas, story, Panel(ACCURACY, seconds, 0, 1))
    width = (WIDTH - 2 * MARGIN - 2 * 14) / 3
    cards: list[Callable[[Canvas, Story, Box], None]] = [_checked, _exported, _predicted]
    for number, card in enumerate(cards):
        left = MARGIN + number * (width + 14)
        box = Box(left, CARDS_TOP, left + width, CARDS_BOTTOM)
        canvas.box(box, fill="#f6f8fa", outline=RULE, radius=6)
        card(canvas, story, box)
    canvas.save(path)


def _head(canvas: Canvas, story: Story) -> None:
    replicas = len(story.serving) // len(story.stages)
    rounds, samples = story.summary["rounds"], story.summary["samples"]
    canvas.text(
        (MARGIN, 40), "A server is killed, training goes on, and ends in an int8 model", 21, bold=True
    )
    told = f"{len(story.stages)} stages x {replicas} replicas, {rounds} rounds, {samples:,} samples"
    told = f"ResNet-18 on handwritten digits, quantization-aware: {told}, {story.about['cores']} CPU cores"
    canvas.text((MARGIN, 63), told, 13, colour=GREY)


def _frame(canvas: Canvas, panel: Panel, title: str, ticks: Sequence[tuple[float, str]]) -> None:
    box = panel.box
    canvas.text((MARGIN, box.top - 9), title, 12.5, bold=True)
    for value, label in ticks:
        y = panel.y(value)
        canvas.line([(box.left, y), (box.right, y)], RULE, 0.75)
        canvas.text((box.left - 7, y + 4), label, 11.5, colour=GREY, anchor="rs")


def _accuracy(canvas: Canvas, story: Story, panel: Panel) -> None:
    ticks = [(0.0, "0"), (0.5, "50"), (1.0, "100")]
    _frame(canvas, panel, "Accuracy on held-out digits, %", ticks)
    points = [(panel.x(when), panel.y(value)) for when, value in story.evaluations]
    canvas.line(points, BLUES[0], 2)
    for point in points:
        canvas.dot(point, 2.6, BLUES[0])
    last = story.evaluations[-1][1]
    canvas.text(
        (panel.box.right, points[-1][1] + 20), f"{last:.1%}", 15, colour=BLUES[0], anchor="rs", bold=True
    )


def _speed(canvas: Canvas, story: Story, seconds: float) -> None:
    """Pipelines on top of each other; the last bin, which the run did not fill, is left out."""
    pipelines = [[count / BIN_S for count in counts[:-1]] for counts in story.samples.values()]
    total = [sum(each) for each in zip(*pipelines, strict=True)]
    high = _round_up(max(total))
    panel = Panel(SPEED, seconds, 0, high)
    _frame(canvas, panel, "Samples per second", [(0, "0"), (high / 2, f"{high / 2:g}"), (high, f"{high:g}")])
    below = [0.0] * len(total)
    for number, speeds in enumerate(pipelines):
        above = [base + speed for base, speed in zip(below, speeds, strict=True)]
        upper = _stairs(panel, above)
        canvas.area([*upper, *reversed(_stairs(panel, below))], BLUES[number % len(BLUES)])
        below = above
    x = panel.box.right
    for number in reversed(range(len(pipelines))):
        x -= _key(canvas, (x, panel.box.top - 9), f"pipeline {number}", BLUES[number % len(BLUES)]) + 14


def _key(canvas: Canvas, end: Point, words: str, colour: str) -> float:
    """What a colour means, left of a point; how wide that is."""
    canvas.text(end, words, 11.5, colour=GREY, anchor="rs")
    width = canvas.width_of(words, 11.5) + 15
    left, bottom = end[0] - width, end[1] + 1
    canvas.box(Box(left, bottom - 10, left + 10, bottom), fill=colour, radius=2)
    return width


def _stairs(panel: Panel, values: Sequence[float]) -> list[Point]:
    """Two corners for every bin."""
    edges = [(edge * BIN_S, value) for n, value in enumerate(values) for edge in (n, n + 1)]
    return [(panel.x(second), panel.y(value)) for second, value in edges]


def _servers(canvas: Canvas, story: Story, seconds: float) -> None:
    """A bar from when to when each slot was served."""
    panel = Panel(SERVERS, seconds, 0, 1)
    slots = sorted(story.serving, key=lambda uid: (story.stages.index(uid.partition(".")[0]), uid))
    high = panel.box.height / len(slots)
    canvas.text((MARGIN, panel.box.top - 9), "Servers", 12.5, bold=True)
    for number, uid in enumerate(slots):
        top = panel.box.top + number * high
        canvas.text((panel.box.left - 7, top + high / 2 + 4), uid, 11.5, colour=GREY, anchor="rs")
        for since, until in story.serving[uid]:
            bar = Box(panel.x(since), top + 3, panel.x(until), top + high - 3)
            canvas.box(bar, fill=BAR, radius=2)
        if uid == story.kill.victim:
            canvas.cross((panel.x(story.kill.at), top + high / 2), 4.5, RED)


def _time_axis(canvas: Canvas, panel: Panel) -> None:
    step = next(step for step in (2, 5, 10, 20, 60, 120, 300, 600) if panel.seconds / step <= 10)
    for second in range(0, int(panel.seconds) + 1, step):
        x = panel.x(second)
        canvas.line([(x, panel.box.bottom + 2), (x, panel.box.bottom + 6)], GREY, 0.75)
        canvas.text((x, panel.box.bottom + 19), f"{second} s", 11.5, colour=GREY, anchor="ms")


def _kill(canvas: Canvas, story: Story, panel: Panel) -> None:
    """Two lines over all panels, and what happened at them."""
    kill = story.kill
    x, back = panel.x(kill.at), panel.x(kill.served)
    canvas.dashed(x, ACCURACY.top, SERVERS.bottom, RED, 1.25)
    canvas.dashed(back, ACCURACY.top, SERVERS.bottom, GREEN, 1.25)
    gap, y = 8, panel.box.bottom - 54
    canvas.text((x - gap, y), f"SIGKILL to {kill.victim}", 12.5, colour=RED, anchor="rs", bold=True)
    later = kill.went_on - kill.at
    canvas.text((x - gap, y + 17), f"after {later:.2f} s its pipeline", 12, colour=GREY, anchor="rs")
    canvas.text((x - gap, y + 33), f"goes on through {kill.over}", 12, colour=GREY, anchor="rs")
    words = f"a new process serves after {kill.served - kill.at:.1f} s"
    canvas.text((back + gap, y), words, 12.5, colour=GREEN, bold=True)
    canvas.text((back + gap, y + 17), f"with the weights of {kill.state}", 12, colour=GREY)


def _title(canvas: Canvas, box: Box, command: str, what: str) -> float:
    """A card's head; where its body begins."""
    canvas.text((box.left + 14, box.top + 24), command, 13.5, bold=True)
    canvas.text((box.left + 14, box.top + 42), what, 12, colour=GREY)
    return box.top + 64


def _checked(canvas: Canvas, story: Story, box: Box) -> None:
    y = _title(canvas, box, "distqat export", "int8 file, run beside the trained model")
    report = story.report
    ran, places = report["operations"], report["places"]
    rows = [
        (f"{report['agreement']:.1%}", f"of {places:,} answers are the same"),
        (f"{ran['integer']} / {ran['quantizable']}", "products run on integers"),
        (f"{report['metrics']['exported']:.1%}", f"accuracy (float {report['metrics']['float']:.1%})"),
        (story.verified.partition(" are ")[0].replace(" of ", " / "), "checkpoint files verified"),
    ]
    for number, (figure, words) in enumerate(rows):
        line = y + 6 + number * 22
        canvas.text((box.left + 78, line), figure, 14, colour=GREEN, anchor="rs", bold=True)
        canvas.text((box.left + 88, line), words, 12.5)


def _exported(canvas: Canvas, story: Story, box: Box) -> None:
    y = _title(canvas, box, "int8 against float", "ONNX Runtime, one thread")
    x = box.right - 14
    for words, colour in (("float", FLOAT), ("int8", BLUES[0])):
        x -= _key(canvas, (x, box.top + 42), words, colour) + 12
    sizes, single = story.report["sizes"], story.report["latencies"][0]
    many = story.report["latencies"][-1]
    rows = [
        ("file, MB", sizes["float_file"] / 1e6, sizes["integer_file"] / 1e6),
        (f"{single['batch']} image, ms", single["float_ms"], single["integer_ms"]),
        (f"{many['batch']} images, ms", many["float_ms"], many["integer_ms"]),
    ]
    for number, (what, floating, integer) in enumerate(rows):
        top = y - 6 + number * 29
        canvas.text((box.left + 14, top + 15), what, 12.5)
        left, full = box.left + 106, box.width - 156
        for place, (value, colour) in enumerate(((floating, FLOAT), (integer, BLUES[0]))):
            line = top + place * 12
            canvas.box(Box(left, line, left + full * value / floating, line + 9), fill=colour, radius=2)
            words = f"{value:.3g}"
            canvas.text((left + full * value / floating + 6, line + 9), words, 11, colour=GREY)


def _predicted(canvas: Canvas, story: Story, box: Box) -> None:
    y = _title(canvas, box, "distqat predict digit.png", f"a held-out digit, which is a {story.label}")
    size = box.bottom - y - 6
    picture = Box(box.left + 14, y - 8, box.left + 14 + size, y - 8 + size)
    canvas.pixels(picture, story.pixels)
    canvas.box(picture, outline=RULE)
    left = picture.right + 16
    best = story.answers[0]
    colour = GREEN if best[0] == story.label else RED
    canvas.text((left, y + 30), best[0], 44, colour=colour, bold=True)
    for number, (answer, share) in enumerate(story.answers):
        canvas.text((left, y + 52 + number * 15), f"{answer}   {share:.2%}", 12, colour=GREY)


def _round_up(value: float) -> float:
    """The next of 1, 2, 4, 5, 6, 8 times a power of ten."""
    power = 10.0 ** (len(str(int(value))) - 1)
    return next(n * power for n in (1, 2, 3, 4, 5, 6, 8, 10) if n * power >= value)
