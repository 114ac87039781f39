"""The configuration that a trained model is read with: its own, unless another one is named."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from distqat.config import DEFAULT_CONFIG, Config, differences, from_recipe, load_config
from distqat.errors import CheckpointError
from distqat.terminal import complain

_SHOWN = 4


@dataclass(frozen=True)
class SavedConfig:
    """A configuration, and what the run said of its classes."""

    config: Config
    classes: tuple[str, ...] = ()


def expect_own_config(parser: argparse.ArgumentParser) -> None:
    """Of `--config-path`, what a command says that reads a checkpoint; it is None unless it was given."""
    parser.set_defaults(config_path=None)
    for action in parser._actions:
        if action.dest == "config_path":
            action.help = "YAML file, or the name of a shipped one (default: the configuration of the run)"


def config_of(args: argparse.Namespace, path: Path | None) -> SavedConfig:
    """What the model at `path` was trained with, with the flags of `args` on top. Raises ConfigError.

    A `--config-path` comes before it, and what differs from the run's is told. A checkpoint of a release that
    did not note its configuration is read with the default one, as it was then.
    """
    from distqat.checkpoint.assembled_model import model_in
    from distqat.checkpoint.run_card import read_card

    try:
        card = read_card(model_in(path, args.round)) if path is not None and path.exists() else None
    except CheckpointError:
        if args.config_path is None:
            raise
        card = None
    if card is None or args.config_path is not None:
        given = DEFAULT_CONFIG if args.config_path is None else args.config_path
        config = load_config(given or None, args.config_overrides)
        if card is None:
            return SavedConfig(config)
        told = differences(config, card.config)
        if told:
            more = f" and {len(told) - _SHOWN} more" if len(told) > _SHOWN else ""
            complain(
                f"other than in training: {'; '.join(told[:_SHOWN])}{more} (without --config-path the "
                "configuration of the run is taken)"
            )
        return SavedConfig(config, tuple(card.classes))
    beside = [Path(folder) for folder in card.folders]
    return SavedConfig(
        from_recipe(card.config, str(path), args.config_overrides, beside), tuple(card.classes)
    )
