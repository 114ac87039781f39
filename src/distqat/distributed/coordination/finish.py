"""The end of a run: fetch the committed stages, assemble the model, evaluate it, write the summary."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import nn

from distqat.checkpoint.assembled import TOLD, join, write_model
from distqat.config import Config, agreement, quantization
from distqat.distributed.coordination.slots import Slots
from distqat.distributed.coordination.trainers import Trainers
from distqat.distributed.evaluation import judge, show
from distqat.distributed.serving.shared import Shared, as_local
from distqat.failpoints import failpoint
from distqat.files import write_whole

logger = logging.getLogger(__name__)


@dataclass
class Summary:
    """What the user is told when the run is over; also `summary.json` in the log folder."""

    mode: str
    metric: str
    accuracy: float
    heldout_samples: int
    heldout_loss: float
    loss_first: float | None
    loss_last: float | None
    samples: int
    samples_per_s: float
    seconds: float
    rounds: int
    model: str
    logs: str
    checkpoints: str
    bytes_sent: dict[str, int] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    discarded_rounds: int = 0

    def line(self) -> str:
        """One sentence."""
        judged = f"{self.metric} {self.accuracy:.4f} on {self.heldout_samples} held-out samples"
        return f"{judged}, model {self.model}"

    def write(self, folder: Path) -> None:
        """Write `summary.json` in one piece."""
        write_whole(folder / "summary.json", json.dumps(asdict(self), indent=2) + "\n")


@dataclass(frozen=True)
class Run:
    """What the client knows of a run that has come to its end."""

    config: Config
    trainers: Trainers
    slots: Slots
    bytes_out: int


async def conclude(run: Run, states: Mapping[str, Shared], modules: Mapping[str, nn.Module]) -> Summary:
    """Assemble the model, judge it on the held-out part, write it and the summary."""
    config, trainers = run.config, run.trainers
    for stage, module in modules.items():
        as_local(states[stage]).load(module)
    judged = await asyncio.to_thread(judge, config, modules)
    path = await asyncio.to_thread(save_model, config, modules)
    await asyncio.to_thread(save_shown, config, modules)
    sent = {str(h.grant.uid): int(h.status.get("bytes_out", 0)) for h in run.slots.holders}
    sent |= {f"trainer {n}": int(r.get("bytes_out", 0)) for n, r in trainers.totals.items()}
    summary = Summary(
        mode="swarm",
        metric=judged.metric,
        accuracy=judged.value,
        heldout_samples=judged.count,
        heldout_loss=judged.loss,
        loss_first=trainers.first_loss,
        loss_last=mean(trainers.recent_losses),
        samples=trainers.samples,
        samples_per_s=trainers.samples_per_s(),
        seconds=trainers.ended - (trainers.began or trainers.ended),
        rounds=config.diloco.outer_steps,
        model=str(path),
        logs=str(config.log_dir),
        checkpoints=str(config.checkpoint_dir),
        bytes_sent={**sent, "client": run.bytes_out},
        digests={stage: shared.digest for stage, shared in states.items()},
        discarded_rounds=sum(not record["committed"] for record in trainers.rounds),
    )
    summary.write(Path(config.log_dir))
    return summary


def save_model(config: Config, modules: Mapping[str, nn.Module]) -> Path:
    """All stages as one safetensors file, written in one piece."""
    failpoint("model.write")
    states = {stage: modules[stage].state_dict() for stage in config.stages}
    config.checkpoint_dir.mkdir(parents=True, exist_ok=True)
    path = config.checkpoint_dir / "model.safetensors"
    told = json.dumps(quantization(agreement(config, config.stages[0])))
    write_model(path, join(states), {"run": config.experiment_prefix, TOLD: told})
    return path


def save_shown(config: Config, modules: Mapping[str, nn.Module]) -> None:
    """What the task has to look at goes into the log folder."""
    for name, content in show(config, modules).items():
        path = Path(config.log_dir) / name
        try:
            path.write_bytes(content)
        except OSError as error:
            logger.warning("%s is not written: %s", path, error.strerror)
            continue
        logger.info("to look at: %s", path)


def mean(values: list[float]) -> float | None:
    """None of nothing."""
    return sum(values) / len(values) if values else None
