"""The documented example loads as it stands, and so does every documented value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from distqat.config import Config, load_config
from distqat.config.yaml_source import parse

DOCUMENTED = """\
wandb_project: "distqat"
experiment_prefix: "resnet18"
data:
  dataset_name: "uoft-cs/cifar10"
  dataset_split: "train"
  task_type: "cv"
  num_workers: 0
  precision: "fp16-mixed"
  num_channels: 3
  img_size: 32
diloco:
  inner_optim: {type: "adam", adam_lr: 4e-4, adam_weight_decay: 0.1}
  outer_optim: {type: "sgd", sgd_lr: 0.07, sgd_momentum: 0.9, sgd_nesterov: true}
  inner_steps: 500
  outer_steps: 100
  batch_size_per_step: 64
  averaging_timeout: 60.0
model_pipeline:
  pipeline:
    - {model_name: "resnet18.front", num_classes: 10}
    - {model_name: "resnet18.back", num_classes: 10}
  forward_timeout: 90.0
  backward_timeout: 180.0
param_mirror: {enable: true, refresh_every: 30, checkpoint_dir: "checkpoints/resnet18"}
world_size: 2
device: "cuda"
max_expert_index: 128
"""


@pytest.fixture
def documented(tmp_path: Path) -> Path:
    path = tmp_path / "documented.yaml"
    path.write_text(DOCUMENTED)
    return path


def test_the_documented_example_loads_literally(documented: Path) -> None:
    config = load_config(documented)
    assert config.wandb_project == "distqat"
    assert config.data.dataset_name == "uoft-cs/cifar10"
    assert config.data.precision == "fp16-mixed"
    assert config.diloco.inner_optim.adam_lr == 4e-4
    assert config.diloco.outer_optim.sgd_lr == 0.07
    assert config.diloco.averaging_timeout == 60.0
    assert config.stages == ["front", "back"]
    assert config.param_mirror.checkpoint_dir == "checkpoints/resnet18"
    assert (config.world_size, config.device, config.max_expert_index) == (2, "cuda", 128)


def test_the_shipped_cifar10_config_is_the_documented_example(documented: Path) -> None:
    assert load_config("configs/resnet18_cifar10.yaml") == load_config(documented)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(
            ("data.task_type", name)
            for name in ("cv", "llm", "nlp", "speech", "image_gen", "node_pred", "rl")
        ),
        *(("data.precision", name) for name in ("fp16-mixed", "bf16", "fp32")),
        *(
            (f"diloco.{loop}_optim.type", name)
            for loop in ("inner", "outer")
            for name in ("adam", "adamw", "sgd")
        ),
        *(("diloco.lr_schedule", name) for name in ("constant", "cosine", "linear", "cooldown")),
        ("diloco.warmup_steps", 10),
        ("initial_peers", ["/ip4/192.0.2.1/tcp/50000/p2p/Qm"]),
        ("host_maddrs", ["/ip4/0.0.0.0/tcp/50000"]),
        ("announce_maddrs", ["/ip4/192.0.2.1/tcp/50000"]),
        ("refresh_period", 12.5),
        ("store_ip_addresses_path", "peers.txt"),
        ("device", "cuda:1"),
        ("seed", 7),
    ],
)
def test_every_documented_value_loads(documented: Path, key: str, value: Any) -> None:
    found: Any = load_config(documented, {key: value})
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value


def test_every_documented_key_has_a_default() -> None:
    config = Config()
    assert config.refresh_period == 300.0
    assert (config.monitor_port, config.server_base_port, config.client_port) == (50000, 50500, 51000)
    assert config.device == "cpu"
    assert config.initial_peers == []
    assert config.data.dataset_name == "digits"


def test_paths_follow_the_prefix_unless_given() -> None:
    config = Config(experiment_prefix="run7")
    assert config.log_dir == "logs/run7"
    assert config.store_ip_addresses_path == "logs/run7/initial_peers.txt"
    assert str(config.checkpoint_dir) == "checkpoints/run7"
    moved = load_config(None, {"log_dir": "elsewhere", "param_mirror.checkpoint_dir": "kept"})
    assert moved.store_ip_addresses_path == "elsewhere/initial_peers.txt"
    assert str(moved.checkpoint_dir) == "kept"
    assert load_config(None, {"log_dir": None}).log_dir == "logs/distqat"


def test_extra_keys_of_a_pipeline_entry_go_to_the_constructor() -> None:
    config = load_config(
        None, {"model_pipeline.pipeline": [{"model_name": "mlp.head", "width": 0.5, "blocks": [1, 2]}]}
    )
    (entry,) = config.model_pipeline.pipeline
    assert entry.stage == "head"
    assert entry.kwargs == {"width": 0.5, "blocks": [1, 2]}


def test_num_classes_goes_to_the_constructor_when_given() -> None:
    assert Config().model_pipeline.pipeline[0].kwargs == {"num_classes": 10}


def test_addresses_may_be_one_string_with_commas() -> None:
    text = "/ip4/192.0.2.1/tcp/50000/p2p/Qm, /ip4/127.0.0.1/tcp/50000/p2p/Qm,\n"
    peers = load_config(None, {"initial_peers": text}).initial_peers
    assert peers == ["/ip4/192.0.2.1/tcp/50000/p2p/Qm", "/ip4/127.0.0.1/tcp/50000/p2p/Qm"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"experiment_prefix": "../up"}, "must start with a letter"),
        ({"device": "cuda1"}, "cuda:N"),
        ({"initial_peers": "logs/x/initial_peers.txt"}, "not a peer address"),
        ({"host_maddrs": ["0.0.0.0:50000"]}, "not an address"),
        ({"public_ip": ""}, "is PUBLIC_IP set?"),
        ({"public_ip": "300.1.1.1"}, "not an IP address"),
        ({"monitor_port": 65536}, "65535"),
        ({"model_pipeline": {"pipeline": []}}, "at least 1"),
        (
            {"model_pipeline": {"pipeline": [{"model_name": "a.x"}, {"model_name": "b.x"}]}},
            "two stages are named 'x'.*number them, a.x1, b.x2",
        ),
    ],
)
def test_values_that_cannot_work_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Config.model_validate(values)


def test_log_levels_are_read_in_any_case() -> None:
    assert load_config(None, {"log_level": "debug"}).log_level == "DEBUG"


def test_values_do_not_change_after_loading() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Config().seed = 3


def test_the_schema_is_json() -> None:
    schema = json.loads(json.dumps(Config.model_json_schema()))
    assert schema["additionalProperties"] is False
    assert "diloco" in schema["properties"]


def test_the_documented_example_is_what_a_parser_of_yaml_makes_of_it() -> None:
    values = parse(DOCUMENTED, "documented").values
    assert values["diloco"]["inner_optim"]["adam_lr"] == pytest.approx(4e-4)
