"""How far a computation may lie from the definition. Every bound is derived here; no test has a number of its own.

Notation; maxima are over the whole input, and everything but e and a is computed in float64:

    e   eps of the dtype of the tensors, twice its unit roundoff
    a   eps of the dtype that sums are accumulated in: float32 for the half precisions, otherwise e
    m   elements that share a mean and a variance (``SharedSet.size``)
    R   max rstd, rstd = 1 / sqrt(var + eps)
    X   max (|x| + |mean|) * rstd >= max |xhat|; not |xhat| alone: y may be computed as x * scale + shift
    K   max sqrt((var + mean^2 + eps) / (var + eps)), the condition number of the variance

Sums. n rounded additions in any order err by at most n a/2 * sum|t|, and by LAMBDA sqrt(n) a/2 * sum|t| but for
a probability of 2 exp(-LAMBDA^2 / 2) (Higham & Mary 2019, SIAM J. Sci. Comput. 41(5)). With LAMBDA = 4 (7e-4, and
all known kernels do better, because they sum in blocks):

    s(n) = 2 sqrt(n) a,  relative to sum|t|

Statistics. |d mean| <= s(m) mean|x|. The variance, by updates (Welford) or in two passes, errs by at most
3 s(m) K var (Chan, Golub & LeVeque 1983, table 1); as E[x^2] - mean^2 it would err by 3 s(m) K^2 var, which no path
may. Each of four roundings (of mean and rstd when they are stored, of x - mean, of the product) adds u/2, with u = a
forward and u = e backward, where statistics are those that were stored:

    rstd errs by the factor        p(u) = 1.5 s(m) K + u
    mean * rstd errs by            t(u) = X (s(m) + u)
    xhat errs by                   h(u) = X p(u) + t(u)

Output, with W = max|w|, B = max|b|; 2 a for the affine map, e for storing y in its dtype:

    |d y|  <= W h(a) + (2 a + e) (W X + B)

Backward. g = dy w, dx = rstd (g - mean(g) - xhat mean(g xhat)). With G = max|g|, G1 = max mean|g|, M = max|mean(g)|
and Q = max|mean(g xhat)|:

    |d mean(g)|       <= s(m) G1
    |d mean(g xhat)|  <= q = p(e) Q + t(e) M + 2 s(m) X G1             as rstd (mean(g x) - mean mean(g))
    |d dx|            <= R ((p(e) + 2 a + e) (G + M + X Q) + s(m) G1 + h(e) Q + X q)

Per channel, over k = N * positions terms. With D = max_c sum|dy|, and from the sums over the positions of each
sample, V = max_c sum_n |sum dy xhat| and U = max_c sum_n |sum dy|:

    |d dw|  <= (p(e) + e) V + t(e) U + 2 s(k) X D                      as sum_n rstd (sum dy x - mean sum dy)
    |d db|  <= s(k) D + e U

An implementation that rounds xhat to a half precision before it sums does not keep these, and should not.

Activations. Each has |f'| <= 1.13 (silu 1.100, gelu 1.129, relu 1), |f(y)| <= |y| and |f''| <= 0.8 (gelu 0.798, silu
0.5; relu has a kink instead, so its gradients are compared in float64 only, where no input comes near it). The
output errs f' times as much and is stored once more; f'(y) dy takes the place of dy above and errs, each on its
own, by c = 0.8 |d y| + 1.13 e of dy:

    |d dx|  grows by R (2 + X) W c max|dy|;    |d dw| by X D c;    |d db| by D c

Centred kernels. For inputs below float64 those of the package subtract a mean that carries a second number, what
rounding it left out, and sum squares of distances from a value that lies within the data, so that nothing depends on K
or X. With H = max|xhat|, and then as above with an activation:

    |d y|  <= W H (3 s(m) + 4 a) + (2 a + e) (W H + B)

Against a reference that is itself float64 both sides err: the bounds double.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from groupnorm.functional import ACTIVATIONS
from groupnorm.ops.reference import normalize, statistics
from groupnorm.sets import SharedSet

SLOPE = 1.13
CURVATURE = 0.8


@dataclass(frozen=True)
class Bounds:
    """Largest absolute errors of the output and of the three gradients."""

    y: float
    dx: float
    dweight: float
    dbias: float


def accumulation_eps(dtype: torch.dtype) -> float:
    """Eps of the dtype that sums over tensors of ``dtype`` are accumulated in."""
    return torch.finfo(torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype).eps


def summing(terms: int, dtype: torch.dtype) -> float:
    """Error of a sum of ``terms`` numbers, relative to the sum of their magnitudes: ``s(n)`` above."""
    return 2 * math.sqrt(terms) * accumulation_eps(dtype)


def bounds(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    upstream: Tensor,
    shared: SharedSet,
    *,
    dtype: torch.dtype,
    eps: float = 1e-5,
    activation: str | None = None,
) -> Bounds:
    """The bounds derived above for float64 inputs, when the computation runs on tensors of ``dtype``."""
    e, a = torch.finfo(dtype).eps, accumulation_eps(dtype)
    slope, curvature = (0.0, 0.0) if activation is None else (SLOPE, CURVATURE)
    dy = upstream if activation is None else before(activation, normalize(x, shared, weight, bias, eps), upstream)

    mean, variance = statistics(x, shared)
    rstd = (variance + eps).rsqrt()
    xhat = (x - mean) * rstd
    R = largest(rstd)
    X = largest((x.abs() + mean.abs()) * rstd)
    K = largest((variance + mean.square() + eps) / (variance + eps)) ** 0.5
    s = summing(shared.size(x.shape), dtype)

    def p(u: float) -> float:
        return 1.5 * s * K + u

    def t(u: float) -> float:
        return X * (s + u)

    def h(u: float) -> float:
        return X * p(u) + t(u)

    W, B = largest(weight), largest(bias)
    y = W * h(a) + (2 * a + e) * (W * X + B)
    c = curvature * y + slope * e

    g = dy * weight.view(1, -1, *[1] * (x.dim() - 2))
    G, G1 = largest(g), largest(statistics(g.abs(), shared)[0])
    M, Q = largest(statistics(g, shared)[0]), largest(statistics(g * xhat, shared)[0])
    q = p(e) * Q + t(e) * M + 2 * s * X * G1
    dx = R * ((p(e) + 2 * a + e) * (G + M + X * Q) + s * G1 + h(e) * Q + X * q)
    dx += R * (2 + X) * W * c * largest(upstream)

    s_k = summing(x[:, 0].numel(), dtype)
    D = largest(per_sample(upstream.abs()).sum(0))
    V, U = largest(per_sample(dy * xhat).abs().sum(0)), largest(per_sample(dy).abs().sum(0))
    dweight = (p(e) + e) * V + t(e) * U + 2 * s_k * X * D + X * D * c
    dbias = s_k * D + e * U + D * c

    if activation is not None:
        y = slope * y + e * (W * X + B)
    sides = 2 if dtype == torch.float64 else 1
    return Bounds(*(sides * v for v in (y, dx, dweight, dbias)))


def centred_bound(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    shared: SharedSet,
    *,
    dtype: torch.dtype,
    eps: float = 1e-5,
    activation: str | None = None,
) -> float:
    """The bound of the output of a centred kernel, derived above, when it runs on tensors of ``dtype``."""
    e, a = torch.finfo(dtype).eps, accumulation_eps(dtype)
    H = largest(normalize(x, shared, eps=eps))
    W, B, s = largest(weight), largest(bias), summing(shared.size(x.shape), dtype)
    y = W * H * (3 * s + 4 * a) + (2 * a + e) * (W * H + B)
    if activation is not None:
        y = SLOPE * y + e * (W * H + B)
    return y


def before(activation: str, y: Tensor, upstream: Tensor) -> Tensor:
    """The gradient below the activation: ``f'(y) * upstream``."""
    y = y.detach().requires_grad_()
    return torch.autograd.grad(ACTIVATIONS[activation](y), y, upstream)[0]


def per_sample(t: Tensor) -> Tensor:
    """``[N, C]``: the sum over the positions."""
    return t.reshape(*t.shape[:2], -1).sum(2)


def largest(t: Tensor) -> float:
    """The largest magnitude in ``t``."""
    return t.abs().max().item()


def rounding(dtype: torch.dtype, x: Tensor, y: Tensor) -> float:
    """How far a layer of any kind may lie from the same layer in a higher precision, or in another order of sums.

    A layer here is at most ROUNDINGS elementwise operations and two sums over all of the input, on numbers no larger
    than ``1 + max|x| + max|y|``. Its sums are made in at least float32, and what it stores in ``dtype``.
    """
    scale = 1 + largest(x.double()) + largest(y.double())
    return scale * (ROUNDINGS * torch.finfo(dtype).eps + 2 * summing(x.numel(), dtype))


ROUNDINGS = 8
