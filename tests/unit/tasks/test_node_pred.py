"""Loss and accuracy over the nodes that have a label; what is not a graph is refused."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from distqat.errors import TaskError
from distqat.tasks import Batch, Sample, TaskSettings, get_task

TASK = get_task("node_pred", TaskSettings(num_classes=3))


def sample(labels: list[int], seed: int = 0) -> Sample:
    generator = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(len(labels), 3, generator=generator),
        "edges": torch.tensor([[0, 1, 2], [1, 2, 0]]),
        "weights": torch.tensor([1.0, 0.5, 0.0]),
        "y": torch.tensor(labels),
    }


SAMPLES = [sample([0, -100, 2, 1]), sample([-100, -100, 1, -100], 1), sample([2, 2, 2, 2], 2)]


def test_loss_is_the_mean_over_samples_of_their_labelled_nodes() -> None:
    batch = TASK.collate(SAMPLES)
    assert {name: tuple(tensor.shape) for name, tensor in batch.inputs.items()} == {
        "x": (3, 4, 3),
        "edges": (3, 2, 3),
        "weights": (3, 3),
    }
    logits = batch.inputs["x"]
    each = [F.cross_entropy(s["x"][s["y"] >= 0], s["y"][s["y"] >= 0]) for s in SAMPLES]
    torch.testing.assert_close(TASK.loss({"x": logits}, batch.labels), torch.stack(each).mean())


def test_microbatches_add_up() -> None:
    batch = TASK.collate(SAMPLES)
    whole = TASK.loss({"x": batch.inputs["x"]}, batch.labels)
    parts = batch.microbatches(2)
    shares = [TASK.loss({"x": part.inputs["x"]}, part.labels) * part.size / 3 for part in parts]
    torch.testing.assert_close(sum(shares), whole)
    totals: dict[str, float] = {}
    for part in parts:
        for name, value in TASK.score({"x": part.inputs["x"]}, part.labels).items():
            totals[name] = totals.get(name, 0.0) + value
    scores = TASK.score({"x": batch.inputs["x"]}, batch.labels)
    assert totals == pytest.approx(scores)
    assert (scores["nodes"], scores["count"]) == (8, 3)


def test_a_sample_without_labels_is_no_nan() -> None:
    batch = TASK.collate([sample([-100] * 4)])
    logits = batch.inputs["x"].requires_grad_()
    loss = TASK.loss({"x": logits}, batch.labels)
    loss.backward()
    assert loss == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_held_out_nodes_are_counted_not_graphs() -> None:
    assert TASK.judges
    answers = {"x": F.one_hot(torch.tensor([[0, 0, 2, 0], [0, 0, 1, 0], [2, 2, 0, 0]]), 3).float() * 50}
    metric, loss, count = TASK.judge(SAMPLES, lambda inputs: answers)
    assert (metric, count) == (5 / 8, 8)
    assert loss == pytest.approx(3 * 50 / 8, rel=1e-4)
    with pytest.raises(TaskError, match="no held-out node"):
        TASK.judge([], lambda inputs: answers)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"edges": None}, "no edges"),
        ({"edges": torch.tensor([[0, 9], [1, 2]])}, r"outside \[0, 4\)"),
        ({"y": torch.tensor([0, 1])}, r"x \[n, F\]"),
        ({"y": torch.tensor([0, 1, 3, 0])}, "label 3 is outside the classes"),
    ],
)
def test_what_is_no_graph_is_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        TASK.collate([{**SAMPLES[0], **changed}])


def test_graphs_of_two_sizes_are_refused() -> None:
    with pytest.raises(TaskError, match="differ in x"):
        TASK.collate([SAMPLES[0], sample([0, 1])])


def test_outputs_that_do_not_fit_are_refused() -> None:
    batch: Batch = TASK.collate(SAMPLES)
    with pytest.raises(TaskError, match="last layers of a gcn"):
        TASK.loss({"x": torch.zeros(3, 3)}, batch.labels)


def test_unknown_options_name_the_nearest() -> None:
    with pytest.raises(TaskError, match="did you mean 'neighbours'"):
        get_task("node_pred", TaskSettings(options={"neighbors": [3]}))
    with pytest.raises(TaskError, match=r"data.options.batches of task node_pred: Input should be 'sampled'"):
        get_task("node_pred", TaskSettings(options={"batches": "half"}))
