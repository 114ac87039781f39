"""What holds for every test: one printed seed, no network, a deadline (pytest-timeout, in pyproject.toml)."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Test modules, which import the libraries that read these, come later: no hub, no telemetry, no login.
for _name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SEED = int(os.environ.get("DISTQAT_TEST_SEED", "20240607"))
HERE = Path(__file__).parent
UNIT = HERE / "unit"
OF_THE_FAULT_TABLE = (  # docs/faults.md says which row is where
    HERE / "failover",
    HERE / "contract/test_hostile_peer.py",
    HERE / "integration/test_checkpoint_kill.py",
    HERE / "integration/test_ports.py",
)

# Examples are derived from the test itself, so that a failure comes back in the next run.
settings.register_profile("distqat", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("distqat")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fault-seeds", type=int, default=1, help="seeds per test of the fault table: moment, victim, phase"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for `fault_seed` runs once per seed; its name tells which."""
    if "fault_seed" in metafunc.fixturenames:
        count = metafunc.config.getoption("--fault-seeds")
        metafunc.parametrize("fault_seed", range(SEED, SEED + count), ids=lambda seed: f"seed{seed - SEED}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Unit tests open no sockets, Unix ones excepted; `@pytest.mark.enable_socket` says where one must.

    What belongs to the fault table gets its marker.
    """
    for item in items:
        if any(place in (item.path, *item.path.parents) for place in OF_THE_FAULT_TABLE):
            item.add_marker("faults")
        if UNIT in item.path.parents and item.get_closest_marker("enable_socket") is None:
            item.add_marker("disable_socket")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(f"seed {SEED} (DISTQAT_TEST_SEED)")


@pytest.fixture(scope="session")
def seed() -> int:
    """The seed of this test run."""
    return SEED


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """The same random numbers in every test, whatever ran before it."""
    random.seed(SEED)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(SEED)
    if "torch" in sys.modules:  # the unit tests of the configuration do without
        sys.modules["torch"].manual_seed(SEED)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Servers compute with one thread; sums over two threads have another order."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
