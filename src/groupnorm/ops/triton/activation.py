"""The activations and their derivatives, in the language of Triton, elementwise on what the norm put out."""

# mypy: ignore-errors
# Kernels are not Python that mypy could check: Triton compiles them, types and all.

import triton
import triton.language as tl


@triton.jit
def sigmoid(z):
    """``1 / (1 + exp(-z))``; 0 and 1 where the exponential overflows and vanishes."""
    return 1 / (1 + tl.exp(-z))


@triton.jit
def normal_cdf(z):
    """The distribution function of the standard normal distribution, by erf."""
    return 0.5 * (1 + tl.erf(z * 0.7071067811865476))


@triton.jit
def tanh_argument(z):
    """``2 u`` where the tanh form of gelu is ``0.5 z (1 + tanh u) = z sigmoid(2 u)``."""
    return 1.5957691216057308 * z * (1 + 0.044715 * z * z)


@triton.jit
def activate(z, ACTIVATION: tl.constexpr):
    """The activation of ``z``; NaN stays NaN."""
    if ACTIVATION == "relu":
        z = tl.where(z < 0, 0.0, z)
    elif ACTIVATION == "silu":
        z = z * sigmoid(z)
    elif ACTIVATION == "gelu":
        z = z * normal_cdf(z)
    elif ACTIVATION == "gelu_tanh":
        z = z * sigmoid(tanh_argument(z))
    return z


@triton.jit
def through(z, dy, ACTIVATION: tl.constexpr):
    """The gradient below the activation: its derivative at ``z``, times the gradient from above."""
    if ACTIVATION == "relu":
        dy = tl.where(z <= 0, 0.0, dy)
    elif ACTIVATION == "silu":
        s = sigmoid(z)
        dy = dy * (s * (1 + z * (1 - s)))
    elif ACTIVATION == "gelu":
        dy = dy * (normal_cdf(z) + z * (0.3989422804014327 * tl.exp(-0.5 * z * z)))
    elif ACTIVATION == "gelu_tanh":
        s = sigmoid(tanh_argument(z))
        dy = dy * (s + z * (s * (1 - s)) * (1.5957691216057308 * (1 + 0.134145 * z * z)))
    return dy
