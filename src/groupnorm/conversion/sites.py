"""Where the modules of a model hang: each once, with every name it has."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.nn.modules.conv import _ConvNd


@dataclass(frozen=True)
class Site:
    """A module of a model.

    Attributes:
        module: the module.
        paths: every path to it, the first as :meth:`torch.nn.Module.named_modules` gives it; "" is the model itself.
        places: each parent and the name it has for the module, once.
    """

    module: nn.Module
    paths: tuple[str, ...]
    places: tuple[tuple[nn.Module, str], ...]

    @property
    def path(self) -> str:
        """The first path."""
        return self.paths[0]


def sites(model: nn.Module) -> list[Site]:
    """All modules of ``model`` in the order of their first paths, itself first."""
    paths: dict[nn.Module, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(module, []).append(path)
    places: dict[nn.Module, list[tuple[nn.Module, str]]] = {module: [] for module in paths}
    for parent in paths:
        for name, child in parent._modules.items():
            if child is not None:
                places[child].append((parent, name))
    return [Site(module, tuple(names), tuple(places[module])) for module, names in paths.items()]


def rank_before(site: Site) -> int | None:
    """Rank of the output of the convolution or linear layer that its parent has before a module.

    None where there is none, or where a container or a layer that changes the rank stands between.
    """
    for parent, name in site.places[:1]:
        names = list(parent._modules)
        for before in reversed(names[: names.index(name)]):
            layer = parent._modules[before]
            if isinstance(layer, _ConvNd):
                return layer.weight.dim()
            if isinstance(layer, nn.Linear):
                return 2
            if isinstance(layer, _RESHAPES) or (layer is not None and layer._modules):
                return None
    return None


_RESHAPES = (nn.Flatten, nn.Unflatten, nn.Fold, nn.Unfold)
