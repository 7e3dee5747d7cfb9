"""Exchange modules of a model and take it back, whatever holds them: parents, hooks, optimisers. It knows no norm."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Collection, Iterable
from types import BuiltinFunctionType, CodeType, FrameType, FunctionType, ModuleType
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

    def put_back(self) -> None:
        """Put the old module back, with the mode and the hooks that the new one has by now."""
        _hand_over_hooks(self.new, self.site.module)
        _put(self.site, self.site.module.train(self.new.training))

    def __call__(self) -> None:
        """Put the old module back, with the values of before, where the model is now: its device and dtype."""
        old = self.site.module
        self.put_back()
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
    _hand_over_hooks(old, new)
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


def rebind_(
    optimizer: torch.optim.Optimizer, old: nn.Module, new: nn.Module, used: Collection[int] = frozenset()
) -> Rebinding:
    """Let an optimiser of the parameters of ``old`` have those of ``new``.

    Parameters that both have stay where they are, with their state. Those that only the new module has go to the end of
    the group that had the first of the old ones; those that only the old one has go, with their state.

    Args:
        optimizer: in place.
        old: the module that was replaced.
        new: what is in its place.
        used: ids of parameters that other modules have too; they stay.

    Returns:
        what takes it back.
    """
    before, after = list(old.parameters()), {p: name for name, p in new.named_parameters()}
    gone = {p for p in before if p not in after and id(p) not in used}
    come = [p for p in after if p not in set(before)]
    home = next((group for group in optimizer.param_groups if {*group["params"]} & {*before}), None)
    done = Rebinding(optimizer, gone, come if home is not None else [])
    if home is None:
        return done
    for group in optimizer.param_groups:
        _regroup(group, [(p, name) for p, name in _named(group) if p not in gone])
    _regroup(home, [*_named(home), *((p, after[p]) for p in come)])
    for p in done.state:
        del optimizer.state[p]
    return done


class Rebinding:
    """Takes back what :func:`rebind_` did.

    Loading a state makes new groups, so that they are known by their numbers.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, gone: Collection[Tensor], come: Collection[Tensor]) -> None:
        self.optimizer, self.gone, self.come = optimizer, set(gone), set(come)
        self.groups = [_named(group) for group in optimizer.param_groups]
        self.state = {p: optimizer.state[p] for p in self.gone if p in optimizer.state}

    def check(self) -> None:
        """Raise where groups have gone, to which parameters would return."""
        if (self.gone or self.come) and (now := len(self.optimizer.param_groups)) < len(self.groups):
            raise ConversionError(
                f"the optimizer has {now} parameter groups, and had {len(self.groups)} at this conversion; expected "
                f"the same groups, or more: put those back that were removed, and undo it then"
            )

    def __call__(self) -> None:
        """Give the parameters back that went, where they were, and take those that came; others stay."""
        held = {p for group in self.optimizer.param_groups for p in group["params"]}
        for group, before in zip(self.optimizer.param_groups, self.groups, strict=False):
            now = _named(group)
            here, was = {p for p, _ in now}, {p for p, _ in before}
            back = [(p, name) for p, name in before if p in here or (p in self.gone and p not in held)]
            later = [(p, name) for p, name in now if p not in was and p not in self.come]
            _regroup(group, back + later)
        for p in self.come:
            self.optimizer.state.pop(p, None)
        self.optimizer.state.update(self.state)


def _named(group: dict[str, Any]) -> list[tuple[Tensor, str]]:
    """The parameters of a group, each with its name there; "" where the group has no names."""
    return list(zip(group["params"], group.get("param_names") or [""] * len(group["params"]), strict=True))


def _regroup(group: dict[str, Any], parameters: Collection[tuple[Tensor, str]]) -> None:
    """Let a group have these parameters, in the very list, which some optimisers hold."""
    group["params"][:] = [p for p, _ in parameters]
    if "param_names" in group:
        group["param_names"][:] = [name for _, name in parameters]


def references(model: nn.Module, modules: Collection[nn.Module]) -> list[str]:
    """Attributes of the model's modules that hold one of ``modules`` other than as a child: lists, functions, objects.

    An exchange does not reach them.
    """
    wanted = set(modules)
    hold: dict[int, bool] = {}  # by id: modules of one network often share an object, such as its configuration
    attributes = [
        (f"{path}.{name}".lstrip("."), value)
        for path, parent in model.named_modules()
        for name, value in vars(parent).items()
        if name != "_modules"
    ]
    for _, value in attributes:
        if id(value) not in hold:
            hold[id(value)] = not wanted.isdisjoint(held_by(value))
    return [name for name, value in attributes if hold[id(value)]]


def held_by(value: Any) -> list[nn.Module]:
    """The modules that a value holds: itself, or within containers, objects, and what functions refer to."""
    found, left = [], [value]
    seen = {id(value): value}  # the values are held, so that no id is used again
    while left:
        item = left.pop()
        if isinstance(item, nn.Module):
            found.append(item)
            continue
        for inner in _inside(item):
            if id(inner) not in seen:
                seen[id(inner)] = inner
                left.append(inner)
    return found


def _inside(value: Any) -> Iterable[Any]:
    """What an object refers to: all that the garbage collector sees, but what leads to the whole process."""
    if isinstance(value, weakref.ref):
        return [value()]
    if isinstance(value, FunctionType):
        return [value.__closure__, value.__defaults__, value.__kwdefaults__, value.__dict__, *_globals_of(value)]
    if isinstance(value, (type, ModuleType, FrameType, BuiltinFunctionType, Tensor)):
        return ()
    return gc.get_referents(value)


def _globals_of(function: FunctionType) -> list[Any]:
    """The variables of its file that a function names."""
    names, codes = set[str](), [function.__code__]
    for code in codes:  # those within it too
        names.update(code.co_names)
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return [function.__globals__[name] for name in names if name in function.__globals__]


def _put(site: Site, module: nn.Module) -> None:
    for parent, name in site.places:
        parent._modules[name] = module


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _hand_over_hooks(old: nn.Module, new: nn.Module) -> None:
    """Let ``new`` have the hooks of ``old``, in the very dictionaries, so that their handles still remove them."""
    for name, hooks in vars(old).items():
        if isinstance(hooks, dict) and "_hooks" in name:
            vars(new)[name] = hooks
            for hook in hooks.values():
                # torch gives some hooks their module by a weak reference, made when they are registered
                if getattr(hook, "with_module", False) and hook.module() is old:
                    hook.module = weakref.ref(new)
    new._is_full_backward_hook = old._is_full_backward_hook
