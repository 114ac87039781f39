"""Models, cut into stages: `MODEL_TYPES["resnet18.front"]` builds one stage and nothing of the others.

To add a model, write a file of its own into this folder, `mymodel.py`, which puts a class into the registry,
either way or both:

    import torch
    from torch import nn

    from distqat.models.registry import MODEL_TYPES, register_expert_class

    def head_sample_input(batch_size, hid_dim):
        return torch.empty((batch_size, hid_dim))

    @register_expert_class("mymodel.head", head_sample_input)
    class MyHead(nn.Module):
        def __init__(self, hid_dim):
            super().__init__()
            self.fc = nn.Linear(hid_dim, hid_dim)

        def forward(self, x):
            return self.fc(x)

    MODEL_TYPES["mymodel.head"] = MyHead

and one line at the end of this file, so that every role knows it: `from distqat.models import mymodel`. Or
leave the package alone, and name the file by `--plugin path/to/mymodel.py`: docs/extending.md.

A stage whose `state_dict` names are a subset of those of the whole model can be assembled by
`full_state_dict`. A number behind a name tells stages of one kind apart: `resnet18.body2` is built as
`resnet18.body`, with `stage_index=2` (or `position=2`) where its constructor takes one. A pipeline says
itself which of how many stages of its model each entry is (`stage_index`, `stage_count`). Importing this
package does not import transformers.
"""

from __future__ import annotations

from functools import partial

from distqat.models import block_chain, causal_lm, dcgan, gcn, gpt, mlp, ppo, resnet, wav2vec2
from distqat.models.registry import (
    MODEL_TYPES,
    build_stage,
    copies_of,
    full_state_dict,
    named_tensors,
    register_expert_class,
    register_stage,
    sample_input,
    stages_of,
)
from distqat.models.stage_chain import outputs_of_each, run_stage, run_stages

for _stage in block_chain.STAGES:
    register_stage(f"mlp.{_stage}", partial(mlp.build, _stage), partial(mlp.sample_input, _stage))
    register_stage(f"gcn.{_stage}", partial(gcn.build, _stage), partial(gcn.sample_input, _stage))
    register_stage(f"ppo.{_stage}", partial(ppo.build, _stage), partial(ppo.sample_input, _stage))
    for _model in resnet.DEPTHS:
        register_stage(
            f"{_model}.{_stage}",
            partial(resnet.build, _model, _stage),
            partial(resnet.sample_input, _model, _stage),
        )

for _network in dcgan.STAGES:
    register_stage(f"dcgan.{_network}", partial(dcgan.build, _network), partial(dcgan.sample_input, _network))

for _model, _kind in (("hf", causal_lm.Hf), ("distilgpt2", gpt.DistilGpt2), ("gptneo", gpt.GptNeo)):
    for _part in causal_lm.STAGES:
        _build, _sample = causal_lm.StageBuilder(_part, _kind), causal_lm.StageSample(_part, _kind)
        register_stage(f"{_model}.{_part}", _build, _sample)

for _part in causal_lm.STAGES:
    register_stage(f"wav2vec2.{_part}", partial(wav2vec2.build, _part), partial(wav2vec2.sample_input, _part))

__all__ = [
    "MODEL_TYPES",
    "build_stage",
    "copies_of",
    "full_state_dict",
    "named_tensors",
    "outputs_of_each",
    "register_expert_class",
    "run_stage",
    "run_stages",
    "sample_input",
    "stages_of",
]
