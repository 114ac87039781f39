"""A training loop of one's own over a swarm. docs/custom_loop.md explains it.

With --initial-peers it trains the servers of a running swarm; without, it starts a small one on this machine.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from distqat.config import Config, ConfigParser, add_config_arguments, config_from_args
from distqat.data.open_source import open_source
from distqat.distributed.assembly.stage_factory import build_task
from distqat.distributed.model import SwarmModel
from distqat.errors import DistqatError
from distqat.tasks import Batch
from distqat.terminal import complain

DEFAULT = "configs/mlp.yaml"


def train(model: SwarmModel, batches: Iterator[Batch], steps: int) -> list[float]:
    """The loop: `steps` steps with a loss of its own, smoothed cross-entropy; the loss of each."""
    losses = []
    for number in range(1, steps + 1):
        batch = next(batches)

        def closure(batch: Batch = batch) -> Tensor:  # runs again, over other replicas, when a server fails
            logits = model(batch.inputs["x"])
            loss = F.cross_entropy(logits, batch.labels["y"], label_smoothing=0.1)
            loss.backward()
            return loss

        losses.append(model.step(closure).loss)
        if number == 1 or number % 20 == 0:
            print(f"step {number}: loss {losses[-1]:.4f}", flush=True)
    return losses


def batches_of(config: Config) -> Iterator[Batch]:
    """Batches of the configured data set, without end. Any other iterator of tensors will do."""
    source, task = open_source(config.data, seed=config.seed), build_task(config)
    while True:
        yield task.collate([item.sample for item in source.take(config.diloco.batch_size_per_step)])


@contextlib.contextmanager
def local_swarm(config_path: str) -> Iterator[list[str]]:
    """A swarm on this machine that starts no trainers; the addresses to join it at."""
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "initial_peers.txt"
        flags = ["--no-spawn-trainers", "--no-progress", "--replicas=1", "--diloco-outer-steps=1000"]
        flags += ["--diloco-inner-steps=20", "--diloco-inner-optim-adam-lr=5e-3"]
        flags += ["--monitor-port=0", "--client-port=0", "--server-base-port=0"]
        flags += [f"--log-dir={folder}/logs", f"--param-mirror-checkpoint-dir={folder}/checkpoints"]
        command = [sys.executable, "-m", "distqat.launch.run_local", f"--config-path={config_path}", *flags]
        swarm = subprocess.Popen([*command, f"--store-ip-addresses-path={written}"])
        try:
            while not written.exists():
                if swarm.poll() is not None:
                    sys.exit(f"the swarm ended with code {swarm.returncode}")
                time.sleep(0.1)
            yield written.read_text().strip().split(",")
        finally:
            swarm.terminate()
            swarm.wait()


def main(argv: Sequence[str] | None = None) -> int:
    """Train and print the loss. Exit code 1: the swarm cannot be joined, or trained any longer."""
    parser = ConfigParser("custom_loop.py", description="Train a swarm in a loop of one's own.")
    parser.add_argument("--steps", type=int, default=150, help="how many steps to take")
    add_config_arguments(parser)
    parser.set_defaults(config_path=DEFAULT)
    args = parser.parse_args(argv)
    if args.steps < 1:
        parser.error(f"--steps must be at least 1, not {args.steps}")
    try:
        join_and_train(config_from_args(args), args.config_path, args.steps)
    except (DistqatError, TimeoutError) as error:
        complain(f"{parser.prog}: {error}")
        return 1
    return 0


def join_and_train(config: Config, config_path: str, steps: int) -> None:
    """Over the swarm that `config.initial_peers` leads to, else over one that is started here."""
    with contextlib.ExitStack() as stack:
        peers = config.initial_peers or stack.enter_context(local_swarm(config_path))
        model = SwarmModel.connect(config.model_copy(update={"initial_peers": peers}))
        stack.callback(model.close)
        losses = train(model, batches_of(config), steps)
        print(f"trained: loss {losses[0]:.4f} -> {sum(losses[-10:]) / len(losses[-10:]):.4f}")


if __name__ == "__main__":
    sys.exit(main())
