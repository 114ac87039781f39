"""`distqat evaluate`: the task's metric on held-out data, of a checkpoint or of a swarm that trains."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distqat.config import Config, ConfigParser, add_config_arguments
from distqat.errors import ConfigError
from distqat.launch.command_frame import run_command
from distqat.launch.saved_config import SavedConfig, config_of, expect_own_config
from distqat.launch.saved_model import SavedModel
from distqat.process import run_alone

if TYPE_CHECKING:
    from distqat.distributed.assembly.evaluation import EvaluationResult

TIMEOUT_S = 60.0  # for finding the client, and for each stage's way here


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1: it cannot be judged; 2: bad usage or configuration."""
    parser = ConfigParser(
        "distqat evaluate",
        usage="%(prog)s [CHECKPOINT] [flags]",
        description="Judge a checkpoint folder, a model file, or (--initial-peers) a running swarm.",
    )
    parser.add_argument("checkpoint", nargs="?", type=Path, metavar="CHECKPOINT", help="folder or file")
    parser.add_argument("--round", type=int, metavar="N", help="of a folder: this round, not the newest")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--ptq", action="store_true", help="quantize it without training, and judge it before and after"
    )
    add_config_arguments(parser)
    expect_own_config(parser)
    args = parser.parse_args(argv)
    return run_command("evaluate", lambda: _evaluate(args))


def _evaluate(args: argparse.Namespace) -> int:
    if args.ptq:  # of a run in float: how it is quantized says the section quant, which was off
        args.config_overrides = {"quant.enabled": True, **args.config_overrides}
    saved = config_of(args, args.checkpoint)
    config = saved.config
    if (args.checkpoint is None) == (not config.initial_peers):
        raise ConfigError("give a checkpoint folder (or model file), or --initial-peers of a swarm")
    if args.ptq:
        _print_both(config, args.checkpoint, args.round, as_json=args.json)
        return 0
    if args.checkpoint is None:
        judged, what = run_alone(_swarm(config))
    else:
        judged, what = _checkpoint(saved, args.checkpoint, args.round)
    _print(judged, what, as_json=args.json)
    return 0


def _checkpoint(own: SavedConfig, path: Path, round: int | None) -> tuple[EvaluationResult, dict[str, Any]]:
    from distqat.data.source import class_names
    from distqat.distributed.assembly.evaluation import build_all, judge, load_all
    from distqat.distributed.assembly.run_notes import check_classes
    from distqat.distributed.assembly.stage_factory import open_data

    config, saved = own.config, SavedModel.read(own.config, path, round)
    saved.hold_to(config)
    modules = build_all(config)
    load_all(modules, saved.tensors)
    source = open_data(config)
    check_classes(own.classes, class_names(source), str(path))
    return judge(config, modules, source), saved.source


def _print_both(config: Config, path: Path | None, round: int | None, *, as_json: bool) -> None:
    """The float model and what quantization without training leaves of it."""
    from distqat.distributed.assembly.post_training import quantize_and_judge

    if path is None:
        raise ConfigError("--ptq needs a checkpoint folder or a model file")
    saved = SavedModel.read(config, path, round)
    for kind, judged in quantize_and_judge(config, saved.tensors).items():
        _print(judged, {"weights": kind, **saved.source}, as_json=as_json)


async def _swarm(config: Config) -> tuple[EvaluationResult, dict[str, Any]]:
    """Mirror the committed stages of a swarm, as a guest that holds no slot, and judge them here."""
    from distqat.distributed.assembly.evaluation import build_all, judge
    from distqat.distributed.network.coordinator_link import CoordinatorLink
    from distqat.distributed.network.role_peer import RolePeer
    from distqat.distributed.serving.committed_state import as_local
    from distqat.distributed.transfer.snapshot_exchange import fetch_committed_now
    from distqat.errors import StageUnavailable
    from distqat.swarm.deadline import within

    building = asyncio.ensure_future(asyncio.to_thread(build_all, config))
    peer = await RolePeer.start(config, port=0, port_given=False, initial_peers=config.initial_peers)
    try:
        coordinator = CoordinatorLink(peer.transport, peer.directory)
        try:
            await within(coordinator.wait(), TIMEOUT_S)
            got = {
                stage: await within(fetch_committed_now(peer.transport, coordinator, stage), TIMEOUT_S)
                for stage in config.stages
            }
        except asyncio.TimeoutError:
            raise StageUnavailable(
                f"no committed state of run {config.experiment_prefix!r} came within {TIMEOUT_S:.0f} s; "
                "check --initial-peers and --experiment-prefix"
            ) from None
    finally:
        await peer.stop()
    modules = await building
    for stage, module in modules.items():
        as_local(got[stage].shared).load(module)
    rounds = {stage: fetched.shared.round for stage, fetched in got.items()}
    return await asyncio.to_thread(judge, config, modules), {"rounds": rounds}


def _print(judged: EvaluationResult, what: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        from distqat.metrics.record_values import plain

        told = {"metric": judged.metric, "value": judged.value, "loss": judged.loss, "count": judged.count}
        sys.stdout.write(json.dumps(plain({**told, **what}), allow_nan=False) + "\n")
        return
    of = ", ".join(f"{key} {value}" for key, value in what.items())
    sys.stdout.write(f"{judged.line()}, loss {judged.loss:.5f} ({of})\n")


if __name__ == "__main__":
    sys.exit(main())
