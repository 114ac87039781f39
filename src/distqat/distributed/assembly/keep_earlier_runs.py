"""What earlier runs left in this host's checkpoint folder makes room for the one that begins."""

from __future__ import annotations

import logging

from distqat.checkpoint.earlier_runs import keep_earlier
from distqat.checkpoint.finished_note import finished_generation, note_finished
from distqat.config import Config
from distqat.errors import CheckpointError
from distqat.process import notice

logger = logging.getLogger(__name__)


def make_room(config: Config, counts_from: int, *, goes_on: bool) -> None:
    """Keep beside what is older than generation `counts_from`, and say so in one line.

    A run that does not go on with another begins after all that this host knows to be finished.
    """
    folder = config.checkpoint_dir
    before = counts_from if goes_on else max(counts_from, finished_generation(folder) + 1)
    try:
        earlier = keep_earlier(folder, before)
    except CheckpointError as error:
        logger.warning("an earlier run in %s stays where it is: %s", folder, error)
        return
    if earlier is not None:
        notice(earlier.line())


def note_end(config: Config, generation: int) -> None:
    """The run came to its end: the next one of this name begins anew, unless it is told to resume."""
    try:
        note_finished(config.checkpoint_dir, generation)
    except CheckpointError as error:
        logger.warning("%s; the next start will go on from this run unless told otherwise", error)
