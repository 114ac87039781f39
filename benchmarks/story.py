"""One run that ties it together: train in a swarm, kill a server, check, export, predict; and its picture.

    python benchmarks/story.py --out DIR [flags of run_local.py]

Runs what README.md documents, one command after the other: `run_local.py` (configs/resnet18.yaml: two stages,
two replicas of each) with a SIGKILL to one server process when half of the rounds are committed, `distqat
checkpoint verify`, `distqat export`, and `distqat predict` on a held-out digit that is written as a PNG. Then
reads logs, metrics and the report of the export, and draws them.

DIR gets `logs/`, `checkpoints/`, `exported/`, `digit.png`, `story.json` (all figures, with the machine and
the versions) and `story.png`. `--draw PATH` draws a `story.json` again and runs nothing. The picture in
README.md is that of docs/images/story.json. This is a benchmark and no example because of what it is: a run
whose figures are read from what it wrote, on a machine that it names.

Every key of the configuration is a flag (`--diloco-outer-steps 8`, for a first try). Takes about two minutes
on two cores.
"""

from __future__ import annotations

from distqat.terminal import begin, unwinding

if __name__ == "__main__":  # before all else: what follows imports torch
    begin("benchmarks/story.py", clean=False)

import argparse
import dataclasses
import itertools
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.report import ROOT, describe, facts
from benchmarks.story_record import Story, read_story
from distqat.config import Config, ConfigParser, add_config_arguments, config_from_args
from distqat.config.flags import to_argv
from distqat.errors import ConfigError
from distqat.metrics.record_files import RecordTail

CONFIG = "configs/resnet18.yaml"
PICTURE = "story.png"
BOUND_S = 900.0  # of the whole training
LOOK_S = 0.05
REPORTED = ("agreement", "places", "operations", "sizes", "latencies", "metrics", "passed")


def train(config: Config, flags: Sequence[str]) -> tuple[float, tuple[str, float]]:
    """Train with a kill in the middle: when it began, who was killed and when, in seconds since 1970."""
    shutil.rmtree(
        config.log_dir, ignore_errors=True
    )  # of the last story: its rounds are not those of this one
    victim = f"{config.stages[0]}.0.{config.world_size - 1}.0"
    began = time.time()
    launcher = psutil.Popen([sys.executable, "run_local.py", *flags], cwd=ROOT)
    try:
        _wait_for_round(config, launcher)
        process = _server(launcher, victim)
        at = time.time()
        process.send_signal(signal.SIGKILL)
        print(f"story: SIGKILL to {victim}, PID {process.pid}", flush=True)
        if launcher.wait(BOUND_S) != 0:
            raise RuntimeError(f"run_local.py ended with {launcher.returncode}; see {config.log_dir}")
    finally:
        if launcher.poll() is None:
            launcher.send_signal(signal.SIGINT)
            launcher.wait(60)
    return began, (victim, at)


def _wait_for_round(config: Config, launcher: psutil.Popen) -> None:
    """Until half of the rounds of every stage are committed."""
    log_dir, wanted = Path(config.log_dir), config.diloco.outer_steps // 2
    tail, deadline, stages = RecordTail(log_dir, "client"), time.monotonic() + BOUND_S, set[str]()
    while launcher.poll() is None and time.monotonic() < deadline:
        for record in tail.fresh():
            if record.get("event") == "round" and record["committed"] and record["round"] >= wanted:
                stages.add(record["stage"])
        if stages == set(config.stages):
            return
        time.sleep(LOOK_S)
    raise RuntimeError(f"round {wanted} was not committed; see {log_dir}/client.log")


def _server(launcher: psutil.Popen, uid: str) -> psutil.Process:
    """The process of the server in a slot, by its title."""
    for process in launcher.children(recursive=True):
        try:
            if " ".join(process.cmdline()).startswith(f"distqat server {uid} "):
                return process
        except psutil.Error:  # it has just ended
            continue
    raise RuntimeError(f"no process serves {uid}")


def ask(*words: str, may_fail: bool = False) -> str:
    """What a `distqat` command prints. RuntimeError when it ends with an error."""
    print(f"$ distqat {' '.join(words)}", flush=True)
    command = [sys.executable, "-m", "distqat.launch.cli", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    sys.stdout.write(done.stdout)
    if done.returncode != 0 and not may_fail:
        raise RuntimeError(f"distqat {words[0]} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def finish(story: Story, folder: Path, flags: Sequence[str], config: Config) -> Story:
    """Check, export and predict; the story with what came out. A check that failed is part of it."""
    exported, digit = folder / "exported", folder / "digit.png"
    verified = ask("checkpoint", "verify", str(config.checkpoint_dir)).splitlines()[-1]
    shutil.rmtree(exported, ignore_errors=True)  # of the last story
    ask("export", str(config.checkpoint_dir), "--out", str(exported), *flags, may_fail=True)
    path = exported / "report.json"
    if not path.exists():
        raise RuntimeError(f"distqat export wrote no {path}")
    report = json.loads(path.read_text(encoding="utf-8"))
    label, pixels = write_digit(digit, config)
    said = ask("predict", str(exported), str(digit))
    return dataclasses.replace(
        story,
        verified=verified,
        report={name: report[name] for name in REPORTED},
        answers=answers_of(said),
        label=label,
        pixels=pixels,
    )


def write_digit(path: Path, config: Config) -> tuple[str, list[list[float]]]:
    """The first held-out digit as a PNG file; what it is, and its pixels in [0, 1]."""
    from distqat.distributed.assembly.stage_factory import open_data
    from distqat.tasks.png_writer import png

    sample = next(itertools.islice(open_data(config).heldout(), 1))
    image_1HW: Any = sample["image"]
    path.write_bytes(png((image_1HW * 255).round().byte()))
    return str(sample["label"]), [[round(float(v), 3) for v in row] for row in image_1HW[0]]


def answers_of(said: str) -> list[tuple[str, float]]:
    """Lines of `distqat predict` such as ` 99.87%  7`."""
    found = re.findall(r"^\s*([\d.]+)%\s+(.+)$", said, re.MULTILINE)
    return [(answer, round(float(share) / 100, 4)) for share, answer in found]


def settings(folder: Path, words: Sequence[str]) -> tuple[Config, list[str]]:
    """The configuration of the run, everything below `folder`, and the flags that give a command the same."""
    parser = ConfigParser("benchmarks/story.py")
    add_config_arguments(parser)
    parser.set_defaults(config_path=CONFIG)
    args = parser.parse_args(list(words))
    ours: dict[str, Any] = {
        "experiment_prefix": "story",
        "log_dir": str(folder / "logs"),
        "param_mirror.checkpoint_dir": str(folder / "checkpoints"),
        "monitor_port": 0,
        "client_port": 0,
        "server_base_port": 0,
    }
    args.config_overrides = {"eval_every": 2, **args.config_overrides, **ours}
    return config_from_args(args), to_argv(args.config_path, args.config_overrides)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1: a step of it, or the check of the export, failed; 2: bad usage or configuration."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.allow_abbrev = False
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to write")
    parser.add_argument("--draw", type=Path, metavar="PATH", help="only draw this story.json")
    args, words = parser.parse_known_args(argv)
    from benchmarks.story_picture import draw_story

    folder, about = args.out.resolve(), facts()
    if args.draw is not None:
        draw_story(Story.from_json(args.draw.read_text(encoding="utf-8")), folder / PICTURE)
        return 0
    print(describe(about))
    try:
        config, flags = settings(folder, words)
        began, kill = train(config, flags)
        story = read_story(folder / "logs", config.stages, began, kill, about)
        story = finish(story, folder, flags, config)
    except ConfigError as error:
        sys.stderr.write(f"story: {error}\n")
        return 2
    except (RuntimeError, psutil.TimeoutExpired) as error:
        sys.stderr.write(f"story: {error}\n")
        return 1
    (folder / "story.json").write_text(story.to_json(), encoding="utf-8")
    draw_story(story, folder / PICTURE)
    print(folder / PICTURE)
    return 0 if story.report["passed"] else 1


if __name__ == "__main__":
    sys.exit(unwinding("benchmarks/story.py", main))
