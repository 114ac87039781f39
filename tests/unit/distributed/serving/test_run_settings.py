"""A server takes over what the client decides, says so, and goes on by it without losing anything."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from distqat.config import Config, load_config, run_settings
from distqat.distributed.assembly.stage_factory import build_module
from distqat.distributed.serving.forward_precision import ForwardPrecision
from distqat.distributed.serving.replica import StageReplica
from distqat.distributed.serving.run_settings import most_samples, take_over, take_over_again
from distqat.distributed.serving.server_status import _limits
from distqat.distributed.training.loss_scaler import FP16, wants_scaling
from distqat.topology.snapshot import ServerRecord

FILE = "configs/mlp.yaml"


def config(**changes: Any) -> Config:
    return load_config(FILE, {key.replace("__", "."): value for key, value in changes.items()})


def test_what_was_configured_here_is_said_not_to_count(caplog: pytest.LogCaptureFixture) -> None:
    told = run_settings(config(diloco__outer_steps=20, diloco__overlap=True))
    with caplog.at_level(logging.INFO):
        taken = take_over(config(), told, given=["diloco.overlap"])
    assert (taken.diloco.outer_steps, taken.diloco.overlap) == (20, True)
    levels = {record.getMessage(): record.levelname for record in caplog.records}
    assert levels == {
        "diloco.outer_steps is 20, as the client of this run says; not 8, as configured here": "INFO",
        # typed by the person at the terminal, who is told there: a notice
        "diloco.overlap False does not count on a server: the client of this run says True": "WARNING",
    }


def test_nothing_is_said_where_all_have_the_same(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert take_over(config(), run_settings(config()), given=["diloco.outer_steps"]) == config()
        assert take_over_again(config(), run_settings(config())) == config()
    assert caplog.text == ""


def test_a_batch_size_that_was_a_flag_of_the_server_bounds_its_steps(
    caplog: pytest.LogCaptureFixture,
) -> None:
    own, told = config(diloco__batch_size_per_step=4), run_settings(config(diloco__batch_size_per_step=64))
    flags = ["diloco.batch_size_per_step"]
    with caplog.at_level(logging.INFO):
        take_over(own, told, flags)
    assert caplog.text == ""
    assert most_samples(own, flags) == 4
    assert most_samples(own, ()) is None  # of a file that all have: the client's word


@pytest.mark.parametrize(("most", "scaled"), [(None, False), (4, True)])
def test_what_a_trainer_must_know_of_a_server_is_in_its_record(most: int | None, scaled: bool) -> None:
    replica = SimpleNamespace(precision=ForwardPrecision(scaled=scaled))
    limits = _limits(most, replica)  # type: ignore[arg-type]
    assert limits == ({} if most is None else {"batch_size": 4.0, FP16: 1.0})
    record = ServerRecord("p", "front", 0, 1, "serving", 0.0, 0, 0, "", "", metrics=limits)
    assert wants_scaling([record]) == scaled  # by who computes, not by the device of the client's host


def replica_of(settings: Config) -> StageReplica:
    return StageReplica(
        build_module(settings, "front"),
        settings.diloco,
        settings.quant,
        stage="front",
        precision=ForwardPrecision(),
        task=None,
    )


def step(replica: StageReplica) -> None:
    replica.begin("seed")
    for parameter in replica.module.parameters():
        parameter.grad = torch.ones_like(parameter)
    replica.commit(1.0)


def test_a_replica_goes_on_with_another_rate_and_the_moments_that_it_has() -> None:
    replica = replica_of(config(quant__enabled=False))
    step(replica)
    before = {id(p): state["exp_avg"].clone() for p, state in replica.optimizer.state.items()}
    other = config(
        diloco__inner_optim__adam_lr=0.5, diloco__inner_optim__adam_beta1=0.5, diloco__outer_steps=99
    )
    replica.follow(other.diloco, "auto")
    assert replica.options.total_steps == other.diloco.total_steps
    assert {id(p): s["exp_avg"].clone() for p, s in replica.optimizer.state.items()}.keys() == before.keys()
    assert all(torch.equal(s["exp_avg"], before[id(p)]) for p, s in replica.optimizer.state.items())
    step(replica)
    assert {group["lr"] for group in replica.optimizer.param_groups if group["params"]} == {0.5}
    assert {group["betas"][0] for group in replica.optimizer.param_groups} == {0.5}


def test_another_type_of_optimizer_begins_without_moments() -> None:
    replica = replica_of(config(quant__enabled=False))
    step(replica)
    replica.follow(config(diloco__inner_optim__type="sgd").diloco, "auto")
    assert isinstance(replica.optimizer, torch.optim.SGD)
    assert not replica.optimizer.state
    step(replica)
