"""The configuration: one YAML file, every field a flag, errors that say where."""

from __future__ import annotations

from distqat.config.agreement import (
    agreement,
    agreement_digest,
    changeable,
    differing_keys,
    quantization,
    structure,
    structure_digest,
)
from distqat.config.authority import authority_of, keys_of, run_settings, with_run_settings
from distqat.config.flags import ConfigParser, add_config_arguments, config_from_args, to_argv
from distqat.config.load import DEFAULT_CONFIG, load_config
from distqat.config.pipeline_check import check_folders, check_start_from, check_teacher_path, teacher_path
from distqat.config.recipe import differences, from_recipe, recipe
from distqat.config.schema import Config

__all__ = [
    "DEFAULT_CONFIG",
    "Config",
    "ConfigParser",
    "add_config_arguments",
    "agreement",
    "agreement_digest",
    "authority_of",
    "changeable",
    "check_folders",
    "check_start_from",
    "check_teacher_path",
    "config_from_args",
    "differences",
    "differing_keys",
    "from_recipe",
    "keys_of",
    "load_config",
    "quantization",
    "recipe",
    "run_settings",
    "structure",
    "structure_digest",
    "teacher_path",
    "to_argv",
    "with_run_settings",
]
