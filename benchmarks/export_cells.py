"""A cell of the table of benchmarks/export.py: one model in one format, or why it is not made."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.export_models import Exportable
from distqat.distributed.assembly.evaluation import build_all
from distqat.distributed.assembly.stage_factory import task_settings
from distqat.errors import ExportError, MissingExtra
from distqat.export.agreement_report import ExportReport
from distqat.export.checker import Expectations
from distqat.export.export_all import stress_agreement
from distqat.export.export_request import FORMATS, ExportRequest, export_as
from distqat.export.file_description import FileDescription
from distqat.export.joined_stages import JoinedStages

Cell = dict[str, Any]
WHY, MISSING = "not made", "not installed"


def exported(case: Exportable, folder: Path, name: str) -> ExportReport | ExportError | MissingExtra:
    """Write the files of a format and check them, as the command does, of a copy: an export settles it.

    The report, or the error of a format that does not fit or is not installed.
    """
    data, config = case.config.data, case.config
    request = ExportRequest(
        copy.deepcopy(case.model),
        build=lambda: JoinedStages(build_all(config)),
        samples=case.samples,
        description=FileDescription(data.task_type, task_settings(config), tokenizer=data.tokenizer),
        folder=folder,
        config=config.model_dump(mode="json"),
        expected=Expectations(FORMATS[name].agreement, latency_s=0),
    )
    try:
        return export_as(name, request)
    except (ExportError, MissingExtra) as error:
        return error


def cell_of(outcome: ExportReport | ExportError | MissingExtra) -> Cell:
    """What the report says, in short; what does not fit, or is not installed, says why."""
    if isinstance(outcome, ExportError | MissingExtra):
        return {MISSING if isinstance(outcome, MissingExtra) else WHY: str(outcome)}
    report = outcome
    ran, stress = report.operations, stress_agreement(report)
    return {
        "agreement": report.agreement,
        "places": report.places,
        "size": report.size_ratio,
        **({} if ran is None else {"integer": ran.integer, "quantizable": ran.quantizable}),
        **({} if stress is None else {"stress": stress}),
        "failures": list(report.failures),
    }


def formats_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A line per model and setting, a column per format that at least one of them has."""
    table = Table(box=None, title="same answer / file over float / integer products", title_justify="left")
    checked = [row for row in rows if "formats" in row]
    names = dict.fromkeys(name for row in checked for name in row["formats"])
    made = [name for name in names if any("agreement" in row["formats"].get(name, {}) for row in checked)]
    for column in ("model", "setting", *made):
        table.add_column(column, no_wrap=True)
    for row in checked:
        cells = (_told(row["formats"].get(name, {})) for name in made)
        table.add_row(row["model"], row["setting"], *cells)
    return table


def left_out(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line for every reason for which a format was not made."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for name, each in row.get("formats", {}).items():
            why = each.get(MISSING) or each.get(WHY)
            if why:
                of = "any model" if MISSING in each else f"{row['model']} {row['setting']}"
                reasons.setdefault((name, why), []).append(of)
    for (name, why), models in reasons.items():
        yield f"{name} of {', '.join(dict.fromkeys(models))}: {why}"


def _told(each: Cell) -> str:
    if "agreement" not in each:
        return "-"
    stress = f" (stress {each['stress']:.2%})" if "stress" in each else ""
    products = f" / {each['integer']} of {each['quantizable']}" if "integer" in each else ""
    failed = " FAILED" if each["failures"] else ""
    return f"{each['agreement']:.2%}{stress} / {each['size']:.3f}{products}{failed}"
