"""`distqat export`: a trained model as an integer file, and a report that proves it."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distqat.config import Config, ConfigParser, add_config_arguments
from distqat.data.reading_errors import heldout_of
from distqat.errors import ConfigError, ExportError
from distqat.export.export_request import FORMATS
from distqat.launch.command_frame import run_command
from distqat.launch.output_check import check_output
from distqat.launch.saved_config import SavedConfig, config_of, expect_own_config

if TYPE_CHECKING:
    from distqat.export.export_request import ExportRequest
    from distqat.export.file_description import FileDescription


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1: it cannot be exported, or the check failed; 2: bad usage or configuration."""
    args = _parser().parse_args(argv)
    return run_command("export", lambda: _checked(args))


def _checked(args: argparse.Namespace) -> int:
    _check_numbers(args)
    check_output(args.out, "--out", folder=True)
    request = _requests(config_of(args, args.checkpoint), args)
    return _every_format(request, args.out) if args.all else _one_format(request, args)


def _one_format(request: Callable[[str, Path], ExportRequest], args: argparse.Namespace) -> int:
    from distqat.export.export_request import export_as

    report = export_as(args.format, request(args.format, args.out))
    sys.stdout.write(f"{report.verdict().replace('**', '')}\n")
    for sentence in (*report.failures, *report.notes()):
        sys.stdout.write(f"  {sentence}\n")
    sys.stdout.write(f"model   {args.out / report.model}\nreport  {args.out / 'report.md'}\n")
    return 0 if report.passed else 1


def _every_format(request: Callable[[str, Path], ExportRequest], folder: Path) -> int:
    """Exit code 1 only where a format that was made failed its check."""
    from distqat.export.export_all import as_text, export_all, notes, table, write_page

    results = export_all(request, folder)
    made = [each.report for each in results if each.report is not None]
    if not made:
        raise ExportError(f"no format was made; {results[0].name}: {results[0].why}")
    write_page(results, folder, made[0].source)
    for line in (*as_text(table(results)), *(f"  {sentence}" for sentence in notes(results))):
        sys.stdout.write(f"{line}\n")
    sys.stdout.write(f"report  {folder / 'report.md'}\n")
    return 1 if any(each.failed for each in results) else 0


def _check_numbers(args: argparse.Namespace) -> None:
    for flag, given, fits, wanted in (
        ("--samples", args.samples, args.samples >= 1, "at least 1"),
        ("--stress", args.stress, args.stress >= 0, "0 or more"),
        ("--latency-s", args.latency_s, args.latency_s >= 0, "0 or more seconds"),
        (
            "--agreement",
            args.agreement,
            args.agreement is None or 0 <= args.agreement <= 1,
            "a share, 0 to 1",
        ),
    ):
        if not fits:
            raise ConfigError(f"{flag} {given}: give {wanted}")


def _parser() -> ConfigParser:
    parser = ConfigParser(
        "distqat export", usage="%(prog)s CHECKPOINT --out DIR [flags]", description=__doc__
    )
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="a checkpoint folder or model file"
    )
    formats = parser.add_mutually_exclusive_group()
    formats.add_argument("--format", choices=FORMATS, default="onnx-int8", help="default: %(default)s")
    formats.add_argument("--all", action="store_true", help="every format that fits, each in a folder of DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to write")
    parser.add_argument("--round", type=int, metavar="N", help="of a folder: this round, not the newest")
    parser.add_argument(
        "--samples", type=int, default=1000, metavar="N", help="held-out samples to check with (%(default)s)"
    )
    parser.add_argument(
        "--agreement",
        type=float,
        metavar="SHARE",
        help="of the answers, at least (0.999; gguf, executorch 0.99; compressed-tensors 0.998)",
    )
    parser.add_argument(
        "--opset",
        type=int,
        choices=(18, 19, 20, 21),
        default=21,
        help="of an ONNX file: 18 runs in ONNX Runtime 1.17 (%(default)s)",
    )
    parser.add_argument(
        "--stress",
        type=int,
        default=3600,
        metavar="N",
        help="answers to perturbed held-out samples to check as well, 0: none (%(default)s)",
    )
    parser.add_argument(
        "--latency-s", type=float, default=2.0, metavar="S", help="seconds of measuring (%(default)s)"
    )
    parser.add_argument(
        "--exact", action="store_true", help="add biases in float, not as int32: slower, closer to training"
    )
    add_config_arguments(parser)
    expect_own_config(parser)
    return parser


def _requests(own: SavedConfig, args: Any) -> Callable[[str, Path], ExportRequest]:
    """What asks for a format in a folder, each time of the model anew: an export settles it."""
    from distqat.data.source import class_names
    from distqat.distributed.assembly.evaluation import build_all, load_all
    from distqat.distributed.assembly.run_notes import check_classes
    from distqat.distributed.assembly.stage_factory import open_data
    from distqat.export.checker import Expectations
    from distqat.export.export_request import ExportRequest
    from distqat.export.file_description import refuse_task
    from distqat.export.joined_stages import JoinedStages
    from distqat.launch.saved_model import SavedModel

    config = own.config
    description = _description(config)
    refuse_task(description.task())
    if not config.quant.enabled:
        raise ConfigError(
            "quant.enabled is false in this configuration, and a float model has no integers; if the run was "
            "quantized, give the flags that it was started with (--quant-enabled)"
        )
    saved = SavedModel.read(config, args.checkpoint, args.round)
    saved.hold_to(config)
    source = open_data(config)
    check_classes(own.classes, class_names(source), str(args.checkpoint))
    labels = own.classes or tuple(class_names(source)) or description.labels
    samples = list(itertools.islice(heldout_of(source), args.samples))
    told = ", ".join(f"{key} {value}" for key, value in saved.source.items())
    description = replace(description, source=told, labels=labels)

    def request(name: str, folder: Path) -> ExportRequest:
        agreement = FORMATS[name].agreement if args.agreement is None else args.agreement
        modules = build_all(config)
        load_all(modules, saved.tensors)
        return ExportRequest(
            JoinedStages(modules),
            build=lambda: JoinedStages(build_all(config)),
            samples=samples,
            description=description,
            folder=folder,
            config=config.model_dump(mode="json"),
            expected=Expectations(
                agreement,
                latency_s=args.latency_s,
                exact=args.exact,
                opset=args.opset,
                stress=args.stress,
            ),
        )

    return request


def _description(config: Config) -> FileDescription:
    """Classes are called by their numbers where nobody names them."""
    from distqat.distributed.assembly.stage_factory import task_settings
    from distqat.export.file_description import FileDescription

    settings = task_settings(config)
    labels = tuple(str(number) for number in range(settings.num_classes or 0))
    return FileDescription(config.data.task_type, settings, labels, config.data.tokenizer)


if __name__ == "__main__":
    sys.exit(main())
