from __future__ import annotations

import json

import pytest

from distqat.errors import DataError
from distqat.failures import Repeats, describe, is_shortage, place_of


def raised(call: object) -> BaseException:
    with pytest.raises(Exception) as caught:
        call()  # type: ignore[operator]
    return caught.value


def test_an_error_of_ours_is_its_text_on_one_line() -> None:
    assert describe(DataError("row 3:\n no label")) == "row 3: no label"


def test_another_exception_names_kind_and_the_line_of_the_users_code() -> None:
    error = raised(lambda: json.loads("{"))
    assert describe(error).startswith("JSONDecodeError: Expecting property name")
    assert place_of(error).rpartition(":")[0].endswith("test_failures.py")  # not json/decoder.py


def test_an_exception_without_a_text_or_a_traceback_is_still_named() -> None:
    assert describe(KeyError()) == "KeyError"
    assert describe(DataError()) == "DataError"


def test_the_same_failure_three_times_since_the_last_success() -> None:
    repeats = Repeats()
    assert [repeats.add(("ValueError", "a.py:1")) for _ in range(2)] == [False, False]
    assert not repeats.add(("ValueError", "a.py:2"))
    assert repeats.add(("ValueError", "a.py:1"))
    repeats.clear()
    assert not repeats.add(("ValueError", "a.py:1"))


def test_short_memory_may_be_otherwise_in_a_minute() -> None:
    assert is_shortage(MemoryError())
    assert is_shortage(
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
    )
    assert not is_shortage(RuntimeError("shapes cannot be multiplied"))
