"""What the replicas of one stage must have in common. Its digest is part of a slot request."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from distqat.config.authority import keys_of, run_settings, value_at
from distqat.config.plugins import loaded
from distqat.config.schema import Config
from distqat.errors import UnknownName

_OUTER = "diloco.outer_optim"
_OUTER_TYPE = f"{_OUTER}.type"
_NAMED_OTHERWISE = ("experiment_prefix", "model_pipeline.pipeline")  # run; model.* and stages
_CODE = "code."
_TEACHER, _DISTILLATION = "quant.teacher", "quant.distillation."
AGREEMENT_VERSION = 1
"""Raised when replicas of two releases must not share a round although their settings are equal."""


def agreement(config: Config, stage: str) -> dict[str, Any]:
    """Settings that must be equal in the replica group of `stage`, flat and JSON-able: `authority` "group".

    Raises UnknownName if the pipeline has no such stage.
    """
    entry = next((entry for entry in config.model_pipeline.pipeline if entry.stage == stage), None)
    if entry is None:
        raise UnknownName("stage", stage, config.stages)
    return {
        "protocol": AGREEMENT_VERSION,
        "run": config.experiment_prefix,
        "stage": stage,
        "stages": config.stages,
        **_flat("model", entry.model_dump(mode="json")),
        **_group_settings(config),
        **_code(config, entry.model_name),
        **_teacher(config),
    }


def agreement_digest(config: Config, stage: str) -> str:
    """sha256 of the agreement, in hex."""
    return _digest(agreement(config, stage))


def structure(config: Config, stage: str) -> dict[str, Any]:
    """The part of the agreement that a checkpoint is bound to: what it says cannot change between two runs.

    Rates, momenta, the codec, steps per round and the bound of a delta may: they say how to go on from a
    state, not what it holds. So may how much a teacher counts, and the text of a plugin: shapes that no
    longer fit are found as they load.
    """
    whole = agreement(config, stage)
    free = ("diloco.", _CODE, _DISTILLATION)
    return {key: value for key, value in whole.items() if not key.startswith(free) or key == _OUTER_TYPE}


def structure_digest(config: Config, stage: str) -> str:
    """sha256 of the structure, in hex."""
    return _digest(structure(config, stage))


def changeable(config: Config) -> dict[str, Any]:
    """What may differ from one start of a run to the next and is worth saying.

    That is what the client decides, and what a group must have in common but no checkpoint is bound to.
    """
    flat = run_settings(config)
    for entry in config.model_pipeline.pipeline:
        bound = structure(config, entry.stage)
        whole = agreement(config, entry.stage)
        flat |= {key: value for key, value in whole.items() if key not in bound}
    return flat


def quantization(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What an agreement says of integers: bits, methods, patterns; not how quantizers began and learned."""
    left_out = ("quant.warmup.", _TEACHER, _DISTILLATION)
    return {
        key: value
        for key, value in settings.items()
        if key.startswith("quant.") and not key.startswith(left_out) and not key.endswith(".init")
    }


def differing_keys(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Keys in which two agreements differ, as a refusal names them."""
    missing = object()
    return sorted(key for key in {**mine, **theirs} if mine.get(key, missing) != theirs.get(key, missing))


def _code(config: Config, model_name: str) -> dict[str, str]:
    """sha256 of each plugin whose model, task or codec a stage uses: other code is another stage."""
    used = {
        *(("model", name) for name in (model_name, model_name.rstrip("0123456789"))),
        ("task", config.data.task_type),
        ("codec", config.diloco.codec),
    }
    return {f"{_CODE}{plugin.name}": plugin.digest for plugin in loaded() if plugin.registered & used}


def _teacher(config: Config) -> dict[str, str]:
    """Which kind of teacher there is: a stage holds its weights beside its own. Where it lies may differ."""
    teacher = config.quant.teacher if config.quant.enabled else None
    return {} if teacher is None else {_TEACHER: "self" if teacher == "self" else "a float model"}


def _group_settings(config: Config) -> dict[str, Any]:
    """Of all keys that a group must have in common, those that count as the others stand."""
    values, outer = config.model_dump(mode="json"), config.diloco.outer_optim.type
    flat: dict[str, Any] = {}
    for path in keys_of("group"):
        section, _, key = path.rpartition(".")
        unread = section == _OUTER and not _read_by(outer, key)
        without = path.startswith("quant.") and path != "quant.enabled" and not config.quant.enabled
        if not (unread or without or path in _NAMED_OTHERWISE):
            flat |= _flat(path, value_at(values, path))
    return flat


def _digest(settings: Mapping[str, Any]) -> str:
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _read_by(optimizer: str, key: str) -> bool:
    """Whether an optimizer of this type reads `key`; adamw reads the adam_* keys."""
    family = "adam" if optimizer.startswith("adam") else optimizer
    return key.partition("_")[0] == family or not key.startswith(("adam", "sgd"))


def _flat(prefix: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not value:
        return {prefix: value}
    return {path: leaf for key in value for path, leaf in _flat(f"{prefix}.{key}", value[key]).items()}
