from __future__ import annotations

import pytest

from distqat.errors import ConfigError
from distqat.process.device_choice import DeviceChoice, choose_device, resolve_device, threads_per_server


def test_cuda_goes_round_robin() -> None:
    chosen = [choose_device("cuda", explicit=False, gpus=2, index=i).device for i in range(4)]
    assert chosen == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]


def test_a_numbered_device_is_taken_at_its_word() -> None:
    assert choose_device("cuda:1", explicit=True, gpus=2, index=0) == DeviceChoice("cuda:1")


@pytest.mark.parametrize(("requested", "gpus"), [("cuda", 0), ("cuda:0", 0), ("cuda:2", 2)])
def test_what_is_missing_is_a_warning_from_a_file_and_refused_from_the_command_line(
    requested: str, gpus: int
) -> None:
    choice = choose_device(requested, explicit=False, gpus=gpus)
    assert choice.device == "cpu"
    assert choice.warning is not None
    assert requested in choice.warning
    with pytest.raises(ConfigError, match=f"--device {requested}: this machine has"):
        choose_device(requested, explicit=True, gpus=gpus)


@pytest.mark.parametrize("requested", ["gpu", "cuda:", "cuda:-1", "CUDA", ""])
def test_unknown_names(requested: str) -> None:
    with pytest.raises(ConfigError, match="unknown device"):
        choose_device(requested, explicit=False, gpus=1)


def test_the_warning_is_logged_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert resolve_device("cuda", explicit=False) == "cpu"
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("servers", "cores", "threads"), [(1, 8, 8), (3, 8, 2), (4, 2, 1), (0, 4, 4), (1, 0, 1)]
)
def test_threads(servers: int, cores: int, threads: int) -> None:
    assert threads_per_server(servers, cores) == threads
