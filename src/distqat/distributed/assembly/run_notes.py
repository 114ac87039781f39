"""What is noted of a run beside its checkpoints, so that they can be read without its configuration file."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from distqat.atomic_files import write_whole
from distqat.checkpoint.atomic_folders import locked
from distqat.checkpoint.digested_json import as_json
from distqat.checkpoint.run_card import RunCard, read_card, write_card
from distqat.checkpoint.tensor_file import disk_errors
from distqat.config import Config, recipe
from distqat.config_paths import folders
from distqat.data.source import Source, class_names
from distqat.errors import CheckpointError, ConfigError

logger = logging.getLogger(__name__)

CLASSES = "classes.json"
"""In the log folder of the host that reads the data: names by class number."""
LOCK_S = 30.0
WITHOUT = "distqat evaluate and export will need --config-path"


def note_classes(config: Config, source: Source) -> None:
    """Whoever opens the data set tells the names of its classes to the other roles of its host."""
    path, names = Path(config.log_dir) / CLASSES, class_names(source)
    try:
        if not names:
            path.unlink(missing_ok=True)
            return
        write_whole(path, json.dumps(names, ensure_ascii=False, indent=0) + "\n")
    except OSError as error:
        logger.warning("the names of classes are not noted: %s: %s", path, error.strerror)


def noted_classes(config: Config) -> list[str]:
    """What `note_classes` wrote here; nothing where there are no names, or another host reads the data."""
    try:
        return [str(name) for name in json.loads((Path(config.log_dir) / CLASSES).read_text("utf-8"))]
    except (OSError, ValueError):
        return []


def card_of(config: Config, generation: int) -> RunCard:
    """The card of this run as it is known on this host."""
    return RunCard(
        run=config.experiment_prefix,
        generation=generation,
        config=as_json(recipe(config), "the configuration"),
        classes=noted_classes(config),
        folders=[str(folder) for folder in folders()],
    )


def note_run(config: Config, generation: int, *, goes_on: bool) -> None:
    """For the client: write the card into the checkpoint folder; one that cannot be written is a warning.

    Raises ConfigError when the run goes on with data whose classes are others than before.
    """
    card = card_of(config, generation)
    try:
        with _card_in(config.checkpoint_dir) as before:
            if goes_on and before is not None and before.run == card.run:
                check_classes(before.classes, card.classes, f"run {card.run!r}")
            write_card(config.checkpoint_dir, card)
    except CheckpointError as error:
        logger.warning("%s; %s", error, WITHOUT)


def note_run_of_server(config: Config, generation: int, counts_from: int) -> None:
    """For a host that may have no client: a card, unless there is one of this run."""
    try:
        with _card_in(config.checkpoint_dir) as before:
            if before is None or before.run != config.experiment_prefix or before.generation < counts_from:
                write_card(config.checkpoint_dir, card_of(config, generation))
    except CheckpointError as error:
        logger.warning("%s; %s", error, WITHOUT)


@contextmanager
def _card_in(folder: Path) -> Iterator[RunCard | None]:
    """The card that is there, while nobody else writes one. Raises CheckpointError."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder, wait_s=LOCK_S):
            yield _readable(folder)


def _readable(folder: Path) -> RunCard | None:
    try:
        return read_card(folder)
    except CheckpointError as error:
        logger.warning("%s; it is written anew", error)
        return None


def check_classes(trained: Sequence[str], found: Sequence[str], what: str) -> None:
    """Raises ConfigError when data name their classes otherwise than those that a model was trained on."""
    if not trained or not found or list(trained) == list(found):
        return
    raise ConfigError(
        f"{what} was trained on the classes {_listed(trained)}, and data.dataset_name now has "
        f"{_listed(found)}: the numbers would mean other classes; give the data that it was trained on"
    )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"{number} {name}" for number, name in enumerate(names[:8]))
    return shown if len(names) <= 8 else f"{shown}, ... ({len(names)})"
