"""A trained model as it lies on disk, a checkpoint folder or a model file, beside the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distqat.config import Config, agreement, differing_keys, quantization
from distqat.errors import CheckpointError, ConfigError
from distqat.terminal import complain

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SavedModel:
    """The tensors of all stages, and what is known of how they came about."""

    tensors: dict[str, Tensor]
    source: dict[str, Any]
    """Where they are from, for people: `{"checkpoint": path, "round": 40}`."""
    quantization: Mapping[str, Any]
    """What the run said of integers; empty where the file does not tell."""

    @classmethod
    def read(cls, config: Config, path: Path, round: int | None) -> SavedModel:
        """From a model file, or the newest whole round (or this one) of a folder; CheckpointError."""
        from distqat.checkpoint import assemble
        from distqat.checkpoint.assembled_model import model_in, read_model, read_told

        if not path.exists():
            raise CheckpointError(_nothing_at(path))
        path = model_in(path, round)
        if path.is_file():
            return cls(read_model(path), {"model": str(path)}, read_told(path))
        model = assemble(path, round, stages=config.stages)
        for problem in model.skipped:
            complain(f"skipped: {problem}")
        told = quantization(model.agreement)
        return cls(model.tensors, {"checkpoint": str(path), "round": model.round}, told)

    def hold_to(self, config: Config) -> None:
        """ConfigError unless the configuration means by a code what the run meant; in float all is well."""
        theirs, where = self.quantization, next(iter(self.source.values()))
        mine = quantization(agreement(config, config.stages[0]))
        if not theirs or not mine["quant.enabled"]:
            return
        if not theirs.get("quant.enabled"):
            raise ConfigError(
                f"{where} was trained in float, so it has no integers; train with quant.enabled, "
                "or see with distqat evaluate --ptq what quantizing it costs"
            )
        both = mine.keys() & theirs.keys()  # a release in between may have added one
        keys = differing_keys({key: mine[key] for key in both}, {key: theirs[key] for key in both})
        if keys:
            told = ", ".join(f"{key} {theirs[key]!r}, not {mine[key]!r}" for key in keys)
            raise ConfigError(
                f"{where} was trained with {told}; give the run's own configuration with --config-path (or "
                "leave that out, where the checkpoint holds it), and the flags that it was started with"
            )


def _nothing_at(path: Path) -> str:
    """What was looked for where, and what is there instead."""
    nearest = next(folder for folder in path.absolute().parents if folder.is_dir())
    names = sorted(each.name for each in nearest.iterdir() if not each.name.startswith("."))
    there = f"{nearest}/ holds {', '.join(names[:8]) or 'nothing'}{', ...' if len(names) > 8 else ''}"
    return (
        f"there is no checkpoint folder and no model file {path} (looked for {path.absolute()}; {there}); a "
        "run writes checkpoints/{experiment_prefix}/, and model.safetensors in it at its end"
    )
