from __future__ import annotations

from pathlib import Path

import pytest

from distqat.errors import ConfigError, DistqatError, RoleError, RunFailed
from distqat.process import RoleCommand
from distqat.process.launcher_notices import End, LastWords
from distqat.process.role_endings import RoleEnded, ending

CLIENT = RoleCommand("client", "package.module:main", log_path=Path("logs/client.log"))


def test_codes_in_words() -> None:
    assert [ending(code) for code in (0, 2, -9, -99)] == ["code 0", "code 2", "SIGKILL", "signal 99"]


@pytest.mark.parametrize(
    ("code", "kind", "error"),
    [
        (2, "final", ConfigError),
        (1, "final", RunFailed),
        (1, "fault", RunFailed),
        (1, "circumstance", RoleError),
    ],
)
def test_whoever_needs_a_role_ends_with_its_sentence(code: int, kind: End, error: type[DistqatError]) -> None:
    ended = RoleEnded(CLIENT, 7, code, "given up: it is hopeless", LastWords("row 7 has no label", kind))
    assert ended.given_up
    failure = ended.failure()
    assert type(failure) is error
    assert str(failure) == "row 7 has no label"
    assert failure.log == Path("logs/client.log")


def test_the_log_is_that_of_the_role_that_met_the_cause() -> None:
    words = LastWords("row 7 has no label", "final", Path("logs/data_server.log"))
    assert RoleEnded(CLIENT, 7, 1, "given up", words).failure().log == Path("logs/data_server.log")


def test_without_words_it_says_how_the_role_ended() -> None:
    failure = RoleEnded(CLIENT, 7, -9, "given up: it crashed 3 times within 120 s").failure()
    assert type(failure) is RoleError
    assert str(failure) == "client ended with SIGKILL: given up: it crashed 3 times within 120 s"
