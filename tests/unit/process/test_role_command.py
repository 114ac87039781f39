from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distqat.errors import RoleError
from distqat.process.role_command import MessageLines, RoleCommand, encode


@given(st.lists(st.dictionaries(st.text(), st.text() | st.integers()), max_size=5), st.integers(1, 7))
def test_messages_survive_any_cut(messages: list[dict[str, object]], size: int) -> None:
    data = b"".join(map(encode, messages))
    lines = MessageLines()
    got = [m for start in range(0, len(data), size) for m in lines.feed(data[start : start + size])]
    assert got == messages


@pytest.mark.parametrize("line", [b"{\n", b"[1]\n", b"\xff\n", b"\n"])
def test_what_is_no_message_is_refused(line: bytes) -> None:
    with pytest.raises(RoleError, match="not a"):
        list(MessageLines().feed(line))


def test_a_line_without_end_is_refused() -> None:
    with pytest.raises(RoleError, match="more than"):
        list(MessageLines().feed(b"x" * (1 << 21)))


def test_a_command_survives_the_way() -> None:
    command = RoleCommand("server 0", "a.b:main", ("--x", "ü"), Path("/logs/s.log"), {"A": None, "B": "1"}, 2)
    assert RoleCommand.from_message(command.to_message()) == command
