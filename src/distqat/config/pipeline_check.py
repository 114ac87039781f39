"""Whether what a pipeline names exists, found out before any process is started and mostly without torch."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from distqat.config.schema import Config
from distqat.config.yaml_source import KeyPath
from distqat.config_paths import find, looked_at, looked_elsewhere
from distqat.errors import ConfigError
from distqat.failures import describe
from distqat.path_hints import is_path, missing_folder

_CHAIN = ("full", "front", "back", "head", "body", "tail")
_BLOCKS = ("full", "head", "body", "tail")
SHIPPED: Mapping[str, Collection[str]] = {
    **dict.fromkeys(("gcn", "mlp", "ppo", "resnet18", "resnet50", "resnet101"), _CHAIN),
    **dict.fromkeys(("distilgpt2", "gptneo", "hf", "wav2vec2"), _BLOCKS),
    "dcgan": ("full", "generator", "discriminator"),
}
"""Models that come with the package, and their stages. For a name that is not here torch is imported, and
whatever registers models: the package as somebody has changed it, and plugins."""


def check_names(config: Config, place: Callable[[KeyPath], str]) -> None:
    """Raises ConfigError for a stage that nobody registered, with its place and the nearest name."""
    for index, entry in enumerate(config.model_pipeline.pipeline):
        name = entry.model_name
        if _known(name, {f"{model}.{stage}" for model, stages in SHIPPED.items() for stage in stages}):
            continue
        registered = model_types()
        if not _known(name, registered):
            path: KeyPath = ("model_pipeline", "pipeline", index, "model_name")
            raise ConfigError(f"{place(path)}: {_unknown(name, registered)}")


def check_folders(config: Config) -> None:
    """Raises ConfigError for a `pretrained` folder that is not there."""
    for entry in config.model_pipeline.pipeline:
        source = entry.kwargs.get("pretrained")
        if isinstance(source, str) and is_path(source) and not find(source).is_dir():
            where = f"{missing_folder(source)}{looked_elsewhere(source)}"
            raise ConfigError(f"{entry.model_name}: pretrained: {source!r}: {where}")


def check_start_from(config: Config) -> None:
    """Raises ConfigError when `start_from` names nothing on this host."""
    name = config.start_from
    if name is not None and not find(name).exists():
        raise ConfigError(
            f"start_from: there is no checkpoint folder and no model file {name} ({looked_at(name)}); a run "
            "writes checkpoints/{experiment_prefix}/, and model.safetensors in it at its end"
        )


def check_teacher_path(config: Config) -> None:
    """Raises ConfigError when `quant.teacher` names nothing on this host."""
    path = teacher_path(config)
    if path is not None and not path.exists():
        name = str(config.quant.teacher)
        raise ConfigError(
            f"quant.teacher: there is no checkpoint folder and no model file {name} ({looked_at(name)}); "
            "give one of a run in float (--disable-quant) of the same model, or self"
        )


def teacher_path(config: Config) -> Path | None:
    """The file or folder that `quant.teacher` names; None: it names none."""
    teacher = config.quant.teacher if config.quant.enabled else None
    return None if teacher in (None, "self") else find(str(teacher))


def model_types() -> dict[str, Any]:
    """All registered stages. Raises ConfigError where a model's file in the package cannot be imported."""
    try:
        found: dict[str, Any] = importlib.import_module("distqat.models").MODEL_TYPES
    except (Exception, SystemExit) as error:  # somebody's model is in there: whatever it raises is told
        raise ConfigError(f"distqat.models cannot be imported: {describe(error)}") from error
    return found


def _known(name: str, names: Collection[str]) -> bool:
    """As it is, or with the number that tells stages of one kind apart: `resnet18.body2`."""
    return name in names or name.rstrip("0123456789") in names


def _unknown(name: str, registered: Collection[str]) -> str:
    model = name.rpartition(".")[0]
    stages = sorted(each.rpartition(".")[2] for each in registered if each.rpartition(".")[0] == model)
    close = difflib.get_close_matches(name, sorted(registered), n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    if stages:
        known = f"{model} has the stages {', '.join(stages)}"
    else:
        models = sorted({each.rpartition(".")[0] for each in registered})
        known = f"known models: {', '.join(models)}; one of your own comes with --plugin path/to/file.py"
    return f"unknown model stage {name!r}{hint} {known}"
