"""Who decides each key of the configuration: the client for the whole run, all of a group, or each process.

    client  What the client has counts. Servers are told it with their slot, and again when a client that was
            restarted has another value; what they were given themselves does not count, and they say so.
    group   The client and all replicas of a stage must have the same; a server that differs is refused.
    own     Each process has its own.

A server may still bound `diloco.batch_size_per_step` for itself, by a flag: it may be the smaller machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Literal

from pydantic import ValidationError

from distqat.config.fields import config_fields
from distqat.config.schema import Config
from distqat.errors import ProtocolMismatch

Authority = Literal["client", "group", "own"]

AUTHORITY: dict[str, Authority] = {
    "wandb_project": "own",
    "experiment_prefix": "group",
    "plugins": "own",  # where they lie; the text of one that a stage uses is in the agreement
    "start_from": "client",
    "seed": "group",
    "device": "own",
    "world_size": "client",
    "eval_every": "client",
    "spawn_trainers": "client",
    "max_expert_index": "client",
    "initial_peers": "own",
    "host_maddrs": "own",
    "announce_maddrs": "own",
    "public_ip": "own",
    "monitor_port": "own",
    "server_base_port": "own",
    "client_port": "own",
    "refresh_period": "own",
    "log_dir": "own",
    "store_ip_addresses_path": "own",
    "log_level": "own",
    "data.dataset_name": "client",
    "data.dataset_config": "client",
    "data.dataset_split": "client",
    "data.task_type": "group",
    "data.options": "group",
    "data.num_workers": "client",
    "data.precision": "own",  # how a host computes; the trainer scales losses where a server wants it
    "data.num_channels": "group",
    "data.img_size": "group",
    "data.sequence_length": "client",
    "data.tokenizer": "client",
    "data.shuffle_buffer": "client",
    "diloco.inner_optim": "client",
    "diloco.outer_optim": "group",
    "diloco.inner_steps": "group",
    "diloco.outer_steps": "client",
    "diloco.batch_size_per_step": "client",
    "diloco.gradient_accumulation_steps": "client",
    "diloco.max_grad_norm": "client",
    "diloco.lr_schedule": "client",
    "diloco.lr_final": "client",
    "diloco.warmup_steps": "client",
    "diloco.codec": "group",
    "diloco.overlap": "client",
    "diloco.averaging_timeout": "client",
    "diloco.grace_spread": "client",
    "diloco.max_delta_norm_ratio": "group",  # members vote on the result
    "model_pipeline.pipeline": "group",
    "model_pipeline.forward_timeout": "client",
    "model_pipeline.backward_timeout": "client",
    "model_pipeline.microbatches": "client",
    "model_pipeline.activations": "client",
    "param_mirror.enable": "client",
    "param_mirror.refresh_every": "client",
    "param_mirror.upload_rate": "own",
    "param_mirror.checkpoint_dir": "own",
    "quant.enabled": "group",
    "quant.weight": "group",
    "quant.activation": "group",
    "quant.bias": "group",
    "quant.first_last_bits": "group",
    "quant.skip": "group",
    "quant.overrides": "group",
    "quant.warmup": "group",
    "quant.teacher": "own",  # where it lies; that there is one, and which kind, is in the agreement
    "quant.distillation": "group",
    "quant.compile": "own",  # how a host computes, not what
}
"""By the path of a key, or of a section all of whose keys are decided alike."""


def authority_of(path: str) -> Authority:
    """Who decides the key at a dotted path. Raises KeyError for one that is not in the table."""
    section = path
    while section:
        if section in AUTHORITY:
            return AUTHORITY[section]
        section = section.rpartition(".")[0]
    raise KeyError(f"{path}: say in AUTHORITY who decides this key")


@cache
def keys_of(authority: Authority) -> tuple[str, ...]:
    """Paths of all keys that are decided so, in the order of the schema."""
    return tuple(field.path for field in config_fields() if authority_of(field.path) == authority)


def value_at(values: Mapping[str, Any], path: str) -> Any:
    """What a dumped configuration has at a dotted path."""
    for part in path.split("."):
        values = values[part]
    return values


def run_settings(config: Config) -> dict[str, Any]:
    """What the client tells servers of the run: the keys that it decides, by path, JSON-able."""
    values = config.model_dump(mode="json")
    return {path: value_at(values, path) for path in keys_of("client")}


def with_run_settings(config: Config, told: Mapping[str, Any]) -> Config:
    """A server's configuration with what the client of the run decides.

    Keys that the client does not decide, or that this release does not know, are not taken. Raises
    ProtocolMismatch when a value is one that no client may have.
    """
    values = config.model_dump(exclude_unset=True)
    for path in keys_of("client"):
        if path in told:
            *sections, key = path.split(".")
            section = values
            for name in sections:
                section = section.setdefault(name, {})
            section[key] = told[path]
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(map(str, problem["loc"]))
        raise ProtocolMismatch(f"the client says {where}: {problem['msg']}; update one of the two") from error


def schema() -> dict[str, Any]:
    """JSON Schema of the configuration, in which every key says who decides it (`decided_by`)."""
    made = Config.model_json_schema()
    for path, owner in _leaves(made, made, ""):
        owner["decided_by"] = authority_of(path)
    return made


def _leaves(
    whole: dict[str, Any], section: dict[str, Any], prefix: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, key in section["properties"].items():
        reference = key.get("$ref")
        if reference is None:
            yield f"{prefix}{name}", key
        else:
            inner = whole["$defs"][reference.rpartition("/")[2]]
            yield from _leaves(whole, inner, f"{prefix}{name}.")
