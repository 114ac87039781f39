"""The balancing loss of a mixture of experts over stages is that of transformers' unsplit model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.families import reference, take_over
from benchmarks.family_configs import BLOCKS, FAMILIES, VOCABULARY
from torch import Tensor, nn
from torch.nn import functional as F

from distqat.config import Config
from distqat.distributed.assembly.stage_factory import check_model
from distqat.errors import ModelError
from distqat.models import build_stage, named_tensors
from distqat.models.auxiliary_loss import take_auxiliary_loss
from distqat.models.router_loss import RouterBalance

WEIGHT = 0.25  # far more than usual, so that it is seen in every gradient
SPARSE = {  # blocks 0 and 2 have no router
    **FAMILIES["qwen2_moe"], "mlp_only_layers": [0, 2]
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "mixtral": FAMILIES["mixtral"],
    "qwen2_moe": SPARSE,
    "olmoe": FAMILIES["olmoe"],
    "gpt_oss": FAMILIES["gpt_oss"],
    "phimoe": {**FAMILIES["phimoe"], "input_jitter_noise": 0.0, "router_jitter_noise": 0.0},
    "granitemoe": FAMILIES["granitemoe"],
    "qwen3_moe": FAMILIES["qwen3_moe"],
}
EVERYDAY = ("mixtral", "qwen2_moe")


def config_of(family: str, **changes: Any) -> dict[str, Any]:
    asked = {"output_router_logits": True, "router_aux_loss_coef": WEIGHT, "tie_word_embeddings": False}
    return {"model_type": family, **CASES.get(family, FAMILIES.get(family, {})), **asked, **changes}


def stages_of(config: dict[str, Any], cuts: list[tuple[int, int]]) -> list[nn.Module]:
    names = ["full"] if len(cuts) == 1 else ["head", *["body"] * (len(cuts) - 2), "tail"]
    return [
        build_stage(f"hf.{name}", {"config": config, "layers": list(cut)})
        for name, cut in zip(names, cuts, strict=True)
    ]


def through(stages: list[nn.Module], x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Logits, and the loss that the last stage left; the others leave none."""
    named = {"x": x}
    for stage in stages[:-1]:
        named = named_tensors(stage(*named.values()))
        assert take_auxiliary_loss(stage) is None
    named = named_tensors(stages[-1](*named.values()))
    assert list(named) == ["x"]
    return named["x"], take_auxiliary_loss(stages[-1])


@pytest.mark.parametrize("cuts", [[(0, 5)], [(0, 1), (1, 3), (3, 5)], [(0, 3), (3, 5)]], ids=str)
@pytest.mark.parametrize(
    "family", [f if f in EVERYDAY else pytest.param(f, marks=pytest.mark.slow) for f in CASES]
)
@pytest.mark.filterwarnings("ignore")
def test_loss_and_gradients_equal_those_of_the_unsplit_model(
    family: str, cuts: list[tuple[int, int]]
) -> None:
    config = config_of(family)
    whole = reference(config).train()
    stages = stages_of(config, cuts)
    take_over(stages, whole)
    x_BT = torch.randint(3, VOCABULARY, (3, 12))
    expected = whole(input_ids=x_BT, labels=x_BT, use_cache=False)
    expected.loss.backward()
    logits, own = through(stages, x_BT)
    assert own is not None
    assert own.item() == pytest.approx(WEIGHT * expected.aux_loss.item(), rel=1e-6)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), x_BT[:, 1:].flatten()) + own
    assert loss.item() == pytest.approx(expected.loss.item(), rel=1e-6)
    loss.backward()
    found = {name: p.grad for stage in stages for name, p in stage.named_parameters()}
    for name, parameter in whole.named_parameters():
        if parameter.grad is None:
            assert found[name] is None, name
        else:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-7, msg=name)


def test_without_it_the_gradient_of_routers_is_another() -> None:
    """So that the test above cannot pass by accident."""
    x_BT = torch.randint(3, VOCABULARY, (3, 12))
    gradients = []
    for weight in (0.0, WEIGHT):
        torch.manual_seed(0)
        (stage,) = stages_of(config_of("mixtral", router_aux_loss_coef=weight), [(0, 5)])
        logits, own = through([stage], x_BT)
        assert (own is None) == (weight == 0.0)
        (logits.square().mean() + (0.0 if own is None else own)).backward()
        gradients.append(stage.get_parameter("model.layers.3.mlp.gate.weight").grad)
    assert not torch.allclose(*gradients, rtol=0.1)  # type: ignore[arg-type]


def test_only_training_carries_what_routers_did() -> None:
    head, tail = stages_of(config_of("mixtral"), [(0, 2), (2, 5)])
    x_BT = torch.randint(3, VOCABULARY, (3, 12))
    named = named_tensors(head(x_BT))
    assert {name: list(tensor.shape) for name, tensor in named.items()} == {
        "x": [3, 12, 32], "expert_probs": [3, 4], "expert_shares": [3, 4],
    }  # fmt: skip
    assert named["expert_probs"].requires_grad
    assert not named["expert_shares"].requires_grad
    assert named["expert_shares"].sum(dim=1).tolist() == pytest.approx([4.0] * 3)  # 2 routers, 2 experts each
    assert isinstance(head.eval()(x_BT), Tensor)
    tail.eval()(named["x"])
    assert take_auxiliary_loss(tail) is None
    with torch.device("meta"):
        (unbuilt, _) = stages_of(config_of("mixtral"), [(0, 2), (2, 5)])
        told = named_tensors(unbuilt(x_BT.to("meta")))
    assert {n: (t.shape, t.dtype) for n, t in told.items()} == {
        n: (t.shape, t.dtype) for n, t in named.items()
    }


def test_half_precision_keeps_it_in_float32() -> None:
    (stage,) = stages_of(config_of("mixtral"), [(0, 5)])
    x_BT = torch.randint(3, VOCABULARY, (3, 12))
    _, exact = through([stage], x_BT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, rounded = through([stage], x_BT)
    assert exact is not None
    assert rounded is not None
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(exact.item(), rel=0.05)


def test_what_the_configuration_does_not_ask_for_is_not_there() -> None:
    for config in (
        config_of("mixtral", output_router_logits=False),
        {"model_type": "gpt2", **FAMILIES["gpt2"]},
    ):
        assert RouterBalance.of(reference(config)) is None
    assert RouterBalance.of(reference(config_of("mixtral"))) == RouterBalance(
        experts=4, visited=2, weight=WEIGHT
    )


def test_an_entry_may_ask_for_it_or_leave_it_out(tmp_path: Path) -> None:
    """Releases mostly ask for none, and a hub's configuration cannot be edited."""
    reference(config_of("mixtral", output_router_logits=False)).save_pretrained(tmp_path)
    keys = {"pretrained": str(tmp_path), "layers": [2, 5]}
    assert build_stage("hf.tail", keys).balancing is None
    assert build_stage("hf.tail", {**keys, "balancing": 0.5}).balancing == RouterBalance(4, 2, 0.5)
    asking = {"config": config_of("mixtral"), "layers": [2, 5]}
    assert build_stage("hf.tail", {**asking, "balancing": 0.0}).balancing is None
    with pytest.raises(
        ModelError, match="GPT2LMHeadModel has no experts with a balancing loss; leave it out"
    ):
        build_stage("hf.full", {"config": {"model_type": "gpt2", **FAMILIES["gpt2"]}, "balancing": 0.1})


def test_all_entries_must_ask_alike() -> None:
    entries = [
        {"model_name": f"hf.{name}", "config": config_of("mixtral"), "stages": 2, **more}
        for name, more in (("head", {"balancing": 0.1}), ("tail", {}))
    ]
    config = Config.model_validate({"model_pipeline": {"pipeline": entries}})
    with pytest.raises(ModelError, match=r"'tail' is told balancing: None, stage 'head' balancing: 0.1"):
        check_model(config)


def test_a_loss_of_another_kind_is_refused() -> None:
    sizes = {k: v for k, v in FAMILIES["mixtral"].items() if k != "sliding_window"}
    config = config_of("doge", **sizes, is_moe=True)
    with pytest.raises(ModelError, match="balancing loss of DogeForCausalLM is not known here; leave it out"):
        build_stage("hf.head", {"config": config, "layers": [0, BLOCKS - 1]})


def test_what_a_stage_leaves_is_taken_once_and_must_be_a_scalar() -> None:
    stage = nn.Linear(1, 1)
    assert take_auxiliary_loss(stage) is None
    stage.auxiliary_loss = torch.tensor(1.5)  # type: ignore[assignment]
    assert take_auxiliary_loss(stage) == torch.tensor(1.5)
    assert take_auxiliary_loss(stage) is None
    for wrong, shown in (
        (torch.zeros(3), r"torch.float32 \[3\]"),
        (0.5, "float"),
        (torch.tensor(1), "int64"),
    ):
        stage.auxiliary_loss = wrong  # type: ignore[assignment]
        with pytest.raises(ModelError, match=rf"Linear.auxiliary_loss is .*{shown}"):
            take_auxiliary_loss(stage)
