"""What a launcher tells a role goes through one environment variable."""

from __future__ import annotations

import os

import pytest

from distqat.errors import RoleError
from distqat.process import RoleParameters
from distqat.process.role_parameters import VARIABLE

TOLD = RoleParameters(
    log_name="trainer_1",
    samples=640,
    pipeline=1,
    progress={"step": 7},
    data_position={"epoch": 1},
    resume=True,
)


@pytest.mark.parametrize("told", [TOLD, RoleParameters()])
def test_a_role_reads_what_its_launcher_wrote(monkeypatch: pytest.MonkeyPatch, told: RoleParameters) -> None:
    for name, value in told.environment().items():
        monkeypatch.setenv(name, value)
    assert RoleParameters.take() == told


def test_it_is_told_once_and_not_to_its_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, TOLD.environment()[VARIABLE])
    RoleParameters.take()
    assert VARIABLE not in os.environ
    assert RoleParameters.take() == RoleParameters()


@pytest.mark.parametrize("text", ["{", "[]", '{"pipelines": 1}'])
def test_what_cannot_be_read_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(RoleError, match=f"{VARIABLE} cannot be read"):
        RoleParameters.take()
