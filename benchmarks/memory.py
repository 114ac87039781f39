"""Peak memory of a server that holds one stage of a large model: while it loads, and while it trains.

    python benchmarks/memory.py [--json PATH] [--config-path PATH] [--stage body] [--round]

A process of its own imports what a server imports and builds a tiny model ("empty server"). Then it goes the
server's way: `build_module`; the anchor and the outer momentum; inner steps on one sequence. Before each part
the kernel's peak of resident memory (VmHWM) is reset, and what the allocator keeps is given back, so each
part has its own peak. What stays is listed by its bytes. Goals: loading takes at most 1.1 times the stage's
parameters beside an empty server; training is shown against the sum of the named tensors. `--round` adds an
outer round of one member before the first step, which holds some seven copies of the parameters at once.
Nothing is started where less memory is available than eight times the parameters; `--loading-only` needs them
twice.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.report import ROOT, describe, facts, output, write_json

LOADING_GOAL = 1.1
COPIES = 8  # of the parameters: six stay, and an inner step needs a little more
STEPS = 2
GB = 1e9


def resident(key: str) -> int:
    """VmRSS or VmHWM of this process, bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


def forget_peak() -> None:
    """The peak is counted from now on."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def nbytes(tensors: Iterable[Any]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


class Child:
    """The server's way, in a process of its own; one dictionary at the end."""

    def __init__(self, path: str, stage: str, sequence: int) -> None:
        from distqat.config import load_config

        self.config = load_config(path, {"device": "cpu", "data.precision": "fp32"})
        self.stage, self.sequence = stage, sequence
        self.peaks: dict[str, int] = {}
        self.parts: dict[str, int] = {}

    def measure(self, *, loading_only: bool, averages: bool) -> dict[str, Any]:
        self._warm_up()
        forget_peak()
        self.peaks["empty server"] = resident("VmRSS")
        module = self._load()
        self.peaks["loading"] = resident("VmHWM")
        if not loading_only:
            self._train(module, averages=averages)
        return {"peaks": self.peaks, "parts": self.parts}

    def _warm_up(self) -> None:
        import torch

        import distqat.distributed.server
        from distqat.models import build_stage

        torch.set_num_threads(1)
        del distqat
        tiny = {"num_layers": 3, "hidden_size": 16, "num_heads": 2, "vocab_size": 31}
        build_stage("gptneo.body", tiny)(torch.zeros(1, 4, 16)).sum().backward()

    def _load(self) -> Any:
        from distqat.distributed.assembly.stage_factory import build_module

        module = build_module(self.config, self.stage)
        self.parts["weights"] = nbytes(module.parameters())
        self.parts["buffers"] = nbytes(module.buffers())
        return module

    def _train(self, module: Any, *, averages: bool) -> None:
        import torch

        from distqat.diloco import outer_optimizer
        from distqat.distributed.serving.committed_state import CommittedState, initial
        from distqat.distributed.serving.forward_precision import ForwardPrecision
        from distqat.distributed.serving.replica import StageReplica

        config, precision = self.config, ForwardPrecision()
        shared = initial(module)
        replica = StageReplica(
            module,
            config.diloco,
            config.quant,
            stage=self.stage,
            precision=precision,
            task=None,
        )
        if averages:
            forget_peak()
            shared = _outer_round(config, module, shared)
            self.peaks["an outer round, before the first step"] = resident("VmHWM")
        else:  # as after a round that moved nothing
            nothing = {name: torch.zeros_like(tensor) for name, tensor in shared.anchor.items()}
            anchor, state = outer_optimizer.update(
                shared.anchor, nothing, shared.outer, config.diloco.outer_optim
            )
            shared = CommittedState(1, anchor, state, shared.steps, shared.buffers)
            del nothing, anchor, state
        forget_peak()
        for step in range(STEPS):
            self._inner_step(replica, step)
        self.peaks["training"] = resident("VmHWM")
        self.parts["anchor"] = nbytes(shared.anchor.values())
        self.parts["outer state"] = nbytes(shared.outer.tensors().values())
        self.parts["gradients"] = self.parts["weights"]  # there from the backward pass to the commit
        self.parts["inner state"] = nbytes(
            t for state in replica.optimizer.state.values() for t in state.values() if hasattr(t, "nbytes")
        )

    def _inner_step(self, replica: Any, step: int) -> None:
        import torch

        from distqat.distributed.assembly.stage_factory import stage_kwargs
        from distqat.distributed.serving.attempt_work import MicrobatchWeight
        from distqat.models import sample_input

        entry = self.config.model_pipeline.pipeline[self.config.stages.index(self.stage)]
        keys = {**stage_kwargs(self.config, self.stage), "sequence_length": self.sequence}
        inputs = sample_input(entry.model_name, 1, keys)
        assert inputs is not None
        inputs = {n: torch.randn_like(t) if t.is_floating_point() else t for n, t in inputs.items()}
        replica.begin(f"memory|{step}")
        needs = frozenset(name for name, tensor in inputs.items() if tensor.is_floating_point())
        outputs = replica.forward(0, inputs, needs).tensors
        replica.backward(0, {n: torch.ones_like(t) for n, t in outputs.items()}, MicrobatchWeight())
        replica.prepare()
        replica.commit(1.0)


def _outer_round(config: Any, module: Any, shared: Any) -> Any:
    """Contribution, result and merge of a round with one member."""
    from distqat.codec import get_codec
    from distqat.distributed.serving.committed_state import ReplicaWeights
    from distqat.distributed.serving.round_arithmetic import RoundArithmetic

    rounds = RoundArithmetic(config.diloco, get_codec(config.diloco.codec), module)
    base = ReplicaWeights.of(module)
    result = rounds.result(shared, [rounds.contribution(shared, base)], [1])
    rounds.merge(result, ReplicaWeights.of(module), base).load(module)
    return result


def rows(result: dict[str, Any]) -> dict[str, Any]:
    """What the figures say against the goals."""
    peaks, parts = result["peaks"], result["parts"]
    own = peaks["loading"] - peaks["empty server"]
    compared: dict[str, Any] = {"loading_over_parameters": own / parts["weights"]}
    if "training" in peaks:
        named = sum(parts.values())
        compared["named_bytes"] = named
        compared["training_over_named"] = (peaks["training"] - peaks["empty server"]) / named
    return compared


def table_of(result: dict[str, Any], compared: dict[str, Any]) -> Table:
    """Peaks, then what they consist of."""
    table = Table(title="Resident memory of a server's stage")
    table.add_column("", no_wrap=True)
    table.add_column("GB", justify="right")
    for group in ("peaks", "parts"):
        for name, value in result[group].items():
            table.add_row(name if group == "parts" else f"peak: {name}", f"{value / GB:.3f}")
        table.add_section()
    for name, value in compared.items():
        shown = f"{value / GB:.3f}" if name.endswith("bytes") else f"{value:.3f} x"
        table.add_row(name.replace("_", " "), shown)
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1 where loading takes more than its goal; 2 where there is too little memory to try."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=output, metavar="PATH")
    parser.add_argument("--config-path", default="configs/gptneo_1.3b.yaml")
    parser.add_argument("--stage", default="body")
    parser.add_argument("--sequence", type=int, default=128)
    parser.add_argument("--loading-only", action="store_true")
    parser.add_argument("--round", action="store_true")
    parser.add_argument("--in-this-process", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.in_this_process:
        print(
            json.dumps(
                Child(args.config_path, args.stage, args.sequence).measure(
                    loading_only=args.loading_only, averages=args.round
                )
            )
        )
        return 0
    console, about = Console(), facts()
    console.print(describe(about))
    needed = _parameters(args.config_path, args.stage) * (2 if args.loading_only else COPIES)
    if psutil.virtual_memory().available < needed:
        console.print(f"this takes {needed / GB:.1f} GB, and fewer are available; try --loading-only")
        return 2
    command = [sys.executable, __file__, *(argv if argv is not None else sys.argv[1:]), "--in-this-process"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        console.print(done.stderr)
        return done.returncode
    result = json.loads(done.stdout.splitlines()[-1])
    compared = rows(result)
    console.print(table_of(result, compared))
    if args.json is not None:
        write_json(args.json, about, {**result, **compared, "config": args.config_path, "stage": args.stage})
    return 0 if compared["loading_over_parameters"] <= LOADING_GOAL else 1


def _parameters(path: str, stage: str) -> int:
    """Bytes of the stage's parameters."""
    import torch

    from distqat.config import load_config
    from distqat.distributed.assembly.stage_factory import build_module

    with torch.device("meta"):
        return nbytes(build_module(load_config(path), stage).parameters())


if __name__ == "__main__":
    sys.exit(main())
