"""What an export is worth, by model and format: agreement, size, integer products; latency of the ONNX file.

    python benchmarks/export.py --json PATH [--quick] [--only digits,text] [--settings W8A8,W4A4]
                                [--formats onnx-int8,gguf]

Models of benchmarks/quantization.py are trained with quantization and exported as `distqat export --all` does
it; its checker compares them on held-out samples (augmented images, or sequences). A format that a model does
not fit, or whose packages are not installed, says why below the table. Latency is ONNX Runtime's on one
thread, of the float and of the integer file in turns, medians; larger models with random weights stand beside
the trained ones. `--quick` is a try-out in two minutes.
"""

from __future__ import annotations

from distqat.terminal import begin, unwinding

if __name__ == "__main__":  # before all else: what follows imports torch
    begin("benchmarks/export.py", clean=False)

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.export_cells import Cell, cell_of, exported, formats_table, left_out
from benchmarks.export_models import TRAINED, UNTRAINED, Exportable, trained, untrained
from benchmarks.quantization import section
from benchmarks.quantization_work import Effort
from benchmarks.report import describe, facts, output, write_json
from distqat.distributed.assembly.stage_factory import task_settings
from distqat.export.agreement_report import ExportReport
from distqat.export.export_request import FORMATS
from distqat.export.file_description import FileDescription
from distqat.export.latency import LatencyMedians, latency
from distqat.export.onnx.ort_session import OrtSession
from distqat.export.onnx_export import FLOAT_MODEL, MODEL

SETTINGS = ("W8A8", "W4A8", "W4A4", "W4A16")
BATCHES = (1, 64)
STEPS = {"digits": 600, "digits16": 300, "text": 600, "hf_tiny": 600}
JUDGED = {
    "digits": 10_080,
    "digits16": 10_080,
    "text": 400,
    "hf_tiny": 400,
}  # images, or sequences of 64 tokens
QUICK_SETTINGS, QUICK_STEPS, QUICK_JUDGED = ("W8A8", "W4A4"), 60, 256
QUICK_ONLY = ("digits", "text", "hf_tiny")
ONNX = "onnx-int8"
GOALS = {"agreement": 0.999, "integer": 1.0, "size": 0.28, "latency": 0.6}


def latencies(case: Exportable, folder: Path, seconds: float) -> Iterator[LatencyMedians]:
    """Of the files in `folder`, for each of BATCHES."""
    floating, integer = (OrtSession(folder / name, threads=1) for name in (FLOAT_MODEL, MODEL))
    task = FileDescription(case.config.data.task_type, task_settings(case.config)).task()
    inputs: Mapping[str, Tensor] = task.collate(case.samples[: max(BATCHES)]).inputs
    for size in BATCHES:
        times = -(-size // len(next(iter(inputs.values()))))  # there may be fewer samples than that
        several = {n: t.repeat(times, *[1] * (t.dim() - 1))[:size].numpy() for n, t in inputs.items()}
        yield latency(floating, integer, several, seconds)


def record(
    model: str,
    setting: str,
    report: ExportReport | None,
    measured: Sequence[LatencyMedians],
    formats: Mapping[str, Cell] | None = None,
) -> dict[str, Any]:
    """A row; `report` is that of the ONNX file, without one it is of speed or of other formats alone."""
    row: dict[str, Any] = {"model": model, "setting": setting}
    if report is not None and report.operations is not None:
        row |= {
            "places": report.places,
            "agreement": report.agreement,
            "metrics": report.metrics,
            "integer": report.operations.share,
            "operators": report.operations.by_operator,
            "size": report.sizes.weights_ratio,
            "file": report.size_ratio,
        }
    if formats is not None:
        row["formats"] = dict(formats)
    for each in measured:
        row[f"batch {each.batch}"] = {
            "float_ms": each.float_ms, "integer_ms": each.integer_ms, "ratio": each.ratio
        }  # fmt: skip
    return row | {"missed": list(missed(row))}


def missed(row: Mapping[str, Any]) -> Iterator[str]:
    """The goals that a row does not reach."""
    for name in ("agreement", "integer"):
        if row.get(name, 1.0) < GOALS[name]:
            yield name
    if row.get("size", 0.0) > GOALS["size"]:
        yield "size"
    for batch in BATCHES:
        if row.get(f"batch {batch}", {"ratio": 0.0})["ratio"] > GOALS["latency"]:
            yield f"latency at {batch}"
    yield from (f"{name} failed" for name, each in row.get("formats", {}).items() if each.get("failures"))


def table_of(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A line per row."""
    table = Table(box=None)
    batches = [f"batch {batch}: float, int8 (ms)" for batch in BATCHES]
    for column in ("model", "setting", "same answer", "integer", "size", *batches, "missed"):
        table.add_column(column)
    for row in rows:
        checked = ["", "", ""]
        if "agreement" in row:
            same = f"{row['agreement']:.3%} of {row['places']:,}"
            checked = [same, f"{row['integer']:.0%}", f"{row['size']:.3f}"]
        times = [row.get(f"batch {batch}") for batch in BATCHES]
        told = [
            f"{t['float_ms']:.2f}, {t['integer_ms']:.2f} (x {t['ratio']:.2f})" if t else "" for t in times
        ]
        table.add_row(row["model"], row["setting"], *checked, *told, ", ".join(row["missed"]))
    return table


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Flags; `only`, `settings` and `formats` as tuples."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=output, required=True, metavar="PATH")
    parser.add_argument("--quick", action="store_true", help="a try-out in two minutes")
    parser.add_argument(
        "--only", help=f"of {', '.join(TRAINED)}, large (default: all; --quick: {', '.join(QUICK_ONLY)})"
    )
    parser.add_argument("--settings", help=f"of {', '.join(SETTINGS)} (default: all; --quick: W8A8, W4A4)")
    parser.add_argument("--formats", help=f"of {', '.join(FORMATS)} (default: all)")
    parser.add_argument("--latency-s", type=float, default=3.0, metavar="S", help="of measuring, per batch")
    args = parser.parse_args(argv)
    only = args.only or (",".join(QUICK_ONLY) if args.quick else ",".join((*TRAINED, "large")))
    settings = args.settings or ",".join(QUICK_SETTINGS if args.quick else SETTINGS)
    args.only, args.settings = tuple(only.split(",")), tuple(settings.split(","))
    args.formats = tuple((args.formats or ",".join(FORMATS)).split(","))
    known_names = ((args.only, (*TRAINED, "large")), (args.settings, SETTINGS), (args.formats, FORMATS))
    for given, known in known_names:
        if not set(given) <= set(known):
            parser.error(f"{', '.join(given)}: known are {', '.join(known)}")
    return args


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Row by row."""
    for name in (name for name in TRAINED if name in args.only):
        steps, judged = (QUICK_STEPS, QUICK_JUDGED) if args.quick else (STEPS[name], JUDGED[name])
        for setting in args.settings:
            case = trained(name, section(setting), Effort(steps, steps, steps, judged, (0,)))
            yield row_of(name, setting, case, args.formats, args.latency_s)
    for name in UNTRAINED if "large" in args.only else ():
        for setting in args.settings:
            row = row_of(name, setting, untrained(name, section(setting)), (ONNX,), args.latency_s)
            yield record(name, setting, None, ()) | {k: v for k, v in row.items() if k.startswith("batch")}


def row_of(
    name: str, setting: str, case: Exportable, formats: Sequence[str], seconds: float
) -> dict[str, Any]:
    """Every format of one model; `seconds` of measuring for each batch size."""
    with tempfile.TemporaryDirectory() as place:
        made = {each: exported(case, Path(place) / each, each) for each in formats}
        cells = {each: cell_of(outcome) for each, outcome in made.items()}
        onnx = made.get(ONNX)
        if not isinstance(onnx, ExportReport):
            return record(name, setting, None, (), cells)
        return record(name, setting, onnx, list(latencies(case, Path(place) / ONNX, seconds)), cells)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0: all goals were reached; 1: one was missed."""
    args = parse(argv)
    console = Console() if sys.stdout.isatty() else Console(width=160)
    about, rows = facts(), []
    console.print(describe(about))
    for row in measure(args):
        rows.append(row)
        write_json(args.json, about, {"quick": args.quick, "goals": GOALS, "rows": rows})
        console.print(f"{row['model']} {row['setting']}: missed {', '.join(row['missed']) or 'nothing'}")
    console.print(table_of(rows))
    if any("formats" in row for row in rows):
        console.print(formats_table(rows))
    for line in left_out(rows):
        console.print(line, style="dim", markup=False)
    return 1 if any(row["missed"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(unwinding("benchmarks/export.py", main))
