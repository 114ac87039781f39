"""`--all`: every format that fits the model, each in a folder of its own, and one table over all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from distqat.environment import SPELL
from distqat.errors import ExportError, MissingExtra
from distqat.export.agreement_report import MARKDOWN_NAME, ExportReport
from distqat.export.export_request import FORMATS, ExportRequest, export_as

Row = tuple[str, ...]


@dataclass(frozen=True)
class FormatResult:
    """One format: its report, or why there is none."""

    name: str
    report: ExportReport | None = None
    why: str = ""

    @property
    def failed(self) -> bool:
        """Whether it was made, and did not pass its check."""
        return self.report is not None and not self.report.passed

    @property
    def result(self) -> str:
        """What came of it, for people."""
        if self.report is None:
            return f"not made: {self.why}"
        return "passed" if self.report.passed else f"failed: {'; '.join(self.report.failures)}"


def export_all(request: Callable[[str, Path], ExportRequest], folder: Path) -> list[FormatResult]:
    """Make each format in `folder/NAME`, one after the other.

    `request` gives the request for a format and a folder, with a model that no other format has settled.
    A format that cannot hold the model, or whose packages are not installed, is a result without a report.
    """
    results = []
    for name in FORMATS:
        asked = request(name, folder / name)
        try:
            results.append(FormatResult(name, export_as(name, asked)))
        except (ExportError, MissingExtra) as error:
            results.append(FormatResult(name, why=str(error)))
    return results


def table(results: Sequence[FormatResult]) -> list[Row]:
    """The header, and a row for each; with the agreement on the stress set where a report has it."""
    stressed = any(stress_agreement(each.report) is not None for each in results)
    extra = ("stress set",) if stressed else ()
    rows: list[Row] = [("format", "same answer", *extra, "size", "integer products", "result")]
    for each in results:
        report = each.report
        cells = ("-", *["-"] * stressed, "-", "-")
        if report is not None:
            ran, stress = report.operations, stress_agreement(report)
            cells = (
                f"{report.agreement:.3%}",
                *(["-" if stress is None else f"{stress:.3%}"] if stressed else []),
                f"{report.size_ratio:.3f}",
                "-" if ran is None else f"{ran.integer} of {ran.quantizable}",
            )
        rows.append((each.name, *cells, each.result))
    return rows


def notes(results: Sequence[FormatResult]) -> list[str]:
    """What the reports note, once; what is not true of all formats says of which it is."""
    of: dict[str, list[str]] = {}
    made = [(each.name, each.report) for each in results if each.report is not None]
    for name, report in made:
        for sentence in report.notes():
            of.setdefault(sentence, []).append(name)
    return [s if len(names) == len(made) else f"{', '.join(names)}: {s}" for s, names in of.items()]


def as_text(rows: Sequence[Row]) -> list[str]:
    """Lines with the columns under each other; the last one is as long as it is."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    return ["  ".join([*map(str.ljust, row, widths), row[-1]]) for row in rows]


def write_page(results: Sequence[FormatResult], folder: Path, source: str) -> None:
    """`report.md` of the folder: the table, with links to the report of each format. Raises OSError."""
    header, *rows = table(results)
    made = {each.name for each in results if each.report is not None}
    lines = [f"# Export of {source}", "", _line(header), f"|{'---|' * len(header)}"]
    for name, *cells in rows:
        lines.append(_line([f"[{name}]({name}/{MARKDOWN_NAME})" if name in made else name, *cells]))
    lines += ["", "Size: bytes of the file over those of the float model.", ""]
    lines += [*(f"- {sentence}" for sentence in notes(results)), ""]
    (folder / MARKDOWN_NAME).write_text("\n".join(lines), encoding="utf-8", errors=SPELL)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def stress_agreement(report: ExportReport | None) -> float | None:
    """Share of the answers that agree on the stress set, where there is a report that has one."""
    return None if report is None or report.stress is None else report.stress.agreement
