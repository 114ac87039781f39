"""The stages of one round as one model: a safetensors file that plain torch and transformers load."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from distqat.checkpoint.inventory import MODEL, earlier_runs, inventory
from distqat.checkpoint.round_index import RoundFolder, list_rounds
from distqat.checkpoint.run_card import model_metadata
from distqat.checkpoint.shard import LoadedShard, load_shard
from distqat.checkpoint.tensor_file import replace_file, tensor_chunks
from distqat.errors import CheckpointError
from distqat.models import full_state_dict
from distqat.models.teacher import is_teachers

Named = dict[str, Tensor]
TOLD = "quantization"
"""Key of a model file's metadata: JSON, by which a reader sees whether it has the right configuration."""
_MODULE_PARTS = ("anchor", "step", "buffer")


@dataclass(frozen=True)
class AssembledModel:
    """The state dict of the model, the round that it is of, and newer rounds that could not be used."""

    generation: int
    round: int
    stages: tuple[str, ...]
    tensors: Named
    skipped: tuple[str, ...]
    agreement: Mapping[str, Any]
    """What the replicas of the first stage had in common, as its manifest says."""
    run: str


def assemble(
    folder: Path,
    round: int | None = None,
    *,
    stages: Sequence[str] | None = None,
    names: Mapping[str, Collection[str]] | None = None,
) -> AssembledModel:
    """Join the stages of a round, by default the newest that is whole and valid.

    `stages` are those of the model in order; without, what the manifests say. `names` limits a stage to
    the names of its state dict (a buffer may be a constant that no state dict holds). Raises
    CheckpointError that names what is missing or broken when no round can be used.
    """
    skipped: list[str] = []
    for entry in reversed(list_rounds(folder, stages)):
        if round not in (None, entry.round):
            continue
        try:
            shards = _shards(entry)
        except CheckpointError as error:
            skipped.append(str(error))
            continue
        states = {stage: _state(shard, names) for stage, shard in shards.items()}
        said = shards[entry.wanted[0]].manifest
        joined, why_not = join(states), tuple(skipped)
        return AssembledModel(
            entry.generation, entry.round, entry.wanted, joined, why_not, said.agreement, said.run
        )
    which = "no round" if round is None else f"no round {round}"
    why = "; ".join(skipped[:3]) or f"{inventory(folder)}{earlier_runs(folder)}"
    raise CheckpointError(
        f"{folder} holds {which} that can be assembled (a folder like 1764581234-000040 with every stage): "
        f"{why}"
    )


def join(states: Mapping[str, Mapping[str, Tensor]]) -> Named:
    """State dicts of stages, in order, as one; names are prefixed by stage where two stages share one."""
    names = [name for state in states.values() for name in state]
    if len(set(names)) == len(names):
        return full_state_dict(list(states.values()))
    return {f"{stage}.{name}": t for stage, state in states.items() for name, t in state.items()}


def write_model(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write the file in one piece. Raises CheckpointError when it cannot be written."""
    try:
        replace_file(path, tensor_chunks(tensors, {"format": "pt", **metadata}))
    except OSError as error:
        raise CheckpointError(f"{path} could not be written: {error.strerror or error}") from error


def read_model(path: Path) -> Named:
    """What `write_model` wrote. Raises CheckpointError when it cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a model file: {error}") from error


def read_told(path: Path) -> dict[str, Any]:
    """What the writer of a model file told about its quantization; nothing for one of another program."""
    try:
        return dict(json.loads(model_metadata(path).get(TOLD, "{}")))
    except ValueError as error:
        raise CheckpointError(f"{path} is not a model file: {error}") from error


def model_in(path: Path, round: int | None = None) -> Path:
    """The model file of a folder without rounds, as a baseline leaves it; else the path itself."""
    alone = round is None and (path / MODEL).is_file() and not list_rounds(path)
    return path / MODEL if alone else path


def _shards(entry: RoundFolder) -> dict[str, LoadedShard]:
    missing = [stage for stage in entry.missing if stage not in entry.broken]
    if missing:
        raise CheckpointError(f"{entry.path} lacks stage {', '.join(missing)}")
    shards = {stage: load_shard(entry.path / stage, expert="") for stage in entry.wanted}
    runs = sorted({shard.manifest.run for shard in shards.values()})
    if len(runs) > 1:
        raise CheckpointError(f"{entry.path} holds stages of different runs: {', '.join(runs)}")
    return shards


def _state(shard: LoadedShard, names: Mapping[str, Collection[str]] | None) -> Named:
    """Weights, quantizer steps and buffers under the module's own names."""
    wanted = None if names is None else set(names[shard.manifest.stage])
    state: Named = {}
    for key, tensor in shard.shared.items():
        part, _, name = key.partition("/")
        of_model = part in _MODULE_PARTS and not is_teachers(name)
        if of_model and (wanted is None or name in wanted):
            state[name] = tensor
    if wanted is not None and wanted != state.keys():
        lost = sorted(wanted - state.keys())
        raise CheckpointError(f"{shard.path} lacks {lost[0]!r}, which the model of the configuration has")
    return state
