"""Keys of state dicts: which module they belong to, how others name them, and what to do where they differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from torch import nn
from torch.nn.modules.conv import _ConvNd

from groupnorm.nn.weight_standardization import is_standardized

_ORIGINAL = "parametrizations.weight.original"


def renamed_keys(checkpoint: Collection[str], own: Collection[str], modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """The keys of the checkpoint that are those of weights which only one of both has standardised, and what they are.

    Args:
        checkpoint: keys of the state dict to load.
        own: keys of the model.
        modules: of the model, by path.
    """
    found = {}
    for key in checkpoint:
        names = [name for name in (_standardized(key, modules), _plain(key, modules)) if name in own]
        if key not in own and names and names[0] not in checkpoint:
            found[key] = names[0]
    return found


def some(keys: list[str]) -> str:
    """The first of these keys, and how many more there are."""
    more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
    return f"{keys[:5]}{more}" if keys else "nothing"


def remedy(own: Collection[str], checkpoint: Collection[str]) -> str:
    """What to do about a checkpoint of other keys: most often all of one side begin with the same words."""
    if words := _words_before(checkpoint, own):
        others = "" if all(key.startswith(words) for key in checkpoint) else f" if key.startswith({words!r})"
        return (
            f"its keys begin with {words!r}, those of the model do not: pass "
            f"{{key.removeprefix({words!r}): value for key, value in checkpoint.items(){others}}}"
        )
    if words := _words_before(own, checkpoint):
        path = words[:-1]
        part = f"model.{path}" if path.replace(".", "_").isidentifier() else f"model.get_submodule({path!r})"
        return f"the keys of the model begin with {words!r}, those of the checkpoint do not: pass {part}"
    return "load it with model.load_state_dict if it is of another network"


def _words_before(longer: Collection[str], shorter: Collection[str]) -> str:
    """The words, such as "module.", that one of two sets of keys has before those of the other; "" for none."""
    ends, found = set(shorter), Counter({"": 0, ".": 0})
    for key in longer:
        parts = key.split(".")
        rests = [".".join(parts[at:]) for at in range(len(parts))]
        found.update(key.removesuffix(rest) for rest in rests if rest in ends)
    (words, count), (_, next_count) = found.most_common(2)
    return words if count > max(next_count, len(ends) // 2) else ""


def name_of(key: str) -> str:
    """The name that a key has in its module, also under a parametrization."""
    return key.removesuffix(".original").rpartition(".")[2]


def parent_of(key: str) -> str:
    """Path of the module that a key belongs to, that of the norm for what a norm has under a parametrization."""
    path, _, name = key.rpartition(".")
    return path.partition(".parametrizations.")[0] if name == "original" else path


def _standardized(key: str, modules: Mapping[str, nn.Module]) -> str:
    """The key of a plain weight where the model standardises it, and does nothing else to it; "" elsewhere."""
    path, _, name = key.rpartition(".")
    layer = modules.get(path)
    if name != "weight" or layer is None or not is_standardized(layer):
        return ""
    steps = layer.parametrizations["weight"]  # type: ignore[index]
    return ".".join(filter(None, (path, _ORIGINAL))) if len(steps) == 1 else ""


def _plain(key: str, modules: Mapping[str, nn.Module]) -> str:
    """The key that a weight under a parametrization has without one; "" elsewhere than in layers with such weights."""
    if not key.endswith(_ORIGINAL):
        return ""
    path = key.removesuffix(_ORIGINAL)
    return f"{path}weight" if isinstance(modules.get(path.removesuffix(".")), (_ConvNd, nn.Linear)) else ""
