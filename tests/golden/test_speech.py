"""wav2vec 2.0 in three stages over the swarm's steps is the unsplit loop; lengths travel along."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from tests.swarm_scene import MemorySwarm

from distqat.config import Config
from distqat.distributed.assembly.model_check import check_batch, tell
from distqat.distributed.assembly.stage_factory import build_task, check_model
from distqat.distributed.training.baseline_trainer import BaselineTrainer
from distqat.distributed.training.event_loop_thread import EventLoopThread
from distqat.errors import ConfigError, ModelError
from distqat.models import build_stage
from distqat.tasks.base import Batch

pytestmark = pytest.mark.usefixtures("one_thread")
SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "do_stable_layer_norm": True,
    **dict.fromkeys(("hidden_dropout", "activation_dropout", "attention_dropout", "final_dropout"), 0.0),
}
CUTS = {"head": [0, 1], "body": [1, 2], "tail": [2, 3]}
FRONT = {"kind": "mel", "bins": 20, "sampling_rate": 8000}
STEPS = 4


def config(*, quantize: bool) -> Config:
    pipeline = [
        {"model_name": f"wav2vec2.{name}", "config": SIZES, "front_end": FRONT, "layers": cut}
        for name, cut in CUTS.items()
    ]
    options = {"sampling_rate": 8000, "max_seconds": 1.0, "prompts": "synthesised"}
    return Config.model_validate(
        {
            "experiment_prefix": "speech",
            "seed": 7,
            "data": {"dataset_name": "speech_prompts", "task_type": "speech", "options": options},
            "diloco": {"inner_optim": {"type": "adamw", "adam_lr": 1e-3}, "max_grad_norm": 1.0},
            "model_pipeline": {"pipeline": pipeline, "microbatches": 3},
            "quant": {"enabled": quantize, "warmup": {"calibrate_batches": 1, "float_share": 0}},
        }
    )


def batches(config: Config) -> list[list[Batch]]:
    """Recordings of 0.2 to 1 s, so that every microbatch has frames of its own number."""
    task, random = build_task(config), np.random.RandomState(3)

    def sample() -> dict[str, Any]:
        sound = random.normal(0, 1, random.randint(1600, 8000)).astype(np.float32)
        return {"audio": {"array": sound, "sampling_rate": 8000}, "text": "ab cd"[: random.randint(1, 6)]}

    return [task.collate([sample() for _ in range(7)]).microbatches(3) for _ in range(STEPS)]


@pytest.mark.parametrize("quantize", [False, True], ids=["float", "quantized"])
async def test_steps_equal_a_plain_loop(quantize: bool) -> None:
    run = config(quantize=quantize)
    check_model(run)
    plain = BaselineTrainer(run, torch.device("cpu"))
    async with MemorySwarm(run) as swarm:
        every = batches(run)
        for batch in every if quantize else []:
            if plain.model.calibrating:
                plain.calibrate(copy.deepcopy(batch))
                await swarm.calibrate(batch)
        assert not plain.model.calibrating
        assert not swarm.calibrating()
        for number, batch in enumerate(every):
            expected = plain.step(copy.deepcopy(batch))
            if number == 2:
                await swarm.abort_a_step(batch)
            result = await swarm.step(batch)
            assert result.loss == pytest.approx(expected, rel=1e-5)
            assert result.scores["count"] == 7
            assert result.scores["unaligned"] == 0
        state = {n.removeprefix("stages."): t for n, t in plain.model.state_dict().items()}
        reached = swarm.floats()
    worst = max(float((state[name].float() - tensor).abs().max()) for name, tensor in reached.items())
    print(f"largest parameter difference after {STEPS} steps: {worst:.2e}")
    assert worst <= 1e-5


def test_a_custom_loop_sends_lengths_along() -> None:
    """Over `SwarmModel`: two inputs, one of them integers, and the steps of one process."""
    run, loop = config(quantize=False), EventLoopThread()
    plain = BaselineTrainer(run, torch.device("cpu"))
    swarm = loop.run(MemorySwarm(run).__aenter__(), 30)
    model = swarm.custom_model(loop)
    part = batches(run)[0][0]
    inputs = list(part.inputs.values())
    for one in (model, plain.model):
        outputs = one(*inputs)
        logits = outputs if isinstance(outputs, torch.Tensor) else outputs["x"]
        logits.square().mean().backward()
    model.step()
    plain._optimizer.step()
    expected = plain.model.eval()(*inputs)
    assert not isinstance(expected, torch.Tensor)
    judged = model.eval()(*inputs)
    assert not isinstance(judged, torch.Tensor)
    assert all(torch.equal(judged[name], tensor) for name, tensor in expected.items())
    loop.run(swarm.__aexit__(), 30)
    loop.close()


@pytest.mark.slow
def test_four_sentences_are_learned_by_heart() -> None:
    """Synthesised speech, front end, blocks, loss and decoding together."""
    from distqat.data.sources.synthetic_speech import utterances
    from distqat.tasks.speech import SpeechOptions, SpeechRecognition

    options = SpeechOptions(sampling_rate=8000, max_seconds=1.5, prompts="synthesised")
    task = SpeechRecognition(options)
    batch = task.collate(utterances(options)[:4])
    torch.manual_seed(0)
    model = build_stage("wav2vec2.full", {"config": {**SIZES, "hidden_size": 48}, "front_end": FRONT})
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(200):
        optimizer.zero_grad()
        task.loss(model(*batch.inputs.values()), batch.labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    heard = model.eval()(*batch.inputs.values())
    assert task.summarize(task.score(heard, batch.labels)) <= 0.05
    assert task.alphabet.decode(batch.labels["y"][0].tolist()) in task.texts(heard)


def test_blocks_left_out_and_data_that_do_not_fit_are_told_at_the_start() -> None:
    run = config(quantize=False)
    task = build_task(run)
    check_batch(run, tell(task, batches(run)[0][0]))
    entries = [{**entry.kwargs, "model_name": entry.model_name} for entry in run.model_pipeline.pipeline]
    entries[2]["layers"] = [1, 3]
    changed = {**run.model_dump(), "model_pipeline": {"pipeline": entries}}
    with pytest.raises(ModelError, match="begins with block 1: those between are in both"):
        check_model(Config.model_validate(changed))
    images = {"inputs": {"x": ("float32", [4, 1, 8, 8])}, "labels": {"y": ("int64", [4])}}
    with pytest.raises(ConfigError, match=r"the first stage, 'wav2vec2.head', cannot take a batch"):
        check_batch(run, images)
