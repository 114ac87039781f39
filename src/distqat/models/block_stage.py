"""Some blocks of a causal language model of transformers, as one stage.

A stage runs the family's own forward pass, in which everything that belongs to other stages is blanked out:
their blocks are gone from the block list, their embeddings, norms and head do nothing. What the pass computes
in front of the blocks (position ids, rotary embeddings, causal and sliding-window masks, ALiBi) is therefore
made anew in every stage by the installed version's own code. The activations of the stage before take the
place of the hidden states at the first block; those behind the last block are what the next stage gets.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from distqat.errors import ModelError


class Blocks(nn.ModuleList):
    """Consecutive blocks that keep the names they have in the whole model: `4`, `5`, ..."""

    def __init__(self, blocks: list[nn.Module], first: int) -> None:
        super().__init__()
        for number, block in enumerate(blocks, start=first):
            self.add_module(str(number), block)

    def __getitem__(self, index: Any) -> Any:
        return list(self._modules.values())[index]


class Absent(nn.Module):
    """In place of a module of another stage: gives back what it gets, or zero in place of an embedding."""

    def __init__(self, replaced: nn.Module) -> None:
        super().__init__()
        self._adds_nothing = isinstance(replaced, nn.Embedding)

    def forward(self, first: Tensor, *_: Any, **__: Any) -> Tensor:
        """What is made of it is thrown away before it reaches a block, or behind the last one."""
        return torch.zeros((), device=first.device) if self._adds_nothing else first


class BlockStage(nn.Module):
    """A causal language model cut down to one stage; parameters have the names of the whole model.

    [batch, sequence] token ids (first stage) or [batch, sequence, hidden] -> the same, or logits
    [batch, sequence, vocabulary] (last stage).
    """

    def __init__(self, model: nn.Module, blocks: nn.ModuleList, *, first: bool, last: bool) -> None:
        """`model` holds only what `cut` left; `blocks` is its block list."""
        super().__init__()
        for name, child in model.named_children():
            self.add_module(name, child)
        object.__setattr__(self, "_model", model)  # not a submodule: names stay those of the whole model
        self._first, self._last = first, last
        config: Any = model.config
        self._width = int(config.vocab_size if last else config.hidden_size)
        self._given: Tensor | None = None
        self._behind: Tensor | None = None
        chosen = list(blocks)
        if not first:
            chosen[0].register_forward_pre_hook(self._enter, with_kwargs=True)
        if not last:
            chosen[-1].register_forward_hook(self._leave)

    def forward(self, x: Tensor) -> Tensor:
        """One microbatch; every position sees only those before it and itself."""
        if x.is_meta:  # a question about shapes; the masks of transformers look at values
            dtype = torch.get_default_dtype()
            return torch.empty((*x.shape[:2], self._width), dtype=dtype, device=x.device)
        model: Any = self._model
        self._given = x
        try:
            if self._first:
                output = model(input_ids=x, use_cache=False)
            else:
                output = model(inputs_embeds=x, use_cache=False)
            behind = output.logits if self._last else self._behind
            assert isinstance(behind, Tensor)
            return behind
        finally:
            self._given = self._behind = None

    def train(self, mode: bool = True) -> BlockStage:
        """The model itself is asked for its mode here and there."""
        super().train(mode)
        model: Any = self._model
        model.training = mode
        return self

    def _enter(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (self._given, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self._given}

    def _leave(self, _: nn.Module, __: Any, output: Any) -> None:
        self._behind = output[0] if isinstance(output, tuple) else output


def cut(model: nn.Module, start: int, stop: int) -> BlockStage:
    """Leave of a model on the meta device what blocks `start` to `stop` (exclusive) and their stage need.

    The configuration stays that of the whole model, which initialisation looks at; `slice_config` comes after
    it. The first stage keeps what runs before the blocks, the last one what runs behind them.
    Raises ModelError for a family whose parts cannot be told apart.
    """
    config: Any = model.config
    count = int(config.num_hidden_layers)
    path = block_path(model, count)
    blocks: Any = model.get_submodule(path)
    before, behind = _order(model, path)
    first, last = start == 0, stop == count
    for name in [*([] if first else before), *([] if last else behind)]:
        model.set_submodule(name, Absent(model.get_submodule(name)))
    own = Blocks(list(blocks)[start:stop], start)
    model.set_submodule(path, own)
    return BlockStage(model, own, first=first, last=last)


def block_path(model: nn.Module, count: int) -> str:
    """Where the list of `count` blocks is. Raises ModelError when there is none, or more than one."""
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count and _outermost(model, name)
    ]
    if len(found) != 1:
        raise ModelError(
            f"{type(model).__name__} has {len(found)} lists of {count} blocks "
            f"({', '.join(found) or 'none'}); it cannot be cut into stages, train it as hf.full"
        )
    return str(found[0])


def slice_config(config: Any, start: int, stop: int) -> None:
    """Per-layer lists of the configuration (`layer_types` above all) and the number of layers, in place."""
    count = int(config.num_hidden_layers)
    for name, value in list(vars(config).items()):
        if "layer" in name and isinstance(value, list) and len(value) == count:
            setattr(config, name, value[start:stop])
    config.num_hidden_layers = stop - start


def _outermost(model: nn.Module, name: str) -> bool:
    parents = name.split(".")[:-1]
    return not any(
        isinstance(model.get_submodule(".".join(parents[:depth])), nn.ModuleList)
        for depth in range(1, len(parents) + 1)
    )


class _SayYes(TorchFunctionMode):
    """On the meta device no value is known: `if mask.all()` goes on as if it held."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__bool__ and args[0].is_meta:
            return True
        return func(*args, **(kwargs or {}))


def _order(model: nn.Module, path: str) -> tuple[list[str], list[str]]:
    """Names of the modules with parameters (and dropouts) that run before, and behind, the blocks."""
    ran: dict[str, set[str]] = {}
    now = ["before"]
    handles = []

    def passed(phase: str) -> Any:
        return lambda *_: now.__setitem__(0, phase)

    blocks: Any = model.get_submodule(path)
    handles.append(blocks[0].register_forward_pre_hook(passed("among")))
    handles.append(blocks[-1].register_forward_hook(passed("behind")))
    for name, module in _outside(model, path):
        handles.append(module.register_forward_hook(lambda *_, n=name: ran.setdefault(n, set()).add(now[0])))
    was_training = model.training
    try:
        with torch.device("meta"), torch.no_grad(), _SayYes():
            model.eval()(input_ids=torch.zeros(1, 2, dtype=torch.int64), use_cache=False)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    odd = [n for n, m in _outside(model, path) if _trains(m) and len(ran.get(n, set()) - {"among"}) != 1]
    if odd or any(p is not None for p in model.parameters(recurse=False)):
        raise ModelError(
            f"{type(model).__name__} cannot be cut into stages: {', '.join(odd) or 'a parameter of its own'} "
            "belongs neither before nor behind the blocks; train it as hf.full"
        )
    return [n for n in ran if ran[n] == {"before"}], [n for n in ran if ran[n] == {"behind"}]


def _outside(model: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """Modules that hold parameters themselves, and dropouts, except those within blocks."""
    for name, module in model.named_modules():
        inside = name == path or name.startswith(f"{path}.")
        if not inside and (_trains(module) or isinstance(module, nn.Dropout)):
            yield name, module


def _trains(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False))
