"""Models whose modules cannot be exchanged, and what to do about it."""

from __future__ import annotations

from torch import nn

from groupnorm.errors import ConversionError


def check_bare(model: nn.Module) -> None:
    """Raise :class:`ConversionError` where modules of ``model`` cannot be exchanged."""
    if not isinstance(model, nn.Module):
        raise ConversionError(f"{type(model).__name__} is no module; expected an nn.Module: {_EXPORTED}")
    for path, module in model.named_modules():
        kind = type(module)
        names = {f"{base.__module__}.{base.__qualname__}" for base in kind.__mro__}
        remedy = next((_WRAPPERS[name] for name in names if name in _WRAPPERS), None)
        if remedy is None and kind.__module__.startswith(_QUANTIZED) and not kind.__module__.startswith(_FLOAT):
            remedy = "convert the model before it is fused or quantised"
        if remedy is None and _compiled(module):
            remedy = "convert the model before torch.compile, or its _orig_mod"
        if remedy is not None:
            raise ConversionError(
                f"{path or 'the model'} is {kind.__module__}.{kind.__qualname__}, whose modules cannot be exchanged; "
                f"expected a plain module: {remedy}"
            )
        lazy = [name for name, p in module.named_parameters(recurse=False) if nn.parameter.is_lazy(p)]
        if lazy:
            raise ConversionError(
                f"{path or 'the model'} has parameters without a shape yet, {lazy}; expected an initialised model: run "
                f"it once before"
            )


def _compiled(module: nn.Module) -> bool:
    return "_orig_mod" in module._modules or getattr(module, "_compiled_call_impl", None) is not None


_EXPORTED = "convert the model before it is exported"
_SHARDED = "convert the model before it is sharded"
_WRAPPERS = {
    "torch.nn.parallel.distributed.DistributedDataParallel": "convert .module, and wrap it afterwards",
    "torch.nn.parallel.data_parallel.DataParallel": "convert .module, and wrap it afterwards",
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel": _SHARDED,
    "torch.distributed.fsdp._fully_shard._fully_shard.FSDPModule": _SHARDED,
    "torch.export._unlift._StatefulGraphModule": _EXPORTED,
    "torch.jit._script.ScriptModule": "convert the model before torch.jit.script or torch.jit.trace",
    "torch.jit._script.RecursiveScriptModule": "convert the model before torch.jit.script or torch.jit.trace",
}
_FLOAT = ("torch.ao.nn.quantizable", "torch.ao.nn.quantized.modules.functional_modules")
"""Modules that compute in floats until a network is quantised."""
_QUANTIZED = ("torch.ao.nn.", "torch.nn.intrinsic", "torch.nn.quantized", "torch.nn.qat")
