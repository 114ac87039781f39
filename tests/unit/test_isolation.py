"""The rules that tests/conftest.py and pyproject.toml set hold."""

from __future__ import annotations

import os
import random
import socket

import pytest
from pytest_socket import SocketBlockedError


@pytest.mark.filterwarnings("ignore:A test tried to use socket")
def test_unit_tests_cannot_open_internet_sockets() -> None:
    with pytest.raises(SocketBlockedError):
        socket.socket(socket.AF_INET)


def test_unix_sockets_stay_open_for_event_loops() -> None:
    for end in socket.socketpair():
        end.close()


def test_libraries_do_not_look_for_the_hub() -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert os.environ["HF_DATASETS_OFFLINE"] == "1"


def test_every_test_has_a_deadline(pytestconfig: pytest.Config) -> None:
    assert 0 < float(pytestconfig.getini("timeout")) <= 120


@pytest.mark.parametrize("_time", range(2))
def test_random_numbers_start_from_the_printed_seed(_time: int, seed: int) -> None:
    assert random.random() == random.Random(seed).random()
