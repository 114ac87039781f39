"""The part of a configuration that a trained model depends on, and that travels with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from distqat.config.agreement import differing_keys
from distqat.config.load import resolve
from distqat.config.plugins import is_path
from distqat.config.schema import Config
from distqat.config.yaml_source import KeyPath, YamlSource, dotted
from distqat.errors import ConfigError

OF_A_HOST = {
    "wandb_project", "device", "initial_peers", "host_maddrs", "announce_maddrs", "public_ip", "monitor_port",
    "server_base_port", "client_port", "refresh_period", "log_dir", "store_ip_addresses_path", "log_level",
    "param_mirror", "start_from",
}  # fmt: skip
"""Keys that say where and how a run was held, not what was trained."""

_OF_THE_MODEL = ("data.", "model_pipeline.pipeline", "quant.")
_HOW_FAST = ("data.num_workers", "data.shuffle_buffer", "data.precision", "quant.compile")


def recipe(config: Config) -> dict[str, Any]:
    """The configuration without the keys of a host, as JSON holds it."""
    return config.model_dump(mode="json", exclude=OF_A_HOST)


def from_recipe(
    told: Mapping[str, Any], where: str, overrides: Mapping[str, Any], beside: Iterable[Path] = ()
) -> Config:
    """The configuration that `recipe` gave, with `overrides` on top; `where` names its file in messages.

    The plugins of the run are code, which is not loaded because a file says so: ConfigError names the flags.
    """
    values = dict(told)
    given = {Path(str(name)).name for name in overrides.get("plugins", ())}
    plugins = [str(name) for name in values.pop("plugins", ())]
    lacking = [name for name in plugins if (Path(name).name if is_path(name) else name) not in given]
    if lacking:
        flags = " ".join(f"--plugin {name}" for name in lacking)
        raise ConfigError(
            f"{where} was trained with code of its own, which is loaded only if you say so: add {flags}"
        )
    return resolve(YamlSource(where, values), overrides, beside)


def differences(config: Config, told: Mapping[str, Any]) -> list[str]:
    """What of the model, its data and its quantization is other than told: `data.img_size 32, not 8`."""
    mine, theirs = dict(_leaves(recipe(config), ())), dict(_leaves(told, ()))
    return [
        f"{key} {_short(mine.get(key))}, not {_short(theirs.get(key))}"
        for key in differing_keys(mine, theirs)
        if key.startswith(_OF_THE_MODEL) and key not in _HOW_FAST
    ]


def _leaves(value: Any, path: KeyPath) -> Iterator[tuple[str, Any]]:
    """Values by dotted path; what is empty is a value."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    elif isinstance(value, list) and value:
        for index, inner in enumerate(value):
            yield from _leaves(inner, (*path, index))
    else:
        yield dotted(path), value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
