"""One running swarm for the tests that leave it as whole as they found it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.failover.process_swarm import ProcessSwarm

_SWARM = pytest.StashKey[ProcessSwarm]()  # of the session: the swarm that runs


@pytest.fixture
def swarm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ProcessSwarm:
    """Two replicas of two stages, in training. It is ended after the last test in a row that asks for it."""
    stash = request.session.stash
    if _SWARM not in stash:
        stash[_SWARM] = ProcessSwarm(tmp_path_factory.mktemp("swarm")).__enter__()
    return stash[_SWARM]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A test that failed may have left it in any state: the next gets another."""
    if call.excinfo is not None and _SWARM in item.session.stash and "swarm" in _names(item):
        running = item.session.stash[_SWARM]
        del item.session.stash[_SWARM]
        running.__exit__(call.excinfo.type, call.excinfo.value, None)
    return (yield)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """End it, and see that nothing is left of it (I5), before anything else is tested."""
    if _SWARM in item.session.stash and (nextitem is None or "swarm" not in _names(nextitem)):
        running = item.session.stash[_SWARM]
        del item.session.stash[_SWARM]
        running.__exit__(None, None, None)


def _names(item: pytest.Item) -> list[str]:
    return list(getattr(item, "fixturenames", []))
