"""Exchange modules of a model and take it back, whatever holds them: parents, hooks, optimisers. It knows no norm."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from groupnorm.conversion.sites import Site
from groupnorm.errors import ConversionError

Undo = Callable[[], object]


class Exchange:
    """A module that was put in every place of another; to be called to put the old one back."""

    def __init__(self, site: Site, new: nn.Module) -> None:
        self.site, self.new = site, new
        self.values = [(tensor, tensor.detach().clone(), tensor.requires_grad) for tensor in _tensors(site.module)]
        self.place = _place(site, new)

    def check(self) -> None:
        """Raise unless every place holds what this exchange put there."""
        for parent, name in self.site.places:
            if (here := parent._modules.get(name)) is not self.new:
                raise ConversionError(
                    f"{self.site.path!r} holds {type(here).__name__} and no longer the {type(self.new).__name__} that "
                    f"this conversion put there; expected the modules as it left them: undo the later conversion first"
                )

    def __call__(self) -> None:
        """Put the old module back, with the values of before, where the model is now: its device and dtype."""
        old = self.site.module
        _put(self.site, old.train(self.new.training))
        with torch.no_grad():
            for tensor, value, learns in self.values:
                tensor.copy_(value)
                tensor.requires_grad_(learns)
        if (place := _place(self.site, self.new)) != self.place:  # what only the old one has did not move along
            old.to(*place)


def exchange_(site: Site, new: nn.Module, *, internal: Collection[str] | None = None) -> Exchange:
    """Put ``new`` in every place of a module, with its hooks, its mode and what was set on it by hand.

    Args:
        site: the module.
        new: what comes in its place.
        internal: attributes of the old module that are its own, and not set by hand; None: all, if it is one of ours.

    Returns:
        what puts the old one back, with the values that its parameters and buffers have now.
    """
    old = site.module
    done = Exchange(site, new)
    _share_hooks(old, new)
    if internal is not None or not ours(old):
        skipped = {*vars(new), *_KNOWN, *(internal or ())}
        vars(new).update({name: value for name, value in vars(old).items() if name not in skipped})
    _put(site, new)
    return done


def ours(module: nn.Module) -> bool:
    """Whether the class of a module, or what it is derived from, is of this package."""
    return any(kind.__module__.startswith("groupnorm.") for kind in type(module).__mro__)


def _place(site: Site, module: nn.Module) -> tuple[Any, ...]:
    """Device and dtype of a module; of what is around it where it has no tensors."""
    for candidate in (module, *(parent for parent, _ in site.places)):
        for tensor in _tensors(candidate):
            if tensor.is_floating_point():
                return tensor.device, tensor.dtype
    return ()


_KNOWN = {
    "eps", "momentum", "affine", "track_running_stats", "num_features", "num_channels", "num_groups", "process_group",
    "activation", "after", "forward",
}  # fmt: skip
"""Attributes of norms that say what they compute: those of the new norm hold."""


def rebind_(optimizer: torch.optim.Optimizer, old: nn.Module, new: nn.Module) -> Undo:
    """Let an optimiser of the parameters of ``old`` have those of ``new``.

    Parameters that both have stay where they are, with their state. Those that only the new module has go to the end of
    the group that had the first of the old ones; those that only the old one has go, with their state.

    Returns:
        what takes it back.
    """
    before, after = list(old.parameters()), list(new.parameters())
    gone = {id(p) for p in before} - {id(p) for p in after}
    come = [p for p in after if id(p) not in {id(q) for q in before}]
    groups = optimizer.param_groups
    lists = [(group, list(group["params"]), list(group.get("param_names", ()))) for group in groups]
    state: dict[Tensor, Any] = {p: optimizer.state[p] for p in before if id(p) in gone and p in optimizer.state}
    home = next((group for group in groups if {id(p) for p in group["params"]} & {id(p) for p in before}), None)
    if home is not None and (gone or come):
        names = {id(p): name for name, p in new.named_parameters()}
        for group in groups:
            stays = [id(p) not in gone for p in group["params"]]
            group["params"] = [p for p, stay in zip(group["params"], stays, strict=True) if stay]
            if "param_names" in group:
                group["param_names"] = [n for n, stay in zip(group["param_names"], stays, strict=True) if stay]
        home["params"] += come
        if "param_names" in home:
            home["param_names"] += [names[id(p)] for p in come]
        for p in state:
            del optimizer.state[p]

    def undo() -> None:
        for group, parameters, parameter_names in lists:
            group["params"] = parameters
            if parameter_names:
                group["param_names"] = parameter_names
        for p in come:
            optimizer.state.pop(p, None)
        optimizer.state.update(state)

    return undo


def references(model: nn.Module, modules: Sequence[nn.Module]) -> list[str]:
    """Attributes of the model's modules that hold one of ``modules`` other than as a child: lists, dictionaries.

    An exchange does not reach them.
    """
    wanted = {id(module) for module in modules}
    found = []
    for path, parent in model.named_modules():
        for name, value in vars(parent).items():
            if name != "_modules" and any(id(item) in wanted for item in _items(value)):
                found.append(f"{path}.{name}".lstrip("."))
    return found


def _items(value: Any) -> Sequence[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, (list, tuple, set)) else [value]


def _put(site: Site, module: nn.Module) -> None:
    for parent, name in site.places:
        parent._modules[name] = module


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _share_hooks(old: nn.Module, new: nn.Module) -> None:
    """Let ``new`` have the hooks of ``old``, in the very dictionaries, so that their handles still remove them."""
    for name, value in vars(old).items():
        if isinstance(value, dict) and "_hooks" in name:
            value.update(vars(new)[name])
            vars(new)[name] = value
    new._is_full_backward_hook = old._is_full_backward_hook
