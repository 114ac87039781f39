"""Every format in a folder of its own; what does not fit is a row that says why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.unit.export.test_agreement_report import GOOD

from distqat.errors import CheckpointError, ExportError, MissingExtra
from distqat.export import export_all as all_formats
from distqat.export.agreement_report import ExportReport
from distqat.export.export_all import FormatResult, as_text, export_all, notes, table, write_page
from distqat.export.stress import Agreed
from distqat.quant.weight_health import WeightHealth

FAILED = replace(GOOD, failures=("98% of the answers agree, 99.9% were wanted",))
OUTCOMES: dict[str, ExportReport | Exception] = {
    "one": GOOD,
    "two": ExportError("front.conv1 is a convolution"),
    "three": MissingExtra("torchao", "torchao", "it"),
    "four": replace(FAILED, operations=None),
}


@pytest.fixture
def formats(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Each with the outcome above; what they were asked for."""
    asked: dict[str, Any] = {}

    def export_as(name: str, request: Any) -> ExportReport:
        asked[name] = request
        outcome = OUTCOMES[name]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(all_formats, "FORMATS", dict.fromkeys(OUTCOMES))
    monkeypatch.setattr(all_formats, "export_as", export_as)
    return asked


def test_each_has_its_folder_and_a_model_of_its_own(formats: dict[str, Any], tmp_path: Path) -> None:
    def request(name: str, folder: Path) -> Any:
        return SimpleNamespace(folder=folder, model=object())

    results = export_all(request, tmp_path)
    assert {name: each.folder for name, each in formats.items()} == {n: tmp_path / n for n in OUTCOMES}
    assert len({id(each.model) for each in formats.values()}) == 4
    assert [each.failed for each in results] == [False, False, False, True]
    lines = as_text(table(results))
    assert lines == [
        "format  same answer  size   integer products  result",
        "one     100.000%     0.300  3 of 3            passed",
        "two     -            -      -                 not made: front.conv1 is a convolution",
        "three   -            -      -                 not made: it needs the package 'torchao', "
        "which is not installed: pip install 'distqat[torchao]'",
        "four    100.000%     0.300  -                 failed: 98% of the answers agree, 99.9% were wanted",
    ]
    write_page(results, tmp_path, "checkpoint c, round 3")
    page = (tmp_path / "report.md").read_text()
    assert "| [one](one/report.md) | 100.000% | 0.300 | 3 of 3 | passed |" in page
    assert "| two | - | - | - | not made: front.conv1 is a convolution |" in page


def test_a_note_of_some_formats_says_of_which() -> None:
    sick = replace(GOOD, weights=(WeightHealth("fc", 8, 0.2, 0.36, 127, 1.0),))
    blocks = replace(sick, remarks=("scales are float16",))
    said = notes([FormatResult("one", sick), FormatResult("two", blocks), FormatResult("three", why="no")])
    assert [sentence.partition(" in ")[0] for sentence in said] == [
        "weights have outgrown their steps",
        "two: scales are float16",
    ]


def test_an_error_of_another_kind_is_no_row(formats: dict[str, Any], tmp_path: Path) -> None:
    def request(name: str, folder: Path) -> Any:
        raise CheckpointError("the model cannot be read")

    with pytest.raises(CheckpointError):
        export_all(request, tmp_path)


def test_the_stress_set_has_a_column_where_a_format_has_it() -> None:
    stressed = replace(GOOD, stress=Agreed(samples=40, places=40, agreement=0.9995, largest_error=0.1))
    rows = table([FormatResult("one", stressed), FormatResult("two", GOOD), FormatResult("three", why="no")])
    assert [row[2] for row in rows] == ["stress set", "99.950%", "-", "-"]
    assert len({len(row) for row in rows}) == 1
