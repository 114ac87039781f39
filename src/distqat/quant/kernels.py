"""The two directions of LSQ in C, one pass over memory each: `quant.compile` on a CPU.

Values and the gradient of x have the bits of `distqat.quant.fake_quantize`; the gradient of log(step) is
summed in
another order (float32 in runs of 2048, float64 above them). Tensors are seen as [outer, channels, inner].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from ctypes import c_float, c_int64, c_void_p
from functools import cache
from typing import Any

import torch
from torch import Tensor

from distqat import native

_GRAIN = 2**15  # elements; beyond, torch's own loops use all threads that it has

_SOURCE = """
#include <math.h>
#include <stdint.h>

static inline float rounded(float x, float step, float inverse, float qmin, float qmax) {
    float code = nearbyintf(x * inverse);
    code = code < qmin ? qmin : code;  /* a NaN stays one */
    code = code > qmax ? qmax : code;
    return code * step;
}

void forward(const float *x, float *y, const float *step, const float *inverse, float qmin, float qmax,
             int64_t outer, int64_t channels, int64_t inner) {
    for (int64_t o = 0; o < outer; o++) {
        if (inner == 1) {
            for (int64_t c = 0; c < channels; c++) y[c] = rounded(x[c], step[c], inverse[c], qmin, qmax);
            x += channels, y += channels;
        } else {
            for (int64_t c = 0; c < channels; c++, x += inner, y += inner) {
                const float s = step[c], r = inverse[c];
                for (int64_t i = 0; i < inner; i++) y[i] = rounded(x[i], s, r, qmin, qmax);
            }
        }
    }
}

#define LANES 16
#define RUN 2048

static inline float passed(float g, float place, float low, float high) {
    return (place <= low) | (place >= high) ? 0.0f : g;
}

static double row(const float *g, const float *x, const float *y, float *gx, float scale, float low,
                  float high, int64_t n) {
    double total = 0.0;
    for (int64_t start = 0; start < n; start += RUN) {
        const int64_t end = start + RUN < n ? start + RUN : n;
        float sums[LANES] = {0};
        int64_t i = start;
        for (; i + LANES <= end; i += LANES)
            for (int64_t j = 0; j < LANES; j++) {
                const float through = passed(g[i + j], x[i + j] * scale, low, high);
                gx[i + j] = through;
                sums[j] += g[i + j] * y[i + j] - through * x[i + j];
            }
        for (; i < end; i++) {
            gx[i] = passed(g[i], x[i] * scale, low, high);
            sums[0] += g[i] * y[i] - gx[i] * x[i];
        }
        for (int64_t j = 0; j < LANES; j++) total += sums[j];
    }
    return total;
}

void backward(const float *g, const float *x, const float *y, float *gx, float *sums, const float *scale,
              float low, float high, float factor, double *total, int64_t outer, int64_t channels,
              int64_t inner) {
    for (int64_t c = 0; c < channels; c++) total[c] = 0.0;
    for (int64_t o = 0; o < outer; o++) {
        if (inner == 1) {
            for (int64_t c = 0; c < channels; c++) {
                gx[c] = passed(g[c], x[c] * scale[c], low, high);
                total[c] += g[c] * y[c] - gx[c] * x[c];
            }
            g += channels, x += channels, y += channels, gx += channels;
        } else {
            for (int64_t c = 0; c < channels; c++, g += inner, x += inner, y += inner, gx += inner)
                total[c] += row(g, x, y, gx, scale[c], low, high, inner);
        }
    }
    for (int64_t c = 0; c < channels; c++) sums[c] = (float)total[c] * factor;
}
"""

_SHAPE = [c_int64] * 3


_ONE = torch.ones(())


def fits(x: Tensor) -> bool:
    """Whether the loops may take this: float32, in one piece, on a CPU, where threads would not help."""
    if x.dtype != torch.float32 or not x.is_cpu or not x.is_contiguous():
        return False
    return x.numel() <= _GRAIN or torch.get_num_threads() == 1


def forward(x: Tensor, step: Tensor, inverse: Tensor, qmin: int, qmax: int, axis: int | None) -> Tensor:
    """As `lsq` rounds; `step` and `inverse` have one entry, or one per index of `axis`."""
    y = torch.empty_like(x)
    at = (x.data_ptr(), y.data_ptr(), step.data_ptr(), inverse.data_ptr())
    _functions()[0](*at, qmin, qmax, *_shape(x, axis))
    return y


def backward(
    grad: Tensor,
    saved: tuple[Tensor, Tensor, Tensor],
    scale: Tensor | None,
    bounds: tuple[float, float],
    axis: int | None,
    factor: float,
) -> tuple[Tensor, Tensor]:
    """Gradients of x and of log(step); `saved` are x, y and log(step).

    Inside is where x * `scale` is within `bounds` (x itself, if None); `factor` is that of the second.
    """
    x, y, log_step = saved
    grad_x, grad_step = torch.empty_like(x), torch.empty_like(log_step)
    total = torch.empty(log_step.shape, dtype=torch.float64)
    scale = _ONE if scale is None else scale
    at = (grad.data_ptr(), x.data_ptr(), y.data_ptr(), grad_x.data_ptr(), grad_step.data_ptr())
    _functions()[1](*at, scale.data_ptr(), *bounds, factor, total.data_ptr(), *_shape(x, axis))
    return grad_x, grad_step


@cache
def _functions() -> tuple[Callable[..., Any], Callable[..., Any]]:
    library = native.load(_SOURCE)
    library.forward.argtypes = [*[c_void_p] * 4, *[c_float] * 2, *_SHAPE]
    library.backward.argtypes = [*[c_void_p] * 6, *[c_float] * 3, c_void_p, *_SHAPE]
    library.forward.restype = library.backward.restype = None
    return library.forward, library.backward


def _shape(x: Tensor, axis: int | None) -> tuple[int, int, int]:
    if axis is None:
        return 1, 1, x.numel()
    return math.prod(x.shape[:axis]), x.shape[axis], math.prod(x.shape[axis + 1 :])
