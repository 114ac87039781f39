"""Every command line of the documentation is exercised; one that this table does not know fails."""

from __future__ import annotations

import re

import pytest
from tests.docs import exercise
from tests.docs.exercise import Commands, Exercise
from tests.docs.pages import ROOT, commands, pages

from distqat.config.fields import config_fields

_CLIENT = "python start_trainer_client.py --public-ip ${PUBLIC_IP}"
_SERVERS = "python start_servers.py"
_CIFAR = "--config-path configs/resnet18.yaml --diloco-batch-size-per-step 1 --device cpu"
_SKY = 'sky launch skypilot/start_servers.yaml --env NUM_SERVERS=8 --env INITIAL_PEERS="${INITIAL_PEERS}"'
_CHECK = "import distqat; import hivemind; print('DistQat installed successfully!')"

EXERCISES: dict[str, Exercise] = {
    "make setup": exercise.make,
    "make run": exercise.make,
    "make test": exercise.make,
    "make test-all": exercise.make,
    "make test-faults": exercise.make,
    "make simulate SEEDS=100000": exercise.make,
    "make check": exercise.make,
    "make docs": exercise.make,
    "make format": exercise.make,
    'make setup TORCH="torch==2.13.0"': exercise.make,
    f'python -c "{_CHECK}"': exercise.statement,
    "python run_local.py": exercise.python,
    "python run_local.py --config-path configs/mlp.yaml": exercise.python,
    "python run_local.py --diloco-inner-steps 20 --device cpu --data-precision fp32": exercise.python,
    "python run_local.py --with-baseline": exercise.python,
    "python run_local.py --baseline": exercise.python,
    "python run_local.py --resume": exercise.python,
    "python run_local.py --config-path=configs/mlp.yaml --start-from=checkpoints/mlp_float": exercise.python,
    "python run_local.py --wandb-project distqat": exercise.python,
    "python run_local.py --config-path configs/mymodel.yaml": exercise.only_flags,
    "python run_local.py --plugin path/to/mymodel.py --config-path configs/mymodel.yaml": exercise.only_flags,
    "python run_local.py --config-path mine/angle.yaml": exercise.only_flags,
    f'{_SERVERS} --num-servers 1 --initial-peers "$(cat logs/resnet18/initial_peers.txt)"': (
        exercise.adds_to_make_run
    ),
    _CLIENT: exercise.python,
    f"{_CLIENT} --disable-quant": exercise.python,
    f"{_CLIENT} --fresh": exercise.python,
    f"{_CLIENT} --no-spawn-trainers": exercise.python,
    "python examples/custom_loop.py": exercise.custom_loop,
    'python examples/custom_loop.py --initial-peers "${INITIAL_PEERS}" --config-path configs/resnet18.yaml': (
        exercise.custom_loop
    ),
    f'{_SERVERS} --public-ip "${{PUBLIC_IP}}" --num-servers 2 --initial-peers "${{INITIAL_PEERS}}"': (
        exercise.python
    ),
    f'{_SERVERS} --public-ip IP --num-servers 1 --initial-peers "..." {_CIFAR}': exercise.python,
    f'{_SERVERS} --disable-quant --num-servers 2 --initial-peers "${{INITIAL_PEERS}}"': exercise.python,
    "export DISTQAT_TOKEN=...": exercise.token,
    "pkill -f distqat": exercise.pkill,
    'pkill -f "python.*start_servers.py"': exercise.pkill,
    'pkill -f "python.*monitor.py"': exercise.pkill,
    "sky launch skypilot/start_trainer_client.yaml --secret WANDB_API_KEY": exercise.sky,
    _SKY: exercise.sky,
    f"{_SKY} --no-setup": exercise.sky,
    "python -m distqat.distributed.monitor --watch": exercise.python,
    "tail -f logs/resnet18/client.log": exercise.reads_logs,
    "tensorboard --logdir logs/resnet18/tensorboard": exercise.reads_logs,
    "distqat --help": exercise.distqat,
    "distqat run --config-path configs/mlp.yaml": exercise.distqat,
    "distqat baseline --config-path configs/mlp.yaml": exercise.distqat,
    "distqat trainer-client --public-ip ${PUBLIC_IP}": exercise.distqat,
    'distqat servers --num-servers 2 --initial-peers "${INITIAL_PEERS}"': exercise.distqat,
    "distqat monitor --watch": exercise.distqat,
    "distqat config configs/resnet18.yaml --diloco-inner-steps 20": exercise.distqat,
    "distqat config --schema": exercise.distqat,
    "distqat checkpoint list checkpoints/resnet18": exercise.checkpoint,
    "distqat checkpoint verify checkpoints/resnet18": exercise.checkpoint,
    "distqat checkpoint assemble checkpoints/resnet18 --out model.safetensors": exercise.checkpoint,
    "distqat evaluate checkpoints/resnet18": exercise.evaluate,
    "distqat export checkpoints/resnet18 --out exported/resnet18": exercise.export,
    "distqat export checkpoints/resnet18 --format safetensors --out exported/codes": exercise.export,
    "distqat export checkpoints/resnet18 --all --out exported/all": exercise.export,
    "distqat export checkpoints/distilgpt2 --format gguf --out exported/gguf": exercise.export,
    "distqat export checkpoints/hf_tiny --format compressed-tensors --out exported/hf_tiny": exercise.export,
    "distqat predict exported/resnet18 digit.png": exercise.predict,
    'distqat evaluate --initial-peers "$(cat logs/resnet18/initial_peers.txt)"': exercise.evaluate_swarm,
    "python src/distqat/distributed/monitor.py": exercise.python,
    'python src/distqat/distributed/client.py --initial-peers "${INITIAL_PEERS}"': exercise.python,
    'python src/distqat/distributed/server.py --device cpu --initial-peers "${INITIAL_PEERS}"': (
        exercise.python
    ),
    'python -m distqat.distributed.server --device cpu --initial-peers "${INITIAL_PEERS}"': exercise.python,
    "python src/distqat/distributed/trainer.py --run-locally": exercise.python,
    "python test_failover.py --public-ip ${PUBLIC_IP}": exercise.python,
    "python test_failover.py --public-ip 127.0.0.1 --quick": exercise.python,
    "python benchmarks/story.py --out logs/story": exercise.helps,
    "python benchmarks/failover.py --json failover.json": exercise.helps,
    "python benchmarks/tasks.py --json tasks.json": exercise.helps,
    "python benchmarks/models.py --json models.json": exercise.helps,
    "python benchmarks/quantization.py --json quantization.json --quick": exercise.helps,
    "python benchmarks/quantization_time.py --json quantization_time.json --quick": exercise.helps,
    "python benchmarks/export.py --json export.json --quick": exercise.helps,
    "python benchmarks/wire.py --json wire.json --quick": exercise.helps,
    "python benchmarks/pipeline.py --json pipeline.json": exercise.helps,
}
OWN_FLAGS = {
    "--out",  # distqat checkpoint assemble, distqat export
    "--agreement", "--samples", "--format", "--all", "--exact", "--round", "--stress",  # distqat export
    "--opset",
    "--ptq",  # distqat evaluate, run_local.py
    "--plugin",
    "--config-path", "--disable-quant", "--help", "--baseline", "--with-baseline", "--replicas", "--quick",
    "--no-progress", "--num-servers", "--watch", "--resume", "--fresh", "--run-locally", "--schema", "--json",
}  # fmt: skip
SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))
OTHERS_FLAGS = {"--env", "--gpus", "--secret", "--no-setup", "--logdir"}


@pytest.mark.parametrize("line", commands())
def test_the_command_is_accepted(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert line in EXERCISES, "say in EXERCISES how this command is tested"
    EXERCISES[line](Commands(monkeypatch), exercise.split(line))


def test_the_table_holds_nothing_else() -> None:
    assert set(EXERCISES) <= set(commands())


def test_every_flag_in_the_text_exists() -> None:
    known = {field.flag for field in config_fields()} | OWN_FLAGS | OTHERS_FLAGS
    known |= {flag for script in SCRIPTS for flag in re.findall(r'"(--[a-z-]+)"', script.read_text())}
    known |= {f"--no-{field.flag[2:]}" for field in config_fields() if field.is_bool}
    for page in pages():
        used = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page.read_text(encoding="utf-8")))
        assert used - {"--no-"} <= known, page


def test_every_benchmark_in_the_text_exists() -> None:
    for page in pages():
        for path in re.findall(r"benchmarks/\w+\.py", page.read_text(encoding="utf-8")):
            assert ROOT / path in SCRIPTS, (page, path)


def test_every_extra_in_the_text_exists() -> None:
    declared = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2]
    for page in pages():
        for extra in re.findall(r"\.\[(\w+)\]", page.read_text(encoding="utf-8")):
            assert re.search(rf"^{extra} = \[", declared, re.MULTILINE), (page, extra)
