"""wav2vec 2.0 with a CTC head (arXiv:2006.11477), cut at any block: full, head, body, tail.

    waveform -> front end -> projection -> + position -> block 0 ... block N-1 -> head -> logits per frame
                |--------------------- head ----------------------|- body -|-------- tail --------|

Shape and weights: `config`, keys of transformers' Wav2Vec2Config, or `pretrained`, a folder or a name on the
hub (a model without a CTC head gets a fresh one). Which blocks: `layers: [from, to]`, else cuts where the
stages of the pipeline compute about as much. `front_end: mel` puts log-mel energies, and `conv_*` of
the config over those, in place of the convolutions over samples; with `{kind: mel, bins: 40,
sampling_rate: 8000}` for other than 80 bins at 16 kHz.

Layer drop is off: which blocks run would differ between replicas, and a gradient would be missing. Time and
feature masking (SpecAugment) are off unless the config asks for them, and happen in training only.

Built on the meta device, cut, and only what is left gets memory, so no process holds the whole.
"""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from distqat.errors import ModelError
from distqat.models.audio_frames import MelFrontEnd, Windows, frame_counts, mel_window
from distqat.models.block_costs import BlockCosts
from distqat.models.causal_lm import ModelPart, StageName, block_range
from distqat.models.causal_lm_stage import Blocks
from distqat.models.meta_init import materialize
from distqat.models.pretrained import load_weights, pretrained_config
from distqat.models.wav2vec2_stage import SpeechStage

logger = logging.getLogger(__name__)

DEFAULT_STAGES = 3
SAMPLES = 16_000  # of a sample input
MEL = {"kind": "mel", "bins": 80, "sampling_rate": 16_000}
MEL_CONVOLUTIONS = {"conv_kernel": [3], "conv_stride": [2]}
OURS = {"layerdrop": 0.0, "mask_time_prob": 0.0}

FrontEnd = Any  # `conv`, `mel`, or a mapping with `kind: mel`


def build(
    stage: StageName,
    config: Mapping[str, Any] | None = None,
    pretrained: str | None = None,
    layers: Sequence[int] | None = None,
    stages: int | None = None,
    position: int | None = None,
    front_end: FrontEnd = "conv",
    stage_index: int | None = None,
    stage_count: int | None = None,
) -> SpeechStage:
    """One stage, on the default device, initialised by transformers' rules or from `pretrained`.

    The pipeline says which of how many stages this is (`stage_index`, `stage_count`); `position` and `stages`
    say it where there is none.
    Imports transformers. Raises ModelError for keys that do not fit, HubUnavailable where a hub name is out
    of reach.
    """
    mel = mel_options(front_end)
    whole = model_config(config, pretrained, mel is not None)
    windows = _windows(whole, mel)
    several = stage_count if stage_count is not None and stage_count > 1 else None
    if layers is None and None not in (several, stages) and several != stages:
        raise ModelError(f"stages: {stages}, but the pipeline has {several} of this model")
    at = stage_index if position is None and several is not None else position
    wanted = ModelPart(layers=layers, stages=stages or several or DEFAULT_STAGES, position=at)
    start, stop = _range(stage, costs_of(whole, windows, 1 if mel is None else int(mel["bins"])), wanted)
    from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2ForCTC

    device = torch.empty(0).device
    with torch.device("meta"):
        model = Wav2Vec2ForCTC._from_config(whole, dtype=torch.float32, attn_implementation="sdpa")
    _cut(model, start, stop)
    if device.type != "meta":
        materialize(model, device)
        for module in model.modules():  # its constructor has marked what had no memory then as initialised
            module._is_hf_initialized = False
        model.initialize_weights()
    if start == 0:
        _finish_head(model, mel, windows)
    built = SpeechStage(model, windows, first=start == 0, last=stop == int(whole.num_hidden_layers))
    built.span = (start, stop)
    if pretrained is not None and device.type != "meta":
        _load(built, pretrained)
    return built.train()


def sample_input(
    stage: StageName,
    batch_size: int,
    config: Mapping[str, Any] | None = None,
    pretrained: str | None = None,
    front_end: FrontEnd = "conv",
) -> dict[str, Tensor]:
    """Waveforms and their lengths for the first stage, hidden states and lengths in frames for the others."""
    lengths_B = torch.full((batch_size,), SAMPLES)
    if stage in ("full", "head"):
        return {"x": torch.zeros(batch_size, SAMPLES), "lengths": lengths_B}
    mel = mel_options(front_end)
    whole = model_config(config, pretrained, mel is not None)
    frames = int(frame_counts(torch.tensor(SAMPLES, device="cpu"), _windows(whole, mel)))
    return {"x": torch.zeros(batch_size, frames, int(whole.hidden_size)), "lengths": lengths_B}


def model_config(config: Mapping[str, Any] | None, pretrained: str | None, mel: bool) -> Any:
    """A Wav2Vec2Config, a new object each time; ModelError for keys that it does not have."""
    from transformers.models.wav2vec2.configuration_wav2vec2 import Wav2Vec2Config

    if config is not None and pretrained is not None:
        raise ModelError("a stage of wav2vec2 takes either config: {...} or pretrained: name-or-folder")
    if pretrained is not None:
        given = pretrained_config(pretrained)
        if mel or given.pop("model_type", "wav2vec2") != "wav2vec2":
            raise ModelError(
                f"{pretrained!r} cannot be used: it must be a wav2vec2 model, and keeps its own front end "
                "(front_end: conv)"
            )
        made = Wav2Vec2Config(**{**given, "layerdrop": 0.0})
    else:
        given = dict(config or {})
        _check_keys(given, Wav2Vec2Config.__annotations__)
        if mel:
            width = [int(given.get("hidden_size", 768))]
            given = {**MEL_CONVOLUTIONS, "conv_dim": width, **given}
        made = Wav2Vec2Config(**{**OURS, **given})
    if made.layerdrop or made.add_adapter or made.adapter_attn_dim is not None:
        raise ModelError(
            "layerdrop must be 0 (which blocks run would differ between replicas), and adapters "
            "(add_adapter, adapter_attn_dim) cannot be cut into stages; leave them out"
        )
    return made


def mel_options(front_end: FrontEnd) -> dict[str, Any] | None:
    """What to make of the key `front_end`: None for convolutions over samples. Raises ModelError."""
    given = {"kind": front_end} if isinstance(front_end, str) else dict(front_end)
    if given == {"kind": "conv"}:
        return None
    if given.get("kind") != "mel" or given.keys() - MEL.keys():
        raise ModelError(
            f"front_end: {front_end!r} must be conv, mel, or {{kind: mel, bins: 80, sampling_rate: 16000}}"
        )
    return {**MEL, **given}


def _check_keys(given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ModelError(f"config: transformers' Wav2Vec2Config has no {key!r}{hint}")


def _windows(whole: Any, mel: Mapping[str, Any] | None) -> Windows:
    convolutions = list(zip(map(int, whole.conv_kernel), map(int, whole.conv_stride), strict=True))
    return convolutions if mel is None else [mel_window(int(mel["sampling_rate"])), *convolutions]


def costs_of(whole: Any, windows: Windows, channels: int) -> BlockCosts:
    """Multiply-accumulates per frame, without those that grow with the length of the recording.

    `channels` go into the first convolution.
    """
    width, groups = int(whole.hidden_size), int(whole.num_conv_pos_embedding_groups)
    before = int(whole.conv_dim[-1]) * width + width * width // groups * int(whole.num_conv_pos_embeddings)
    widths = [channels, *map(int, whole.conv_dim)]
    convolutions = windows[-len(whole.conv_dim) :]  # the window of energies costs next to nothing
    for place, (kernel, _) in enumerate(convolutions):
        per_frame = math.prod(stride for _, stride in convolutions[place + 1 :])
        before += widths[place] * widths[place + 1] * kernel * per_frame
    block = 4 * width * width + 2 * width * int(whole.intermediate_size)
    return BlockCosts(before, (block,) * int(whole.num_hidden_layers), width * int(whole.vocab_size))


def _range(stage: StageName, costs: BlockCosts, wanted: ModelPart) -> tuple[int, int]:
    """The blocks [start, stop) of a stage."""
    count = len(costs.blocks)
    if stage != "full":
        return block_range(stage, costs, wanted)
    if wanted.layers is not None and list(wanted.layers) != [0, count]:
        raise ModelError(f"layers: {list(wanted.layers)} of a full model must be [0, {count}]")
    return 0, count


def _cut(model: Any, start: int, stop: int) -> None:
    """Leave what blocks `start` to `stop` (exclusive) and their stage need; still on the meta device."""
    inner, encoder = model.wav2vec2, model.wav2vec2.encoder
    if hasattr(inner, "masked_spec_embed"):
        mark_H = inner.masked_spec_embed  # made by a constructor that knows no meta device
        del inner.masked_spec_embed
        if start == 0:
            inner.masked_spec_embed = torch.nn.Parameter(torch.empty_like(mark_H, device="meta"))
    blocks = list(encoder.layers)
    last = stop == len(blocks)
    encoder.layers = Blocks(blocks[start:stop], start)
    if start > 0:
        del inner.feature_extractor, inner.feature_projection, encoder.pos_conv_embed
    stable = bool(model.config.do_stable_layer_norm)
    if (stable and not last) or (not stable and start > 0):  # its norm stands behind the blocks, or before
        del encoder.layer_norm
    if not last:
        del model.lm_head


def _finish_head(model: Any, mel: Mapping[str, Any] | None, windows: Windows) -> None:
    """What transformers cannot initialise on memory that was empty, and the front end of ours."""
    conv = model.wav2vec2.encoder.pos_conv_embed.conv
    length_11K, direction_OIK = conv.parametrizations.weight.original0, conv.parametrizations.weight.original1
    with torch.no_grad():
        direction_OIK.normal_(std=2 * math.sqrt(1 / (conv.kernel_size[0] * conv.in_channels)))
        length_11K.copy_(torch.linalg.vector_norm(direction_OIK, dim=(0, 1), keepdim=True))
    if mel is not None:
        widths = [int(width) for width in model.config.conv_dim]
        model.wav2vec2.feature_extractor = MelFrontEnd(
            int(mel["bins"]), int(mel["sampling_rate"]), widths, windows[1:]
        )


def _load(stage: SpeechStage, source: str) -> None:
    names = list(stage.state_dict())
    weight = "parametrizations.weight.original"  # as torch names weight norm now, and as files name it
    ties = {
        name: name.replace(f"{weight}0", "weight_g").replace(f"{weight}1", "weight_v")
        for name in names
        if weight in name
    }
    fresh = [n for n in names if n.startswith("lm_head.") or n.endswith(".masked_spec_embed")]
    missing = load_weights(stage, source, prefix="wav2vec2", ties=ties, fresh=fresh)
    if missing:
        logger.info("%s holds no %s: initialised afresh", source, ", ".join(missing))


__all__ = ["build", "sample_input"]
