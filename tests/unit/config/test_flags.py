"""Fields as flags, and flags from fields."""

from __future__ import annotations

import argparse
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distqat.config import ConfigParser, add_config_arguments, config_from_args, load_config, to_argv
from distqat.config.fields import config_fields
from distqat.errors import ConfigError


@pytest.fixture(scope="module")
def parser() -> argparse.ArgumentParser:
    parser = ConfigParser("role")
    add_config_arguments(parser)
    return parser


def test_flags_are_distinct() -> None:
    flags = [field.flag for field in config_fields()]
    assert len(set(flags)) == len(flags)


@pytest.mark.parametrize(
    ("argv", "path", "value"),
    [
        ("--diloco-inner-steps 20", "diloco.inner_steps", 20),
        ("--device cpu", "device", "cpu"),
        ("--data-precision bf16", "data.precision", "bf16"),
        ("--diloco-inner-optim-adam-lr 1e-3", "diloco.inner_optim.adam_lr", 1e-3),
        ("--diloco-batch-size-per-step 1", "diloco.batch_size_per_step", 1),
        ("--disable-quant", "quant.enabled", False),
        ("--disable-quant --quant-enabled", "quant.enabled", True),
        ("--no-quant-enabled", "quant.enabled", False),
        ("--quant-enabled false", "quant.enabled", False),
        ("--quant-enabled=true", "quant.enabled", True),
        ("--wandb-project null", "wandb_project", None),
        ("--wandb-project 5", "wandb_project", "5"),
        ("--diloco-max-grad-norm null", "diloco.max_grad_norm", None),
        ("--initial-peers /ip4/192.0.2.1/tcp/1/p2p/A,/ip4/127.0.0.1/tcp/1/p2p/A", "initial_peers",
         ["/ip4/192.0.2.1/tcp/1/p2p/A", "/ip4/127.0.0.1/tcp/1/p2p/A"]),
        ("--initial-peers [/ip6/::1/tcp/1/p2p/A]", "initial_peers", ["/ip6/::1/tcp/1/p2p/A"]),
        ("--seed 1 --seed 2", "seed", 2),
        ("--quant-skip *.head,norm", "quant.skip", ("*.head", "norm")),
        ("--quant-skip ['*.head']", "quant.skip", ("*.head",)),
        ("--quant-activation-signed false", "quant.activation.signed", False),
        ("--quant-activation-signed auto", "quant.activation.signed", "auto"),
    ],
)  # fmt: skip
def test_a_flag_sets_its_field(parser: argparse.ArgumentParser, argv: str, path: str, value: Any) -> None:
    found: Any = config_from_args(parser.parse_args(argv.split()))
    for part in path.split("."):
        found = getattr(found, part)
    assert found == value


def test_the_default_config_is_resnet18(parser: argparse.ArgumentParser) -> None:
    args = parser.parse_args([])
    assert config_from_args(args) == load_config("configs/resnet18.yaml")
    assert args.config_overrides == {}


def test_one_parse_leaves_nothing_to_the_next(parser: argparse.ArgumentParser) -> None:
    parser.parse_args(["--seed", "5"])
    assert parser.parse_args(["--device", "cpu"]).config_overrides == {"device": "cpu"}


def test_empty_peers_are_none(parser: argparse.ArgumentParser) -> None:
    assert config_from_args(parser.parse_args(["--initial-peers", ""])).initial_peers == []


def test_the_pipeline_is_yaml(parser: argparse.ArgumentParser) -> None:
    args = parser.parse_args(["--model-pipeline-pipeline", "[{model_name: mlp.full, width: 1e-1}]"])
    (entry,) = config_from_args(args).model_pipeline.pipeline
    assert entry.kwargs == {"width": 0.1}


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            "--diloco-inner-stepz 3",
            "unknown flag '--diloco-inner-stepz'; did you mean '--diloco-inner-steps'?",
        ),
        ("--diloco-inner-step=3", "did you mean '--diloco-inner-steps'?"),
        ("--zzzz", "--help lists them"),
        ("stray", "unknown argument 'stray'"),
        ("--no-quant-enabled true", "takes no value"),
        ("--initial-peers [/a", "is not YAML"),
    ],
)
def test_flags_that_mean_nothing_end_with_status_2(
    parser: argparse.ArgumentParser, argv: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(argv.split())
    assert caught.value.code == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert printed.startswith("role: ")
    assert len(printed.splitlines()) == 1


def test_a_bad_value_is_a_config_error_that_names_the_flag(parser: argparse.ArgumentParser) -> None:
    with pytest.raises(
        ConfigError, match=r"^--data-precision: data.precision: unknown value 'fp23'; did you mean"
    ):
        config_from_args(parser.parse_args(["--data-precision", "fp23"]))


def test_help_groups_the_flags_by_section(parser: argparse.ArgumentParser) -> None:
    text = parser.format_help()
    for title in ("run:", "data:", "diloco:", "diloco.inner_optim:", "model_pipeline:", "quant:"):
        assert f"\n{title}\n" in text
    assert "inner steps per outer round" in text


OVERRIDES = st.fixed_dictionaries(
    {},
    optional={
        "wandb_project": st.none() | st.text("abc-1", min_size=1),
        "seed": st.integers(0, 2**40),
        "refresh_period": st.floats(1e-6, 1e6),
        "quant.enabled": st.booleans(),
        "data.precision": st.sampled_from(["fp32", "bf16", "fp16-mixed"]),
        "diloco.max_grad_norm": st.none() | st.floats(1e-6, 1e6),
        "initial_peers": st.lists(st.sampled_from(["/ip4/192.0.2.1/tcp/1/p2p/A", "/ip6/::1/tcp/2/p2p/B"])),
        "model_pipeline.pipeline": st.just([{"model_name": "mlp.full", "width": 0.5, "note": "a: b, 'c'"}]),
    },
)


@given(OVERRIDES, st.sampled_from([None, "configs/mlp.yaml", "resnet18"]))
def test_a_role_that_is_handed_the_flags_has_the_same_config(
    overrides: dict[str, Any], path: str | None
) -> None:
    parser = ConfigParser("role")
    add_config_arguments(parser)
    args = parser.parse_args(to_argv(path, overrides))
    assert config_from_args(args) == load_config(path, overrides)


def test_handing_on_an_unknown_field_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'diloco\.inner_steps'"):
        to_argv(None, {"diloco.inner_stepz": 1})


def test_building_the_parser_imports_no_torch() -> None:
    program = (
        "import sys; from distqat.config import ConfigParser, add_config_arguments, config_from_args\n"
        "parser = ConfigParser('role')\n"
        "add_config_arguments(parser); config_from_args(parser.parse_args([]))\n"
        "print(sorted({'torch', 'hivemind', 'transformers', 'datasets', 'sklearn'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
