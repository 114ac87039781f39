"""`distqat checkpoint`: what a checkpoint folder holds, whether it is whole, and its stages as one model."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distqat.config import ConfigParser
from distqat.errors import CheckpointError
from distqat.launch.command_frame import run_command
from distqat.launch.output_check import check_output
from distqat.terminal import complain

if TYPE_CHECKING:
    from distqat.checkpoint import CheckpointMark, RoundFolder
    from distqat.config import Config


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 1: something is broken or missing; 2: bad usage."""
    args = _parser().parse_args(argv)
    return run_command("checkpoint", lambda: int(args.command(args)))


def _parser() -> argparse.ArgumentParser:
    parser = ConfigParser("distqat checkpoint", usage="%(prog)s COMMAND DIR [flags]", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    listing = commands.add_parser("list", help="rounds, their stages and what is missing")
    listing.set_defaults(command=_list)
    checking = commands.add_parser("verify", help="read every byte; status 1 when something is broken")
    checking.set_defaults(command=_verify)
    joining = commands.add_parser("assemble", help="join the stages of a round into one safetensors file")
    joining.set_defaults(command=_assemble)

    for command in (listing, checking, joining):
        command.add_argument("folder", type=Path, metavar="DIR", help="for example checkpoints/resnet18")
    for command in (checking, joining):
        command.add_argument("--round", type=int, metavar="N", help="this round only")
    joining.add_argument("--out", type=Path, required=True, metavar="PATH", help="the file to write")
    joining.add_argument(
        "--config-path", metavar="PATH", help="the run's configuration: names are held to its model"
    )
    return parser


def _list(args: argparse.Namespace) -> int:
    from distqat.checkpoint.checkpoint_steps import newest_common
    from distqat.checkpoint.round_index import list_rounds
    from distqat.checkpoint.trainer_part import read_trainer_parts

    rounds = list_rounds(args.folder)
    if not rounds:
        from distqat.checkpoint.inventory import earlier_runs, inventory

        raise CheckpointError(
            f"{args.folder} holds no checkpoint: {inventory(args.folder)}{earlier_runs(args.folder)}"
        )
    rows: list[tuple[str, ...]] = [("generation", "round", "step", "MB", "written", "run", "stages")]
    rows += [_row(entry) for entry in rounds]
    _print_table(rows)
    marks = _marks(rounds)
    if any(marks.values()):
        _print_table(_mark_rows(marks))
        runs = {manifest.run for manifest in rounds[-1].manifests.values()}
        parts = [part.mark for run in sorted(runs) for part in read_trainer_parts(args.folder, run)]
        common = newest_common(marks, parts)
        sys.stdout.write(f"newest mark of all stages and their trainer: {common or 'none'}\n")
    return 0


def _marks(rounds: Sequence[RoundFolder]) -> dict[str, list[CheckpointMark]]:
    """The checkpoint steps of each stage of the model."""
    from distqat.checkpoint.checkpoint_steps import marks_of

    return {stage: marks_of(rounds, stage) for stage in rounds[-1].wanted}


def _mark_rows(marks: dict[str, list[CheckpointMark]]) -> list[tuple[str, ...]]:
    """The newest of each stage, and whether all stages have it."""
    rows: list[tuple[str, ...]] = [
        ("stage", "newest mark", "generation", "round", "step", "replica", "all stages")
    ]
    shared = set.intersection(*({mark.mark for mark in found} for found in marks.values()))
    for stage, found in marks.items():
        if not found:
            rows.append((stage, "-", "-", "-", "-", "-", "-"))
            continue
        m = found[0]
        numbers = (str(m.generation), str(m.round), str(m.step))
        rows.append((stage, m.mark, *numbers, m.expert, "yes" if m.mark in shared else "no"))
    return rows


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write("  ".join(cells).rstrip() + "\n")


def _row(entry: RoundFolder) -> tuple[str, ...]:
    manifests = entry.manifests.values()
    states = [stage for stage in entry.wanted if stage in entry.manifests]
    states += [f"{stage} (broken)" for stage in entry.broken]
    states += [f"{stage} (missing)" for stage in entry.missing if stage not in entry.broken]
    return (
        str(entry.generation),
        str(entry.round),
        str(max((m.step for m in manifests), default=0)),
        f"{sum(m.size for m in manifests) / 1e6:.1f}",
        max((m.written_at for m in manifests), default="-"),
        ",".join(sorted({m.run for m in manifests})) or "-",
        " ".join(states) or "-",
    )


def _verify(args: argparse.Namespace) -> int:
    from distqat.checkpoint import verify

    reports = verify(args.folder, args.round)
    for report in reports:
        for problem in report.problems:
            sys.stdout.write(f"BROKEN  {problem}\n")
        if not report.problems:
            sys.stdout.write(f"ok      {report.path}\n")
    broken = sum(bool(report.problems) for report in reports)
    sys.stdout.write(f"{len(reports) - broken} of {len(reports)} are as they were written\n")
    return 1 if broken else 0


def _assemble(args: argparse.Namespace) -> int:
    from distqat.checkpoint import assemble, write_model
    from distqat.checkpoint.assembled_model import TOLD
    from distqat.checkpoint.run_card import METADATA, read_card
    from distqat.config import quantization

    check_output(args.out, "--out")
    stages = names = None
    if args.config_path is not None:
        from distqat.config import load_config

        config = load_config(args.config_path)
        stages, names = config.stages, _names(config)
    model = assemble(args.folder, args.round, stages=stages, names=names)
    for problem in model.skipped:
        complain(f"skipped: {problem}")
    told = {"round": str(model.round), "generation": str(model.generation)}
    told[TOLD] = json.dumps(quantization(model.agreement))
    card = read_card(args.folder)
    if card is not None and card.run == model.run:
        told[METADATA] = card.to_share().to_json().decode()
    write_model(args.out, model.tensors, told)
    total = sum(tensor.numel() for tensor in model.tensors.values())
    sys.stdout.write(
        f"{args.out}: round {model.round}, stages {', '.join(model.stages)}, "
        f"{len(model.tensors)} tensors, {total} numbers\n"
    )
    return 0


def _names(config: Config) -> dict[str, list[str]]:
    """The names in the state dict of each stage; built without memory for the numbers."""
    import torch

    from distqat.distributed.assembly.stage_factory import build_module

    with torch.device("meta"):
        return {stage: list(build_module(config, stage).state_dict()) for stage in config.stages}


if __name__ == "__main__":
    sys.exit(main())
