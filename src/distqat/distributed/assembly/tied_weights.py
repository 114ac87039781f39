"""Weights that two stages hold copies of and keep tied: `tie: average` in the entries of the pipeline."""

from __future__ import annotations

from torch import nn

from distqat.config import Config
from distqat.config.schema import StageOptions
from distqat.distributed.transfer.tied_weight_exchange import TiedWeightExchange
from distqat.errors import ModelError
from distqat.models import copies_of
from distqat.swarm.transport import Transport

AVERAGE = "average"


def tied_stages(config: Config) -> tuple[str, str] | None:
    """The two stages whose copies are averaged at outer rounds; None where nothing is kept tied.

    Raises ModelError where the stages of a model are told different things.
    """
    entries = config.model_pipeline.pipeline
    if len(entries) < 2 or not any(_tie(entry) == AVERAGE for entry in entries):
        return None
    for entry in entries:
        if _tie(entry) != AVERAGE:
            raise ModelError(
                f"stage {entries[0].stage!r} is told tie: {_tie(entries[0])}, stage {entry.stage!r} tie: "
                f"{_tie(entry)}; write tie: {AVERAGE} into every entry of the model"
            )
    return entries[0].stage, entries[-1].stage


def exchange_of(
    config: Config, stage: str, module: nn.Module, transport: Transport
) -> TiedWeightExchange | None:
    """What gives and fetches the copies of a stage; None where it has none."""
    stages = tied_stages(config)
    if stages is None or stage not in stages:
        return None
    return TiedWeightExchange(copies_of(module), transport, config.diloco.averaging_timeout)


def tie(stages: nn.ModuleDict, config: Config) -> None:
    """In one process there is no need of two copies: the last stage gets the first one's parameters."""
    names = tied_stages(config)
    if names is None:
        return
    first, last = (stages[name] for name in names)
    ours, theirs = copies_of(first), copies_of(last)
    for name in ours.keys() & theirs.keys():
        owner, _, attribute = theirs[name].rpartition(".")
        setattr(last.get_submodule(owner), attribute, first.get_parameter(ours[name]))


def _tie(entry: StageOptions) -> object:
    return entry.kwargs.get("tie")
