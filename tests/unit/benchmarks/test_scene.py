"""Cases travel to processes as JSON, and the tensors at a cut have the size that is said."""

from __future__ import annotations

import pytest
from benchmarks.roles import role_of
from benchmarks.scene import CASES, QUICK_CASES, Case, batches, boundary_bytes, config_of


@pytest.mark.parametrize("case", [*CASES.values(), *QUICK_CASES.values()], ids=lambda case: case.name)
def test_a_case_survives_its_way_and_is_a_valid_run(case: Case) -> None:
    assert Case.loads(case.dumps()) == case
    assert config_of(case).stages == ["front", "back"]


def test_bytes_at_the_cut_of_the_perceptron() -> None:
    case = QUICK_CASES["mlp"]
    sizes = boundary_bytes(config_of(case))
    assert sizes["inputs"] == case.batch * 3 * case.img_size**2 * 4
    assert sizes["activations"] == sizes["gradients"] == case.batch * case.hidden * 4
    assert sizes["labels"] == case.batch * 8
    quantized = boundary_bytes(config_of(case.with_quantization(True)))
    assert quantized == {**sizes, "activations": case.batch * case.hidden}


def test_everybody_gets_the_same_batches() -> None:
    config = config_of(QUICK_CASES["mlp"])
    (cut,), (whole,) = batches(config, 1), batches(config, 1, cut=1)
    assert [part.size for part in cut] == [8, 8, 8, 8]
    assert cut[0].inputs["x"].equal(whole[0].inputs["x"][:8])


@pytest.mark.parametrize(
    ("command_line", "role"),
    [
        (["distqat server front.0.0.0 python src/distqat/distributed/server.py --device cpu"], "server"),
        (["distqat trainer 0 python src/distqat/distributed/trainer.py"], "trainer"),
        (["/usr/bin/python3", "run_local.py", "--seed", "1"], "run_local"),
        (["/bin/sh"], "other"),
    ],
)
def test_titles_say_the_role(command_line: list[str], role: str) -> None:
    assert role_of(command_line) == role
