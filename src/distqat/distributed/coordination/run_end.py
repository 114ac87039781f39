"""The end of a run: the committed stages become a model, which is written, then judged; the summary."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from distqat.config import Config
from distqat.distributed.assembly.evaluation import EvaluationResult, NotJudged, judge_or_say
from distqat.distributed.assembly.stage_factory import build_task
from distqat.distributed.coordination.model_saving import save_model_somewhere, save_shown
from distqat.distributed.coordination.slot_grants import SlotGrants
from distqat.distributed.coordination.trainer_processes import TrainerProcesses
from distqat.distributed.serving.committed_state import CommittedState, as_local
from distqat.metrics.run_summary import SUMMARY, RunSummary


@dataclass(frozen=True)
class EndedRun:
    """What the client knows of a run that has come to its end."""

    config: Config
    trainers: TrainerProcesses
    slots: SlotGrants
    bytes_out: int


async def conclude(
    run: EndedRun, states: Mapping[str, CommittedState], modules: Mapping[str, nn.Module]
) -> tuple[RunSummary, str]:
    """Assemble the model and write it, then judge it on the held-out part, then write the summary.

    Gives the summary, and a sentence about what of the ending failed ("": nothing): the run is over anyway.
    """
    config, trainers = run.config, run.trainers
    for stage, module in modules.items():
        as_local(states[stage]).load(module)
    path = await save_model_somewhere(config, modules)
    judged = await asyncio.to_thread(judge_or_say, config, modules)
    await asyncio.to_thread(save_shown, config, modules)
    sent = {str(h.grant.uid): int(h.status.get("bytes_out", 0)) for h in run.slots.holders}
    sent |= {f"trainer {n}": int(r.get("bytes_out", 0)) for n, r in trainers.totals.items()}
    summary = RunSummary(
        mode="swarm",
        **judgement_fields(judged, build_task(config).metric),
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
        data=trainers.account,
    )
    return summary, write_summary(summary, Path(config.log_dir))


def judgement_fields(judged: EvaluationResult | NotJudged, metric: str) -> dict[str, Any]:
    """The fields of a summary that an evaluation fills."""
    if isinstance(judged, NotJudged):
        return {"metric": metric, "evaluation_error": judged.why}
    return {
        "metric": judged.metric,
        "value": judged.value,
        "heldout_samples": judged.count,
        "heldout_loss": judged.loss,
    }


def write_summary(summary: RunSummary, folder: Path) -> str:
    """A sentence about what of the ending failed: the judgement, or the writing; "": nothing."""
    try:
        summary.write(folder)
    except OSError as error:
        why = error.strerror or str(error)
        return f"{folder / SUMMARY} could not be written ({why}), so here it is: {summary.line()}"
    return summary.failure


def mean(values: list[float]) -> float | None:
    """None of nothing."""
    return sum(values) / len(values) if values else None
