"""Small states of a stage, the same for the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distqat.checkpoint import CheckpointStore, LoadedShard, ShardState, TrainerPart
from distqat.diloco.tensor_digest import state_digest

RUN = "digits"
AGREEMENT: dict[str, Any] = {"run": RUN, "stages": ["front", "back"], "model.hidden": 8}
DIGEST = "a" * 64


def shared_tensors(round: int, *, stage: str = "front", size: int = 64) -> dict[str, Tensor]:
    """Every part and an odd one of each kind: a scalar, an empty tensor, bool, bfloat16, NaN."""
    generator = torch.Generator().manual_seed(1000 + round)
    weight = torch.randn(size, 3, generator=generator)
    weight[0, 0] = float("nan")
    return {
        f"anchor/{stage}.weight": weight,
        f"anchor/{stage}.bias": torch.randn(5, generator=generator),
        "outer/step": torch.tensor(round),
        f"outer/momentum/{stage}.weight": torch.randn(size, 3, generator=generator),
        f"step/{stage}.log_step": torch.tensor(-2.5 - round),
        f"buffer/{stage}.active": torch.tensor([True, False, True]),
        f"buffer/{stage}.mean": torch.randn(7, generator=generator).to(torch.bfloat16),
        f"buffer/{stage}.none": torch.zeros(0, 4),
    }


def shard_state(round: int, *, stage: str = "front", size: int = 64, **changes: Any) -> ShardState:
    """The state of a round; `changes` replace fields."""
    shared = shared_tensors(round, stage=stage, size=size)
    fields: dict[str, Any] = {
        "generation": 0,
        "round": round,
        "step": 10 * round,
        "digest": state_digest(shared),
        "shared": shared,
        "agreement": AGREEMENT,
        "agreement_digest": DIGEST,
        "counters": {"samples": 320 * round},
    }
    return ShardState(**{**fields, **changes})


def moments(step: int, value: float = 0.5) -> dict[str, Tensor]:
    """What belongs to one replica alone."""
    return {"exp_avg/weight": torch.full((4,), value), "rng": torch.arange(step, step + 9, dtype=torch.uint8)}


def trainer_part(step: int, *, pipeline: int = 0, life: int = 7, **changes: Any) -> TrainerPart:
    """A trainer's part at a step; `changes` replace fields."""
    fields: dict[str, Any] = {
        "run": RUN,
        "generation": 0,
        "pipeline": pipeline,
        "life": life,
        "step": step,
        "taken": step + 2,
        "mark": f"{pipeline}-{life}-{step:06d}",
        "samples": 32 * step,
        "data": {"order": "digits seed=3", "epoch": 0, "index": 32 * step, "done": [[0, 99, 131]]},
        "scaler": {"scale": 65536.0, "growth": 3},
        "settings": {"diloco.batch_size_per_step": 32},
        "written_at": "2026-01-01T00:00:00+00:00",
    }
    return TrainerPart(**{**fields, **changes})


def newest(store: CheckpointStore, stage: str = "front") -> LoadedShard:
    """The newest valid shard, which exists."""
    shard = store.newest_valid(stage, DIGEST)
    assert shard is not None
    return shard


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Names, dtypes, shapes and bytes."""
    return state_digest(one) == state_digest(other)


def temporary_files(folder: Path) -> list[Path]:
    """Whatever is neither a tensor file nor a manifest."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [p for p in files if p.suffix not in (".safetensors", ".json")] + list(folder.rglob(".*"))
