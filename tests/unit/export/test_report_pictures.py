"""The pictures of a report are SVG that any reader of XML takes, and show what they are of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from tests.unit.export.test_agreement_report import GOOD

from distqat.export.latency import LatencyMedians
from distqat.export.output_agreement import FloatAnswers
from distqat.export.report_pictures import (
    MOST_ROWS,
    answers_picture,
    latency_picture,
    weights_picture,
)
from distqat.export.svg_picture import BLUE, RED
from distqat.quant.weight_health import WeightHealth

WELL = WeightHealth("front.conv1", 8, error=0.007, clipped=0.0, largest_code=127, codes_used=0.9)
CLIPPED = replace(WELL, name="back.<conv>&2", error=0.2, clipped=0.36)
ANSWERS = FloatAnswers(0.99, 100, tuple((x / 10, x / 10 + 0.01 * (x % 3)) for x in range(-50, 50)))


def words_of(picture: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(picture).iter() if element.text]


def colors_of(picture: str, tag: str) -> list[str]:
    found = ElementTree.fromstring(picture).iter(f"{{http://www.w3.org/2000/svg}}{tag}")
    return [each.get("fill") or "" for each in found][1:]  # the first is the card


def test_a_row_per_layer_and_sick_ones_stand_out() -> None:
    picture = weights_picture([WELL, CLIPPED])
    assert {"front.conv1", "back.<conv>&2", "0.0%", "36.0%", "127"} <= set(words_of(picture))
    assert colors_of(picture, "rect") == [BLUE, RED]


def test_of_many_layers_the_worst_are_shown_in_their_order() -> None:
    layers = [replace(WELL, name=f"layer{i}", error=0.001 * (1 + i % 7)) for i in range(MOST_ROWS + 30)]
    shown = [word for word in words_of(weights_picture(layers)) if word.startswith("layer")]
    assert len(shown) == MOST_ROWS
    assert shown == sorted(shown, key=lambda name: int(name.removeprefix("layer")))
    assert "layer0" not in shown
    assert "layer6" in shown


@pytest.mark.parametrize("points", [ANSWERS.points, ((0.0, 0.0),), ((-1e-5, 1e-5), (1e4, 1e4))])
def test_answers_of_any_size(points: tuple[tuple[float, float], ...]) -> None:
    picture = answers_picture(replace(ANSWERS, points=points))
    assert {"float", "quantized"} <= set(words_of(picture))
    (dots,) = ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}path")
    assert (dots.get("d") or "").count("M") == len(points)
    assert "nan" not in picture


def test_what_is_slower_than_float_is_red() -> None:
    picture = latency_picture([LatencyMedians(1, 2.0, 1.0, 9), LatencyMedians(64, 10.0, 13.3, 9)])
    assert {"batch of 1", "1 ms, 0.50 of float", "13.3 ms, 1.33 of float"} <= set(words_of(picture))
    assert colors_of(picture, "rect")[1::2] == [BLUE, RED]


def test_pictures_lie_beside_the_page_that_shows_them(tmp_path: Path) -> None:
    report = replace(GOOD, weights=(WELL, CLIPPED), against_float=ANSWERS)
    report.write(tmp_path)
    page = (tmp_path / "report.md").read_text()
    for name in ("weights.svg", "answers.svg", "latency.svg"):
        assert f"]({name})" in page
        assert (tmp_path / name).is_file()
    assert "- weights have outgrown their steps in 1 of 2 quantized layers" in page
    assert "| front.conv1 | 8 | 0.70% | 0.00% | 127 | 90% |  |" in page
    assert "give the same answer in 99.00% of 100 places" in page
    told = report.to_json()
    assert [each["ailment"] for each in told["weights"]] == [None, "clipped"]
    assert told["against_float"] == {"agreement": 0.99, "places": 100}


def test_without_figures_there_are_none(tmp_path: Path) -> None:
    replace(GOOD, latencies=(), layers=()).write(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".svg"] == []
    assert ".svg" not in (tmp_path / "report.md").read_text()
