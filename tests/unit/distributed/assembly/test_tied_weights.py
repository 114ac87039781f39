"""`tie` in the entries of a pipeline: which weights are copies, and one parameter for both in one process."""

from __future__ import annotations

from typing import Any

import pytest

from distqat.config import Config
from distqat.config.schema import PipelineOptions
from distqat.distributed.assembly.stage_factory import build_module, check_model
from distqat.distributed.assembly.tied_weights import tied_stages
from distqat.distributed.training.baseline_model import SwarmBaselineModel
from distqat.errors import ModelError
from distqat.models import build_stage, copies_of

TINY = {"n_layer": 3, "n_embd": 16, "n_head": 2, "n_positions": 16, "vocab_size": 257}
NAMES = ("head", "body", "tail")


def config(*ties: Any) -> Config:
    pipeline = [
        {"model_name": f"distilgpt2.{name}", "tie": tie, **TINY}
        for name, tie in zip(NAMES, ties, strict=True)
    ]
    return Config.model_validate(
        {
            "data": {"dataset_name": "python_docs", "task_type": "llm", "sequence_length": 8},
            "model_pipeline": {"pipeline": pipeline},
            "quant": {"enabled": False},
        }
    )


def test_both_ends_of_the_pipeline_hold_a_copy() -> None:
    run = config(*["average"] * 3)
    check_model(run)
    assert tied_stages(run) == ("head", "tail")
    found = [copies_of(build_module(run, name)) for name in NAMES]
    assert found == [{"lm_head.weight": "transformer.wte.weight"}, {}, {"lm_head.weight": "lm_head.weight"}]


def test_in_one_process_they_are_one_parameter() -> None:
    stages = SwarmBaselineModel(config(*["average"] * 3)).stages
    tied = stages["head"].get_parameter("transformer.wte.weight")
    assert tied is stages["tail"].get_parameter("lm_head.weight")
    untied = SwarmBaselineModel(config(True, True, True)).stages
    first = untied["head"].get_parameter("transformer.wte.weight")
    assert first is not untied["tail"].get_parameter("lm_head.weight")
    assert tied_stages(config(True, True, True)) is None


def test_what_cannot_be_tied() -> None:
    with pytest.raises(ModelError, match="stage 'body' tie: True; write tie: average into every entry"):
        check_model(config("average", True, "average"))
    with pytest.raises(ModelError, match="must be true, false or 'average'"):
        build_stage("distilgpt2.head", {**TINY, "tie": "always"})
    llama = {"model_type": "llama", "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
    with pytest.raises(ModelError, match="needs a model whose head is tied"):
        build_stage("hf.head", {"config": llama, "layers": [0, 1], "tie": "average"})


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([[0, 1], [1, 2], [2, 3]], ""),
        ([[0, 2], [1, 2], [2, 3]], "'head' ends in front of block 2, stage 'body' begins with block 1"),
        ([[0, 1], [1, 2], [1, 3]], "in both"),
        ([[0, 1], [2, 3], [3, 4]], "are in neither"),
    ],
)
def test_blocks_are_in_one_stage_each(layers: list[list[int]], said: str) -> None:
    pipeline = [
        {"model_name": f"distilgpt2.{name}", "layers": cut, **TINY, "n_layer": layers[-1][1]}
        for name, cut in zip(NAMES, layers, strict=True)
    ]
    run = config(True, True, True).model_copy(
        update={"model_pipeline": PipelineOptions.model_validate({"pipeline": pipeline})}
    )
    if not said:
        check_model(run)
        return
    with pytest.raises(ModelError, match=said):
        check_model(run)
