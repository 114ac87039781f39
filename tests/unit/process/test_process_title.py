from __future__ import annotations

import re

import pytest

from distqat.process.process_title import redacted, script_of, set_title, title


def test_a_title_starts_with_the_name_and_goes_on_with_the_documented_command() -> None:
    text = title("server front.0.0.0", ["--device", "cpu"])
    assert text == "distqat server front.0.0.0 python src/distqat/distributed/server.py --device cpu"


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("servers", "python.*start_servers.py"),
        ("trainer-client", "python.*start_trainer_client.py"),
        ("monitor", "python.*monitor.py"),
        ("run_local", "python.*run_local.py"),
        ("data-server", r"python.*distributed/data_server\.py"),
    ],
)
def test_documented_pkill_patterns_find_it(name: str, pattern: str) -> None:
    assert re.search(pattern, title(name))
    assert title(name).startswith("distqat ")


def test_one_role_is_not_found_by_the_pattern_of_another() -> None:
    assert not re.search("python.*start_servers.py", title("server front.0.0.0"))
    assert script_of("server") != script_of("servers")


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (["--token", "abc", "--device", "cpu"], ["--token", "***", "--device", "cpu"]),
        (["--hf-token=abc"], ["--hf-token=***"]),
        (["--wandb-api-key", "abc"], ["--wandb-api-key", "***"]),
        (["--password", "--device", "cpu"], ["--password", "--device", "cpu"]),
        (["--seed=1", "x"], ["--seed=1", "x"]),
    ],
)
def test_values_of_secrets_are_not_shown(argv: list[str], shown: list[str]) -> None:
    assert redacted(argv) == shown


def test_a_long_command_is_cut() -> None:
    assert len(title("server 0", ["x" * 10_000])) == 2000


def test_bytes_that_the_locale_cannot_read_do_not_end_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr("setproctitle.setproctitle", lambda text: shown.append(text.encode().decode()))
    set_title("servers", ["--log-dir=gr\udcc3\udcbcn", "gr\udcfcn"])
    assert shown == ["distqat servers python start_servers.py --log-dir=grün gr\ufffdn"]
