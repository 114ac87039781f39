"""Models, cut into stages: `MODEL_TYPES["resnet18.front"]` builds one stage and nothing of the others.

To add a model, put a class into the registry, either way or both:

    def head_sample_input(batch_size, hid_dim):
        return torch.empty((batch_size, hid_dim))

    @register_expert_class("mymodel.head", head_sample_input)
    class MyHead(nn.Module): ...

    MODEL_TYPES["mymodel.head"] = MyHead

A stage whose `state_dict` names are a subset of those of the whole model can be assembled by
`full_state_dict`. A number behind a name tells stages of one kind apart: `resnet18.body2` is built as
`resnet18.body`, with `stage_index=2` (or `position=2`) where its constructor takes one. A pipeline says
itself which of how many stages of its model each entry is (`stage_index`, `stage_count`). Importing this
package does not import transformers.
"""

from __future__ import annotations

from functools import partial

from distqat.models import causal_lm, chain, gpt, mlp, resnet
from distqat.models.registry import (
    MODEL_TYPES,
    build_stage,
    full_state_dict,
    named_tensors,
    register_expert_class,
    register_stage,
    sample_input,
)

for _stage in chain.STAGES:
    register_stage(f"mlp.{_stage}", partial(mlp.build, _stage), partial(mlp.sample_input, _stage))
    for _model in resnet.DEPTHS:
        register_stage(
            f"{_model}.{_stage}",
            partial(resnet.build, _model, _stage),
            partial(resnet.sample_input, _model, _stage),
        )

for _part in causal_lm.STAGES:
    register_stage(f"hf.{_part}", partial(causal_lm.build, _part), partial(causal_lm.sample_input, _part))
    register_stage(
        f"distilgpt2.{_part}", partial(gpt.build_distilgpt2, _part), partial(gpt.sample_distilgpt2, _part)
    )
    register_stage(f"gptneo.{_part}", partial(gpt.build_gptneo, _part), partial(gpt.sample_gptneo, _part))

__all__ = [
    "MODEL_TYPES",
    "build_stage",
    "full_state_dict",
    "named_tensors",
    "register_expert_class",
    "sample_input",
]
