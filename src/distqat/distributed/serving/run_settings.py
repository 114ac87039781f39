"""What the client decides of a run, as a server takes it over: with its slot, and after its restart."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

from distqat.config import Config, differing_keys, run_settings, with_run_settings
from distqat.process import notice

logger = logging.getLogger(__name__)

BATCH_SIZE = "diloco.batch_size_per_step"


def take_over(config: Config, told: Mapping[str, Any], given: Collection[str]) -> Config:
    """A server's configuration with what the client of the run decides, which is `told`.

    `given` are keys that were flags of this server: whoever typed one is told that it does not count.
    Raises ProtocolMismatch for a value that no client may have.
    """
    taken = with_run_settings(config, told)
    for key, (own, clients) in _differences(config, taken).items():
        if key == BATCH_SIZE and key in given:
            continue  # it bounds what trainers send to this server
        if key in given:
            notice(f"{key} {own} does not count on a server: the client of this run says {clients}")
        else:
            logger.info(
                "%s is %s, as the client of this run says; not %s, as configured here", key, clients, own
            )
    return taken


def take_over_again(config: Config, told: Mapping[str, Any]) -> Config:
    """What a server goes on by that has served this run before its client was started again."""
    taken = with_run_settings(config, told)
    for key, (old, new) in _differences(config, taken).items():
        logger.info(
            "%s is %s from here on, as the client says that was started again; it was %s", key, new, old
        )
    return taken


def most_samples(config: Config, given: Collection[str]) -> int | None:
    """Samples per step that this server takes at most; None: as many as the client says."""
    return config.diloco.batch_size_per_step if BATCH_SIZE in given else None


def _differences(one: Config, other: Config) -> dict[str, tuple[Any, Any]]:
    ours, theirs = run_settings(one), run_settings(other)
    return {key: (ours[key], theirs[key]) for key in differing_keys(ours, theirs)}
