"""What the arguments of a normalisation have to be; each error tells the value, what was expected and the remedy."""

from __future__ import annotations

import math
from numbers import Integral, Real

import torch
from torch import Tensor
from torch.compiler import is_compiling

from groupnorm.errors import (
    ArgumentError,
    DeviceError,
    DivisibilityError,
    DtypeError,
    ShapeError,
    SingleElementError,
    UnallocatedError,
    UnknownNameError,
    divisors,
)
from groupnorm.ops.activation import ACTIVATIONS
from groupnorm.ops.spec import accumulation_dtype


def check_tensor(name: str, value: object) -> None:
    """Raise unless an argument is a dense tensor."""
    if not isinstance(value, Tensor):
        kind = type(value)
        kind_name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
        raise DtypeError(f"{name} is of type {kind_name}; expected a torch.Tensor: use torch.as_tensor({name})")
    if value.is_nested:
        raise DtypeError(f"{name} is a nested tensor; expected a dense one: {_REMEDIES_OF_NESTED.get(name, _PAD)}")
    check_layout(name, value.layout)


def check_layout(name: str, layout: torch.layout) -> None:
    """Raise unless this is the layout of a dense tensor."""
    if layout is not torch.strided:
        raise DtypeError(f"{name} has layout {layout}; expected torch.strided: make it dense with {name}.to_dense()")


_PAD = "pad it with torch.nested.to_padded_tensor(x, 0.0)"
_REMEDIES_OF_NESTED = {"input": f"{_PAD} and give mask=, which leaves the padding out"}
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_input(input: Tensor) -> None:
    """Raise unless ``input`` is a dense floating point tensor ``[N, C, *]``."""
    check_tensor("input", input)
    if input.dim() < 2:
        raise ShapeError(
            f"input has shape {tuple(input.shape)}, rank {input.dim()}; expected (N, C, *) with at least two "
            f"axes: add the batch axis with x.unsqueeze(0)"
        )
    if not input.is_floating_point():
        remedy = "convert it with x.float()"
        if input.is_complex() or input.is_quantized:
            remedy = "normalise x.real and x.imag" if input.is_complex() else "use x.dequantize()"
        raise DtypeError(f"input has dtype {input.dtype}; expected a floating point dtype: {remedy}")
    if input.dtype not in _DTYPES:
        raise DtypeError(
            f"input has dtype {input.dtype}, which has no arithmetic; expected one of "
            f"{', '.join(map(str, _DTYPES))}: convert it with x.bfloat16() or x.float()"
        )


def check_groups(num_groups: int, num_channels: int) -> None:
    """Raise unless ``num_channels`` splits into ``num_groups`` equal groups."""
    check_integer("num_groups", num_groups)
    if num_groups < 1:
        raise ArgumentError(f"num_groups={num_groups}; expected at least 1 (1 is layer norm over C, H, W)")
    if num_channels % num_groups:
        raise DivisibilityError(num_channels, num_groups)


def check_eps(eps: float) -> None:
    """Raise unless ``eps`` is a finite number that is not negative, so that var + eps has a square root."""
    try:
        fits = _is_a(Real, eps) and 0 <= float(eps) < math.inf
    except OverflowError:  # an integer beyond the range of floats
        fits = False
    if not fits:
        raise ArgumentError(f"eps={eps!r}; expected a finite number >= 0: the default is 1e-5")


def check_integer(name: str, value: object) -> None:
    """Raise unless ``value`` is an integer, of Python or of numpy."""
    if not (_is_a(Integral, value) or isinstance(value, torch.SymInt)):
        raise ArgumentError(f"{name}={value!r} is of type {type(value).__name__}; expected an integer: use int(...)")


def _is_a(kind: type, value: object) -> bool:
    """Whether a value is a number of this kind; a boolean is none, though Python takes it for one."""
    return isinstance(value, kind) and not isinstance(value, bool)


def as_integer(value: int) -> int:
    """An integer of Python or a symbolic one, as PyTorch's functions take them, from one that was checked."""
    return value if isinstance(value, (int, torch.SymInt)) else int(value)


def check_activation(activation: str | None) -> None:
    """Raise unless ``activation`` is None or one of :data:`ACTIVATIONS`."""
    if activation is not None and not (isinstance(activation, str) and activation in ACTIVATIONS):
        raise UnknownNameError("activation", str(activation), ACTIVATIONS)


def check_parameters(input: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
    """Raise unless scale and shift are ``[C]``, where ``input`` is, and of its dtype or of that of its statistics."""
    channels, dtype = input.shape[1], input.dtype
    for name, p in (("weight", weight), ("bias", bias)):
        if p is None:
            continue
        check_tensor(name, p)
        check_device(name, p.device, input.device)
        if p.dtype is dtype and p.dim() == 1 and p.numel() == channels:
            continue
        if p.dim() != 1 or p.numel() != channels:
            raise ShapeError(
                f"{name} has shape {tuple(p.shape)}; expected ({channels},), "
                f"one value for each channel of the input {tuple(input.shape)}"
            )
        wide = accumulation_dtype(dtype)
        if p.dtype != wide:
            expected = str(dtype) if wide == dtype else f"{dtype} or {wide}"
            raise DtypeError(
                f"{name} has dtype {p.dtype} and the input {dtype}; expected {name} of {expected}: "
                f"convert one of the two with .to(dtype)"
            )


def check_like(name: str, tensor: Tensor, input: Tensor) -> None:
    """Raise unless this is a tensor of the shape, dtype and device of ``input``."""
    check_tensor(name, tensor)
    if tensor.shape != input.shape:
        raise ShapeError(
            f"{name} has shape {tuple(tensor.shape)} and the input {tuple(input.shape)}; expected the same: "
            f"nothing is broadcast, use {name}.expand_as(input)"
        )
    if tensor.dtype != input.dtype:
        raise DtypeError(
            f"{name} has dtype {tensor.dtype} and the input {input.dtype}; expected the same: use {name}.to(input)"
        )
    check_device(name, tensor.device, input.device)


def check_device(name: str, device: torch.device, of_input: torch.device) -> None:
    """Raise unless a tensor is where the input is."""
    if device != of_input:
        raise DeviceError(
            f"{name} is on {device} and the input on {of_input}; expected the same: use {name}.to(input.device)"
        )


def check_out(out: Tensor, *others: Tensor | None) -> None:
    """Raise where a gradient would have to flow into or through a tensor that is written to, or it may not be."""
    if not is_compiling() and out.is_inference() and not torch.is_inference_mode_enabled():
        raise ArgumentError(
            "out= was made in inference mode and this is outside of it; expected a normal tensor: use out.clone()"
        )
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (out, *others)):
        raise ArgumentError(
            "out= was given and an argument requires a gradient, which has no way through a tensor that is written to; "
            "expected no gradient: leave out= away, or call it under torch.no_grad()"
        )


def checked_statistics(statistics: tuple[Tensor, Tensor], input: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """``(mean, rstd)``, if that is what it is."""
    given = statistics if isinstance(statistics, (tuple, list)) else ()
    if len(given) != 2 or not all(isinstance(t, Tensor) for t in given):
        raise ArgumentError(
            f"statistics is {statistics!r}; expected (mean, rstd), two tensors: "
            f"use group_norm_statistics(x, num_groups)"
        )
    mean, rstd = given
    check_tensor("statistics", mean)
    check_tensor("statistics", rstd)
    shapes = [tuple(t.shape) for t in (mean, rstd)]
    expected = (input.shape[0], num_groups)
    if shapes != [expected, expected]:
        raise ShapeError(
            f"statistics have shapes {shapes[0]} and {shapes[1]}; expected {expected}, (N, G), for the input "
            f"{tuple(input.shape)} and num_groups={num_groups}"
        )
    for t in (mean, rstd):
        check_device("statistics", t.device, input.device)
    return mean, rstd


def checked_mask(mask: Tensor, input: Tensor) -> Tensor:
    """A mask ``[N, *]`` as ``[N, 1, *]``."""
    check_tensor("mask", mask)
    if mask.dtype != torch.bool:
        raise DtypeError(f"mask has dtype {mask.dtype}; expected torch.bool, True where valid: use mask.bool()")
    expected = (input.shape[0], *input.shape[2:])
    fits = mask.dim() == len(expected) and all(m in (1, e) for m, e in zip(mask.shape, expected, strict=True))
    if not fits:
        raise ShapeError(
            f"mask has shape {tuple(mask.shape)}; expected {expected}, the axes of the input {tuple(input.shape)} "
            f"without the channels, or 1 for any of them"
        )
    return mask.unsqueeze(1)


def check_group_elements(shape: torch.Size, num_groups: int) -> None:
    """Raise when each group of an input of ``shape`` has a single element, so that the output is constant."""
    elements = shape[1] // num_groups
    for length in shape[2:]:
        elements *= length
    if elements == 1:
        fewer = [d for d in divisors(shape[1]) if d < num_groups]
        remedy = f"num_groups from {fewer}, or larger feature maps" if fewer else "larger feature maps"
        raise SingleElementError(
            f"input {tuple(shape)} with num_groups={num_groups} has 1 element per group, so the output is the "
            f"bias whatever the input; expected at least 2: use {remedy}"
        )


def address(tensor: Tensor) -> int:
    """Where the elements of a tensor are.

    Raises:
        UnallocatedError: it has elements and no memory.
    """
    pointer = tensor.data_ptr()
    if not pointer and tensor.numel():
        raise UnallocatedError(
            f"a tensor of shape {tuple(tensor.shape)} and dtype {tensor.dtype} has no memory: its data is not "
            f"allocated yet or was freed; expected {tensor.numel()} elements: call the norm before storage.resize_(0), "
            f"or where FSDP has gathered the parameters"
        )
    return pointer
