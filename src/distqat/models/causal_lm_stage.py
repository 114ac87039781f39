"""Some blocks of a causal language model of transformers, as one stage.

A stage runs the family's own forward pass, in which everything that belongs to other stages is blanked out:
their blocks hand on what they get, their embeddings, norms and head do nothing. What the pass computes
in front of the blocks (position ids, rotary embeddings, causal and sliding-window masks, ALiBi) is therefore
made anew in every stage by the installed version's own code. The activations of the stage before take the
place of the hidden states at the first block; those behind the last block are what the next stage gets.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from distqat.models.causal_lm_outline import ModelOutline
from distqat.models.router_loss import PROBABILITIES, SHARES, RouterBalance
from distqat.models.stand_ins import AbsentBlock, AbsentModule


class Blocks(nn.ModuleList):
    """Consecutive blocks that keep the names they have in the whole model: `4`, `5`, ..."""

    def __init__(self, blocks: list[nn.Module], first: int) -> None:
        super().__init__()
        for number, block in enumerate(blocks, start=first):
            self.add_module(str(number), block)

    def __getitem__(self, index: Any) -> Any:
        return list(self._modules.values())[index]


class BlockStage(nn.Module):
    """A causal language model cut down to one stage; parameters have the names of the whole model.

    [batch, sequence] token ids (first stage) or [batch, sequence, hidden] -> the same, or logits
    [batch, sequence, vocabulary] (last stage). While a mixture of experts trains with a balancing loss, what
    its routers did so far is with the hidden states (`balancing`); the last stage sets `auxiliary_loss`.
    """

    def __init__(self, model: nn.Module, blocks: Iterable[nn.Module], *, first: bool, last: bool) -> None:
        """`model` holds only what `cut` left; `blocks` are those of its block list."""
        super().__init__()
        for name, child in model.named_children():
            self.add_module(name, child)
        object.__setattr__(self, "_model", model)  # not a submodule: names stay those of the whole model
        self._first, self._last = first, last
        config: Any = model.config
        self._width = int(config.vocab_size if last else config.hidden_size)
        self.span = (0, int(config.num_hidden_layers))  # the blocks [start, stop) of the whole model
        self.copies: dict[
            str, str
        ] = {}  # of weights that another stage holds as well: common name to own name
        self.auxiliary_loss: Tensor | None = None
        self.balancing = RouterBalance.of(model)
        if self.balancing is not None and not RouterBalance.has_routers(model):
            config.output_router_logits = False  # transformers fails over the loss of none
        self._given: Tensor | None = None
        self._behind: Tensor | None = None
        chosen = list(blocks)
        if not first:
            chosen[0].register_forward_pre_hook(self._enter, with_kwargs=True)
        if not last:
            chosen[-1].register_forward_hook(self._leave)

    def forward(
        self, x: Tensor, expert_probs: Tensor | None = None, expert_shares: Tensor | None = None
    ) -> Tensor | dict[str, Tensor]:
        """One microbatch; every position sees only those before it and itself."""
        balancing = self.balancing if self.training else None
        if x.is_meta:  # a question about shapes; the masks of transformers look at values
            dtype = torch.get_default_dtype()
            behind = torch.empty((*x.shape[:2], self._width), dtype=dtype, device=x.device)
            return self._with_routing(behind, *balancing.begin(x)) if balancing else behind
        behind, router_logits = self._pass(x)
        if balancing is None:
            return behind
        begun = balancing.begin(x)
        probs = begun[0] if expert_probs is None else expert_probs
        shares = begun[1] if expert_shares is None else expert_shares
        return self._with_routing(behind, *balancing.add(probs, shares, router_logits))

    @property
    def model_config(self) -> Any:
        """The configuration of the whole model, as transformers has it."""
        model: Any = self._model
        return model.config

    def _pass(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """What comes behind the last block or out of the head, and the logits of the stage's routers."""
        model: Any = self._model
        self._given = x
        try:
            if self._first:
                output = model(input_ids=x, use_cache=False)
            else:
                # Not x: what becomes of it before the blocks is thrown away, and some families write to it.
                output = model(inputs_embeds=torch.zeros_like(x), use_cache=False)
            behind = output.logits if self._last else self._behind
            assert isinstance(behind, Tensor)
            return behind, tuple(getattr(output, "router_logits", None) or ())
        finally:
            self._given = self._behind = None

    def _with_routing(self, behind: Tensor, probs: Tensor, shares: Tensor) -> Tensor | dict[str, Tensor]:
        if not self._last:
            return {"x": behind, PROBABILITIES: probs, SHARES: shares}
        assert self.balancing is not None
        if not behind.is_meta:
            self.auxiliary_loss = self.balancing.loss(probs, shares)
        return behind

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
        self._behind = output[0] if isinstance(output, (tuple, list)) else output


def cut(model: nn.Module, parts: ModelOutline, start: int, stop: int) -> BlockStage:
    """Leave of a model without memory what blocks `start` to `stop` (exclusive) and their stage need.

    The first stage keeps what runs before the blocks, the last one what runs behind them. Before a pass,
    `stand_in` is to be called.
    """
    blocks = list(model.get_submodule(parts.path).children())
    first, last = start == 0, stop == len(blocks)
    for name in [*([] if first else parts.before), *([] if last else parts.behind)]:
        model.set_submodule(name, AbsentModule(model.get_submodule(name)))
    own = Blocks(blocks[start:stop], start)
    model.set_submodule(parts.path, own)
    stage = BlockStage(model, own, first=first, last=last)
    stage.span = (start, stop)
    return stage


def stand_in(model: nn.Module, parts: ModelOutline, whole: nn.Module) -> None:
    """Fill the list of blocks up to its length in the `whole` model, whose blocks tell what kinds they are.

    Not before weights are initialised: the rules of some families look into all blocks of the list.
    """
    own = dict(model.get_submodule(parts.path).named_children())
    filled = nn.ModuleList(
        own.get(number, AbsentBlock(block, parts.returns))
        for number, block in whole.get_submodule(parts.path).named_children()
    )
    model.set_submodule(parts.path, filled)
