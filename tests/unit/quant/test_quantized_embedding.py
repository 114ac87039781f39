from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from distqat.quant import QuantOptions, activate, coverage, quantize_module
from distqat.quant.quantized_embedding import QuantEmbedding, RowQuantizer, TiedRows, table_codes


class Language(nn.Module):
    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.wte = nn.Embedding(12, 6)
        self.wpe = nn.Embedding(5, 6)
        self.lm_head = nn.Linear(6, 12, bias=False)
        if tied:
            self.lm_head.weight = self.wte.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x: Tensor = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        return torch.as_tensor(self.lm_head(x))


TOKENS = torch.arange(10).reshape(2, 5)


def quantized(*, tied: bool, skip: tuple[str, ...] = (), bits: int = 8) -> Language:
    model = Language(tied=tied)
    options = QuantOptions(skip=skip, first_last_bits=bits)
    quantize_module(model, options, stage="full", first=True, last=True)
    return model


def ready(model: Language) -> Language:
    model.train()(TOKENS)
    activate(model)
    return model


def test_rows_lie_on_a_grid_of_their_own_each() -> None:
    model = ready(quantized(tied=False))
    rows = model.wte(torch.arange(12))
    step = model.wte.weight.abs().amax(1, keepdim=True) / 127
    codes = rows / step
    assert (codes - codes.round()).abs().max() < 0.01
    assert torch.equal(codes.abs().amax(1).round(), torch.full((12,), 127.0))
    assert ((rows - model.wte.weight).abs() <= 0.5001 * step).all()


def test_the_codes_of_the_table_are_those_of_the_rows() -> None:
    table = ready(quantized(tied=False, bits=4)).wte
    assert isinstance(table, QuantEmbedding)
    codes, steps = table_codes(table)
    assert codes.abs().max() == 7
    assert torch.equal(codes * steps[:, None], table(torch.arange(12)))
    with torch.no_grad():  # on the grid already: the same bits again
        table.weight.copy_(codes * steps[:, None])
    assert torch.equal(table_codes(table)[0], codes)
    assert torch.equal(table_codes(table)[1], steps)


def test_a_row_of_zeros_stays_zero() -> None:
    model = ready(quantized(tied=False))
    with torch.no_grad():
        model.wte.weight[4].zero_()
    assert not model.wte(torch.tensor([4])).any()


def test_a_state_dict_has_no_more_entries_and_gradients_pass() -> None:
    model = ready(quantized(tied=False))
    assert not any("row_quant" in name for name in model.state_dict())
    model.wte(torch.tensor([1, 1, 3])).sum().backward()
    assert model.wte.weight.grad is not None
    assert model.wte.weight.grad.sum(1).tolist() == [0, 12, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0]


def test_the_rows_are_in_float_as_long_as_the_stage_calibrates() -> None:
    model = quantized(tied=False)
    assert torch.equal(model.wte(TOKENS), nn.functional.embedding(TOKENS, model.wte.weight))
    assert not torch.equal(ready(model).wte(TOKENS), nn.functional.embedding(TOKENS, model.wte.weight))


@pytest.mark.parametrize("copied", [False, True])
def test_a_tied_table_has_the_codes_of_the_head(copied: bool) -> None:
    model = ready(quantized(tied=True))
    model = copy.deepcopy(model) if copied else model
    head = model.lm_head.weight_quant
    assert isinstance(model.wte.row_quant, TiedRows)
    assert model.wte.row_quant.quantizer is head
    assert torch.equal(model.wte(torch.arange(12)), head(model.lm_head.weight))  # type: ignore[operator]
    assert isinstance(model.wpe.row_quant, RowQuantizer)


def test_what_is_skipped_stays_in_float() -> None:
    model = quantized(tied=False, skip=("wte", "*lm_head*"))
    assert type(model.wte) is nn.Embedding
    assert isinstance(model.wpe, QuantEmbedding)
    tied = quantized(tied=True, skip=("*lm_head*",))
    assert type(tied.wte) is nn.Embedding, "its matrix is needed in float"


def test_the_report_and_the_share_tell_of_tables() -> None:
    model = Language(tied=False)
    report = quantize_module(model, QuantOptions(skip=("wpe",)), stage="full", first=True, last=True)
    assert report.embeddings == {"wte": 8}
    assert "  embedding of 8 bits: wte" in report.lines()
    assert ("wpe", "skip 'wpe'") in report.left_out
    assert coverage(model).weights == {"W8Afloat": 72, "float": 30, "W8A8": 72}
