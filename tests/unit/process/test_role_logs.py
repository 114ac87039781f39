from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from distqat.errors import ConfigError
from distqat.process.role_logs import claim_log, level_of, set_up_logging


@pytest.fixture
def logging_restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HIVEMIND_LOGLEVEL", "INFO")
    monkeypatch.delenv("HIVEMIND_VERBOSITY", raising=False)
    loggers = [logging.getLogger(name) for name in (None, "distqat", "hivemind")]
    before = [(logger, list(logger.handlers), logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, handlers, level, propagate in before:
        for handler in logger.handlers:
            if handler not in handlers and isinstance(handler, logging.FileHandler):
                handler.close()
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate = propagate


def test_a_second_launcher_gets_names_of_its_own(tmp_path: Path) -> None:
    first, second = claim_log(tmp_path, "server", 0), claim_log(tmp_path, "server", 0)
    assert (first.path.name, second.path.name) == ("server_0.log", "server_1.log")
    assert second.number == 1
    first.release()
    again = claim_log(tmp_path, "server", 0)
    assert again.path == first.path
    assert claim_log(tmp_path, "monitor").path.name == "monitor.log"


def test_a_plain_name_that_is_held_gets_a_number(tmp_path: Path) -> None:
    claims = [claim_log(tmp_path / "run", "monitor") for _ in range(3)]
    assert [claim.path.name for claim in claims] == ["monitor.log", "monitor_1.log", "monitor_2.log"]


def test_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HIVEMIND_VERBOSITY", raising=False)
    assert level_of(None) == logging.INFO
    monkeypatch.setenv("HIVEMIND_VERBOSITY", "debug")
    assert level_of(None) == logging.DEBUG
    assert level_of("warn") == logging.WARNING
    with pytest.raises(ConfigError, match="'LOUD'; known: DEBUG"):
        level_of("loud")


@pytest.mark.usefixtures("logging_restored")
def test_the_engines_lines_go_into_the_same_file_in_the_same_form(tmp_path: Path) -> None:
    engine = logging.getLogger("hivemind")
    engine.addHandler(logging.StreamHandler())
    engine.propagate = False
    set_up_logging("server front.0.0.0", "INFO", tmp_path / "logs" / "server_0.log")
    logging.getLogger("hivemind.dht").warning("from the engine")
    logging.getLogger("distqat.x").info("from us")
    logging.getLogger("distqat.x").debug("not shown")
    lines = (tmp_path / "logs" / "server_0.log").read_text().splitlines()
    assert [line.split(maxsplit=2)[2] for line in lines] == [
        "WARNING [server front.0.0.0] from the engine",
        "INFO    [server front.0.0.0] from us",
    ]


@pytest.mark.usefixtures("logging_restored")
def test_verbosity_sets_both_unless_a_level_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIVEMIND_VERBOSITY", "DEBUG")
    set_up_logging("monitor")
    assert logging.getLogger("distqat.x").isEnabledFor(logging.DEBUG)
    assert logging.getLogger("hivemind.x").isEnabledFor(logging.DEBUG)
    set_up_logging("monitor", "WARNING")
    assert not logging.getLogger("distqat.x").isEnabledFor(logging.INFO)
    assert logging.getLogger("hivemind.x").isEnabledFor(logging.DEBUG)


@pytest.mark.usefixtures("logging_restored")
def test_a_line_that_no_encoding_holds_is_written(tmp_path: Path) -> None:
    file = tmp_path / "server_0.log"
    set_up_logging("server", "INFO", file)
    logging.getLogger("distqat").info("reads gr\udcfcn → grün")
    assert file.read_bytes().decode("latin-1").endswith("reads gr\xfcn â\x86\x92 grÃ¼n\n")
