"""Bad days by the thousand: invariants after every event, nothing split, and checks that find planted bugs.

A failure names its seed; `python -m tests.simulation --kind rounds --seed 7 --trace` replays it.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator

import pytest
from tests.simulation.bugs import BUGS
from tests.simulation.stage import Stage
from tests.simulation.swarm import Swarm
from tests.simulation.world import Violation

SEEDS = int(os.environ.get("DISTQAT_SIMULATION_SEEDS", "1000"))  # of each kind
PATIENCE = 150  # seeds until a planted bug must be found
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The commit log and the slots say what they do; thousands of times here."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def total(kind: type[Swarm] | type[Stage]) -> Counter[str]:
    said: Counter[str] = Counter()
    for seed in range(SEEDS):
        one = kind(seed).run()
        said += one
        said["seeds with faults"] += one["faults"] > 0
    print(kind.__name__, SEEDS, dict(said))
    return said


def test_steps_keep_the_invariants_under_every_seed() -> None:
    said = total(Swarm)
    assert said["seeds with faults"] > 0.9 * SEEDS
    assert said["steps"] > 30 * SEEDS
    assert said["aborted"] > 2 * SEEDS
    assert said["refused"] > SEEDS / 30, "trainers that were cut off in their commit"
    assert said["alone"] < said["steps"] / 500, "stages that were cut off for too long"


def test_rounds_keep_the_invariants_under_every_seed() -> None:
    said = total(Stage)
    assert said["seeds with faults"] > 0.9 * SEEDS
    assert said["rounds"] > 8 * SEEDS
    assert said["discarded"] > SEEDS / 10
    assert said["restarted"] > SEEDS / 10
    assert said["restarts"] > 0, "stages that were lost and went on in a new generation"


def test_the_checks_find_planted_bugs() -> None:
    found: dict[str, int | None] = {}
    for bug, (kind, roles) in BUGS.items():
        found[bug] = None
        for seed in range(PATIENCE):
            try:
                kind(seed, roles=roles).run()
            except (Violation, AssertionError, RuntimeError) as error:
                found[bug] = seed + 1
                print(f"{bug}: {seed + 1} seeds; {error}")
                break
        else:
            print(f"{bug}: not found in {PATIENCE} seeds")
    missed = [bug for bug, seeds in found.items() if seeds is None]
    assert len(found) >= 10
    assert len(missed) <= 1, missed


@pytest.mark.parametrize("kind", [Swarm, Stage])
def test_a_seed_replays_to_the_same_end(kind: type[Swarm] | type[Stage]) -> None:
    first, second = [], []
    kind(7, trace=first.append).run()
    kind(7, trace=second.append).run()
    assert len(first) == len(second) > 100
