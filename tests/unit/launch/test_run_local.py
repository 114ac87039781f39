from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from distqat.errors import RoleError
from distqat.launch import run_local
from distqat.launch.launcher_roles import LauncherSettings, known_peers, read_settings
from distqat.launch.progress_text import RunGoal
from distqat.launch.run_plan import RunPlan
from distqat.launch.status_poller import peer_of
from distqat.launch.warm_processes import model_modules
from distqat.process import LogClaim, PortClaim


@pytest.fixture(autouse=True)
def _no_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distqat.launch.launcher_roles.set_up_logging", lambda *_: None)


def settings(*flags: str) -> LauncherSettings:
    return read_settings(run_local.parse(["--config-path=configs/mlp.yaml", *flags]))


def plan(mode: str, *flags: str) -> RunPlan:
    claim = LogClaim(Path("logs/mlp/run_local.log"), 0, -1)
    return RunPlan(
        mode, settings(*flags), {"monitor": PortClaim(1, None), "client": PortClaim(2, None)}, claim
    )


def test_replicas_mean_the_world_size() -> None:
    assert settings("--replicas=3").config.world_size == 3
    assert settings("--replicas=3", "--world-size=3").config.world_size == 3
    assert settings().config.world_size == 2


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--replicas=2", "--world-size=3"], "--replicas and --world-size differ"),
        (["--baseline", "--with-baseline"], "not allowed with"),
        (["--with-baselines"], "did you mean '--with-baseline'?"),
    ],
)
def test_bad_usage_is_one_line_and_code_2(
    capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as end:
        run_local.parse(flags)
    assert end.value.code == 2
    errors = capsys.readouterr().err
    assert said in errors
    assert errors.count("\n") == 1


def test_a_swarm_has_servers_and_rounds() -> None:
    swarm = plan("swarm", "--replicas=3", "--diloco-inner-steps=5", "--diloco-outer-steps=8")
    assert swarm.servers == 6
    assert swarm.goal == RunGoal(8, 40)
    assert swarm.describe() == [
        "swarm mlp: mlp.front → mlp.back, 3 replica(s) of each stage, data digits",
        "8 rounds of 5 steps of 32 samples; logs in logs/mlp/",
    ]


def test_a_baseline_has_neither_and_takes_the_steps_of_all_pipelines() -> None:
    baseline = plan("baseline", "--replicas=3", "--diloco-inner-steps=5", "--diloco-outer-steps=8")
    assert baseline.servers == 0
    assert baseline.goal == RunGoal(None, 120)
    assert replace(baseline, samples=64 * 32 + 1).goal == RunGoal(None, 65)
    assert "one process, no servers" in baseline.describe()[0]


def test_a_baseline_beside_its_swarm_has_folders_of_its_own() -> None:
    swarm = settings("--replicas=3", "--store-ip-addresses-path=peers.txt")
    config = run_local.beside(swarm).config
    assert config.log_dir == "logs/mlp/baseline"
    assert config.store_ip_addresses_path == "logs/mlp/baseline/initial_peers.txt"
    assert config.checkpoint_dir == swarm.config.checkpoint_dir / "baseline"
    assert config.world_size == 3
    assert "--log-dir=logs/mlp/baseline" in run_local.beside(swarm).argv()


def test_peers_are_the_monitors_then_the_users() -> None:
    given = settings("--initial-peers=/ip4/10.0.0.1/tcp/1/p2p/QmUser,/ip4/127.0.0.1/tcp/2/p2p/QmMonitor")
    said = {"role": "monitor", "peers": ["/ip4/127.0.0.1/tcp/2/p2p/QmMonitor"]}
    assert known_peers(said, given) == [
        "/ip4/127.0.0.1/tcp/2/p2p/QmMonitor",
        "/ip4/10.0.0.1/tcp/1/p2p/QmUser",
    ]
    with pytest.raises(RoleError, match="told no addresses"):
        known_peers({"peers": []}, given)


def test_the_client_is_known_by_its_address() -> None:
    assert peer_of(["/ip4/127.0.0.1/tcp/51000/p2p/QmClient"]) == "QmClient"
    for nothing in ([], None, ["/ip4/127.0.0.1/tcp/51000"], [7], "/p2p/Qm"):
        with pytest.raises(RoleError, match="told no address"):
            peer_of(nothing)


def test_only_what_the_pipeline_needs_is_imported_beforehand() -> None:
    assert model_modules(settings().config) == ()
    gpt = read_settings(run_local.parse(["--config-path=configs/distilgpt2.yaml"])).config
    assert model_modules(gpt) == ("transformers.models.gpt2.modeling_gpt2",)
    speech = read_settings(run_local.parse(["--config-path=configs/wav2vec2.yaml"])).config
    assert model_modules(speech) == ("transformers.models.wav2vec2.modeling_wav2vec2",)
