"""What the code around a module does with its parts."""

from __future__ import annotations

import ast

from torch import nn

from groupnorm.conversion.fusion.source import is_sequential, methods, names
from groupnorm.conversion.fusion.syntax import harmless, parents_in, reaches
from groupnorm.conversion.fusion.traced import is_container
from groupnorm.conversion.sites import Site


def not_called(sequence: Site, every: dict[nn.Module, Site]) -> str:
    """Why something else may use the parts of a sequence; "" where it is called as a whole, if at all."""
    if "forward" in vars(sequence.module):
        return f"the forward of this very {type(sequence.module).__name__} was replaced"
    for parent, name in sequence.places:
        kind = type(parent)
        if is_sequential(parent):
            why = not_called(every[parent], every)
        elif is_container(parent):
            why = f"it is in a {kind.__name__}, and what uses that is not known"
        else:
            why = reaches(kind) or _not_called_by(kind, name)
        if why:
            return why
    return ""


def _not_called_by(kind: type, name: str) -> str:
    mentioned = [method for method in methods(kind) if name in names(method.function.__code__)]
    for method in mentioned:
        if not method.text:
            return f"{method.where} cannot be read as text"
        tree = method.parse()
        parents = parents_in(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr == name and not harmless(node, parents):
                above = parents[node]
                if not (isinstance(above, ast.Call) and above.func is node):
                    return f"{method.where} uses {name} other than by a call"
    return "" if mentioned else f"nothing is known of how {kind.__name__} uses {name}"


def reached_in(model: nn.Module, wanted: set[str]) -> dict[str, str]:
    """Names that a method of the model looks for in other modules than its own, and the method."""
    found = {}
    for kind in {type(module) for module in model.modules()}:
        for method in methods(kind):
            if wanted & set(method.function.__code__.co_names) and method.text:
                tree = method.parse()
                own = tree.args.args[0].arg if tree.args.args else ""
                parents = parents_in(tree)
                for node in ast.walk(tree):
                    if (
                        isinstance(node, ast.Attribute)
                        and node.attr in wanted
                        and not (isinstance(node.value, ast.Name) and node.value.id == own)
                        and not harmless(node, parents)
                    ):
                        found[node.attr] = method.where
    return found
