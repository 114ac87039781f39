"""The stress set: the same in every run, unlike the held-out samples, and counted in answers."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from tests.unit.export.quantized import first_batch, quantized, tiny_config
from torch import Tensor

from distqat.export.checker import Expectations, _stress
from distqat.export.engines import EngineResult
from distqat.export.stress import Agreed, agreed, perturbed
from distqat.tasks import Batch, TaskSettings, get_task
from distqat.tasks.llm import LanguageModelling
from distqat.tasks.node_pred import NodeClassification
from distqat.tasks.speech import SpeechOptions, SpeechRecognition

TOKENS = Batch({"x": torch.arange(24).view(2, 12)}, {"y": torch.zeros(2, 12, dtype=torch.int64)}, 2)


def test_pictures_are_moved_and_every_eighth_is_noise() -> None:
    _, task, samples = quantized(tiny_config("mlp"))
    batch = first_batch(task, samples)
    one, other, next_round = (x for x, _ in zip(perturbed(task, lambda: [batch]), range(3), strict=False))
    again = next(perturbed(task, lambda: [batch]))
    assert torch.equal(one.inputs["x"], again.inputs["x"])
    assert torch.equal(one.labels["y"], batch.labels["y"])
    assert not torch.equal(other.inputs["x"], next_round.inputs["x"])
    noise, moved = one.inputs["x"][0], one.inputs["x"][1]
    assert noise.mean().abs() < 0.4
    black = batch.inputs["x"].min()
    assert abs(float(moved.quantile(0.2)) - float(black)) < 0.5  # what comes in is black


def test_tokens_are_random_and_out_of_order() -> None:
    task = LanguageModelling(vocab_size=50, sequence_length=12)
    mixed = task.perturbed(TOKENS, torch.Generator().manual_seed(1)).inputs["x"]
    assert mixed[1].sort().values.tolist() == TOKENS.inputs["x"][1].tolist()
    assert mixed[1].tolist() != TOKENS.inputs["x"][1].tolist()
    assert set(mixed[0].tolist()) != set(TOKENS.inputs["x"][0].tolist())
    assert 0 <= int(mixed.min()) <= int(mixed.max()) < 50


@pytest.mark.parametrize("task", [SpeechRecognition(SpeechOptions()), NodeClassification()])
def test_what_is_no_signal_stays(task: SpeechRecognition | NodeClassification) -> None:
    inputs = {"x": torch.randn(2, 400), "lengths": torch.tensor([400, 300]), "edges": torch.ones(2, 2, 3)}
    found = task.perturbed(Batch(inputs, {}, 2), torch.Generator().manual_seed(1)).inputs
    assert torch.equal(found["lengths"], inputs["lengths"])
    assert torch.equal(found["edges"], inputs["edges"])
    assert not torch.allclose(found["x"], inputs["x"], atol=0.1)


def one_hot(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"x": torch.nn.functional.one_hot(inputs["x"], 50).float()}


def test_answers_are_counted_until_there_are_enough() -> None:
    task = LanguageModelling(vocab_size=50, sequence_length=12)

    def wrong_at_zero(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return one_hot({"x": inputs["x"].clamp_min(1)})

    engines = {"right": one_hot, "wrong": wrong_at_zero}
    found = agreed(one_hot, engines, perturbed(task, lambda: [TOKENS]), 100)
    assert (found["right"].places, found["right"].samples, found["right"].agreement) == (120, 10, 1)
    assert found["wrong"].agreement < 1
    assert agreed(one_hot, {"wrong": wrong_at_zero}, [TOKENS])["wrong"].agreement == 23 / 24
    nothing = Batch(TOKENS.inputs, {"y": torch.full((2, 12), -100)}, 2)
    assert agreed(one_hot, {"right": one_hot}, perturbed(task, lambda: [nothing]), 100)["right"].places == 0


def test_few_samples_fill_a_batch_unless_they_are_large() -> None:
    settings = TaskSettings(num_classes=10, img_size=8, num_channels=1)
    task = get_task("cv", settings)
    image = {"image": torch.zeros(1, 8, 8), "label": 1}
    made = _stress(task, [image, image, image], Expectations())
    assert made is not None
    assert next(made()).size == 64
    large = get_task("cv", TaskSettings(num_classes=10, img_size=512, num_channels=3))
    made = _stress(large, [{"image": torch.zeros(3, 512, 512), "label": 1}], Expectations())
    assert made is not None
    assert next(made()).size == 1
    assert _stress(task, [image], Expectations(stress=0)) is None


def test_an_engine_is_held_to_the_same() -> None:
    good, bad = Agreed(10, 10, 1.0, 0.0), Agreed(10, 1000, 0.99, 0.5)
    assert EngineResult("OpenVINO", "1", 3, 3, good, good).failures(0.999, 1.0) == []
    said = EngineResult("OpenVINO", "1", 2, 3, good, bad).failures(0.999, 1.0)
    assert said == [
        "99.000% of the answers on the stress set agree in OpenVINO, 99.90% were wanted",
        "OpenVINO runs 2 of 3 quantized products in 8 bits",
    ]
    assert EngineResult("OpenVINO", "1", 0, 3, None, None, "cannot").failures(0.999, 1.0) == ["cannot"]
