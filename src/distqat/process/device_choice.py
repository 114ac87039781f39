"""Which device a role computes on, and how many CPU threads."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass

from distqat.errors import ConfigError
from distqat.process.core_sharing import core_quota, own_cores

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DeviceChoice:
    """A torch device name, and what the user should be told about it."""

    device: str
    warning: str | None = None


def choose_device(requested: str, *, explicit: bool, gpus: int, index: int = 0) -> DeviceChoice:
    """`cuda` goes round robin over the `gpus` by `index`; `cuda:1` is taken at its word.

    explicit: typed on the command line, so that a device that is not there is refused (ConfigError);
    from a file it becomes the CPU, with a warning.
    """
    if requested == "cpu":
        return DeviceChoice("cpu")
    found = re.fullmatch(r"cuda(?::(\d+))?", requested)
    if found is None:
        raise ConfigError(f"unknown device {requested!r}; known: cpu, cuda, cuda:N")
    wanted = None if found[1] is None else int(found[1])
    if gpus > 0 and (wanted is None or wanted < gpus):
        return DeviceChoice(f"cuda:{index % gpus if wanted is None else wanted}")
    lack = (
        "this machine has no CUDA device" if gpus == 0 else f"this machine has {gpus} CUDA device(s), from 0"
    )
    if explicit:
        raise ConfigError(f"--device {requested}: {lack}; use --device cpu")
    return DeviceChoice("cpu", f"device: {requested} in the configuration, but {lack}; computing on the CPU")


def resolve_device(requested: str, *, explicit: bool, index: int = 0) -> str:
    """`choose_device` for this machine; logs the warning once. Imports torch."""
    import torch

    gpus = torch.cuda.device_count() if requested != "cpu" and torch.cuda.is_available() else 0
    choice = choose_device(requested, explicit=explicit, gpus=gpus, index=index)
    if choice.warning:
        logger.warning(choice.warning)
    return choice.device


def threads_per_server(servers: int, cores: int | None = None) -> int:
    """The CPU cores that this process may use, divided among the servers of a launcher; at least one each."""
    if cores is None:
        cores = int(min(len(own_cores()), core_quota()))
    return max(1, cores // max(1, servers))
