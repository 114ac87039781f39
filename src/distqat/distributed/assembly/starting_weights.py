"""`start_from`: a run begins with the weights of a trained model instead of its seed's."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from distqat.checkpoint.assembled_model import assemble, model_in, read_model
from distqat.config import Config
from distqat.config_paths import find, looked_at
from distqat.distributed.assembly.evaluation import fitting
from distqat.distributed.assembly.stage_factory import build_module
from distqat.errors import CheckpointError, ConfigError, ModelError
from distqat.quant import quantizer_buffer_names, step_parameter_names

logger = logging.getLogger(__name__)


def check_start(config: Config) -> None:
    """Raises ConfigError unless the model at `start_from` has every tensor of the configured one.

    A path that is not on this host is left to whoever founds a stage.
    """
    if config.start_from is None or not find(config.start_from).exists():
        return
    tensors = _read(config.start_from)
    with torch.device("meta"), torch.no_grad():
        for stage in config.stages:
            _part(config.start_from, tensors, stage, build_module(config, stage, quantize=False))


def load_start(config: Config, modules: Mapping[str, nn.Module]) -> None:
    """Write the model at `start_from` into stages by name; their quantizers stay as they are.

    Nothing without that key. The model may be cut otherwise, or be quantized: its steps are not looked at.
    Raises ConfigError where it is not on this host, or is another model.
    """
    if config.start_from is None:
        return
    if not find(config.start_from).exists():
        raise ConfigError(
            f"start_from: this host is to give {', '.join(modules)} the first weights, and there is no "
            f"{config.start_from} here ({looked_at(config.start_from)}); copy it here, or have the first "
            "server of each stage on a host that has it"
        )
    tensors = _read(config.start_from)
    for stage, module in modules.items():
        module.load_state_dict({**module.state_dict(), **_part(config.start_from, tensors, stage, module)})
        logger.info("stage %s starts from the weights of %s", stage, config.start_from)


def _read(name: str) -> Mapping[str, Tensor]:
    """Of a model file, or of the newest whole round of a checkpoint folder, however it is cut."""
    path = model_in(find(name))
    try:
        return read_model(path) if path.is_file() else assemble(path).tensors
    except CheckpointError as error:
        raise ConfigError(f"start_from: {error}") from error


def _part(where: str, tensors: Mapping[str, Tensor], stage: str, module: nn.Module) -> dict[str, Tensor]:
    """The tensors of one stage by its own names, without those of quantizers."""
    quantizers = step_parameter_names(module) | quantizer_buffer_names(module)
    wanted = {name: own for name, own in module.state_dict().items() if name not in quantizers}
    try:
        return fitting(stage, wanted, tensors)
    except ModelError as error:
        raise ConfigError(
            f"start_from: {where} is another model than the one of the configuration: {error}; mind "
            "model_pipeline.pipeline, data.img_size and data.num_channels"
        ) from error
