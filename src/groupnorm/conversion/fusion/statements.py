"""Reads in the text of a module's methods which of its norms are followed by an activation, whatever path is taken."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from groupnorm.conversion.fusion.activations import activation_of, passes, unseen
from groupnorm.conversion.fusion.source import Method, methods, names
from groupnorm.conversion.fusion.syntax import blocks, harmless, loads, parents_in, place, reaches, stores, target

Edit = tuple[str, int, int, int, int, str]
"""Method, the place of a node in its text, and what happens there: "skip" a call and take its argument, or "body" or
"orelse" of a condition, which cannot be reached."""

_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.GeneratorExp, ast.ClassDef)


@dataclass
class Use:
    """An activation called on what norms give.

    Attributes:
        activation: its name.
        label: as the text has it.
        norms: the calls of norms whose output it gets; no other value ever reaches it, and they go nowhere else.
        edit: which takes the call away.
        why: it has to stay.
    """

    activation: str
    label: str
    norms: list[ast.Call]
    edit: Edit
    why: str


@dataclass
class Reading:
    """What the methods of a module do with its norms.

    Attributes:
        uses: the activations on norms.
        calls: the calls of each norm, by its name in the module.
        why: the norm can have no activation.
        dead: which branches can never be reached with the settings of this module, and have norms in them.
    """

    uses: list[Use] = field(default_factory=list)
    calls: dict[str, list[ast.Call]] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)
    dead: list[Edit] = field(default_factory=list)


def read(module: nn.Module, norms: set[str]) -> Reading:
    """Read the methods of ``module``.

    A norm is called in the form ``activation(self.norm(x))``, or the activation is called on the name that the
    statement right before gave to the norm's output, and this name is used nowhere else.

    Args:
        module: whose children the norms are.
        norms: their names in it.
    """
    found = Reading(calls={name: [] for name in norms})
    if why := unseen(module) if "forward" in vars(module) else "":
        found.why = dict.fromkeys(norms, why)
        return found
    if why := reaches(type(module)):
        found.why = dict.fromkeys(norms, why)
    found.why |= {name: f"{type(module).__name__} has another {name}" for name in norms if hasattr(type(module), name)}
    for method in methods(type(module)):
        mentioned = norms & names(method.function.__code__)
        if not mentioned:
            continue
        if not method.text or not method.plain:
            what = "cannot be read as text" if not method.text else "is decorated, overridden or no plain method"
            found.why |= dict.fromkeys(mentioned, f"{method.where} {what}")
        else:
            _Reader(module, norms, method, found).read()
    return found


class _Reader:
    def __init__(self, module: nn.Module, norms: set[str], method: Method, found: Reading) -> None:
        self.module, self.norms, self.method, self.found = module, norms, method, found
        self.tree = method.parse()
        arguments = self.tree.args.posonlyargs + self.tree.args.args
        self.self = arguments[0].arg if arguments else ""

    def read(self) -> None:
        self._prune()
        self.parents = parents_in(self.tree)
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call) and (what := self._activation(node)) is not None:
                calls = self._norms_of(node)
                if calls:
                    label = ast.unparse(node.func).removeprefix(f"{self.self}.")
                    self.found.uses.append(Use(what[0], label, calls, self._edit(node, "skip"), what[1]))
        handed = self._handed_on()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Attribute) and node.attr in self.norms:
                above = self.parents.get(node)
                if self._own(node) and isinstance(above, ast.Call) and above.func is node:
                    self.found.calls[node.attr].append(above)
                    if handed:
                        self.found.why[node.attr] = f"{self.method.where} hands on {self.self}"
                elif not harmless(node, self.parents):
                    self.found.why[node.attr] = f"{self.method.where} uses it other than by a call"
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in self.norms:
                self.found.why[node.value] = f"{self.method.where} has its name as a text"

    def _prune(self) -> None:
        """Take out branches that have norms in them and that the module's settings forbid."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.If) and (value := self._decide(node.test)) is not None:
                branch = "orelse" if value else "body"
                block: list[ast.stmt] = getattr(node, branch)
                inside = {n.attr for part in block for n in ast.walk(part) if isinstance(n, ast.Attribute)}
                if inside & self.norms:
                    self.found.dead.append(self._edit(node, branch))
                    setattr(node, branch, [ast.copy_location(ast.Raise(), node)])

    def _decide(self, test: ast.expr) -> bool | None:
        """The value of a condition on a setting of the module: a text, or None."""
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            value = self._decide(test.operand)
            return None if value is None else not value
        if not (isinstance(test, ast.Compare) and len(test.ops) == 1 and self._own(test.left)):
            return None
        constant = test.comparators[0]
        assert isinstance(test.left, ast.Attribute)
        setting = self._setting(test.left.attr, self)
        if not isinstance(constant, ast.Constant) or setting is self:
            return None
        if constant.value is None and isinstance(test.ops[0], (ast.Is, ast.IsNot)):
            return (setting is None) == isinstance(test.ops[0], ast.Is)
        if type(setting) is type(constant.value) is str and isinstance(test.ops[0], (ast.Eq, ast.NotEq)):
            return (setting == constant.value) == isinstance(test.ops[0], ast.Eq)
        return None

    def _setting(self, name: str, default: Any = None) -> Any:
        """What the module has under a name, unless its class makes that up anew."""
        if hasattr(type(self.module), name):
            return default
        return {**self.module._modules, **vars(self.module)}.get(name, default)

    def _activation(self, call: ast.Call) -> tuple[str, str] | None:
        """Which activation a call is, and why it has to stay; None where it is none."""
        activation, why = activation_of(self._object(call.func))
        if not activation or len(call.args) != 1:
            return None
        if any(keyword.arg != "inplace" for keyword in call.keywords):
            return activation, f"{ast.unparse(call.func)} gets further arguments"
        return activation, why

    def _object(self, node: ast.expr) -> Any:
        """What an expression is, where that is an attribute of the module or of a global."""
        if self._own(node):
            assert isinstance(node, ast.Attribute)
            return self._setting(node.attr)
        if isinstance(node, ast.Attribute):
            base = self._object(node.value)
            return None if base is None or isinstance(base, nn.Module) else getattr(base, node.attr, None)
        stored = {n.id for n in ast.walk(self.tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        arguments = {n.arg for n in ast.walk(self.tree) if isinstance(n, ast.arg)}
        if isinstance(node, ast.Name) and node.id not in stored | arguments:
            return self.method.function.__globals__.get(node.id)
        return None

    def _own(self, node: ast.AST) -> bool:
        return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == self.self

    def _norm_call(self, node: ast.AST) -> ast.Call | None:
        """The call of a norm, perhaps within modules that hand on their input."""
        while isinstance(node, ast.Call):
            if self._own(node.func) and node.func.attr in self.norms:  # type: ignore[attr-defined]
                return node
            if not (passes(self._object(node.func)) and len(node.args) == 1):
                return None
            node = node.args[0]
        return None

    def _norms_of(self, activation: ast.Call) -> list[ast.Call]:
        """The calls of norms whose output, and nothing else, an activation gets; none where this is not certain."""
        argument = activation.args[0]
        if (call := self._norm_call(argument)) is not None:
            return [call]
        if not isinstance(argument, ast.Name) or self._escapes(argument.id):
            return []
        statement, above = self._statement(activation)
        block = next((b for b in blocks(above) if statement in b), [])
        if not isinstance(statement, (ast.Assign, ast.Return)) or len(loads(statement, argument.id)) != 1:
            return []
        gone = isinstance(statement, ast.Return) or target(statement) == argument.id
        before = block.index(statement) - 1
        found = None if before < 0 else self._made(block, before, argument.id)
        return found if found and (gone or len(loads(self.tree, argument.id)) == 1) else []

    def _made(self, block: list[ast.stmt], index: int, name: str) -> list[ast.Call] | None:
        """The calls of norms, of which one gave ``name`` its value once this statement is done; None: not certain."""
        statement = block[index]
        if isinstance(statement, ast.If):
            branches = [self._end(branch, name) for branch in (statement.body, statement.orelse)]
            return None if None in branches else [call for branch in branches for call in branch or ()]
        if target(statement) != name:
            return None
        value = statement.value  # type: ignore[attr-defined]
        if (call := self._norm_call(value)) is not None:
            return [call]
        if (  # name = self.identity(name)
            isinstance(value, ast.Call)
            and passes(self._object(value.func))
            and [ast.unparse(a) for a in value.args] == [name]
            and index
        ):
            return self._made(block, index - 1, name)
        return None

    def _end(self, block: list[ast.stmt], name: str) -> list[ast.Call] | None:
        if not block:
            return None
        if isinstance(block[-1], (ast.Raise, ast.Return, ast.Continue, ast.Break)):
            return []
        return self._made(block, len(block) - 1, name)

    def _escapes(self, name: str) -> bool:
        """Whether functions within the method, or others, may read a name at another time."""
        for node in ast.walk(self.tree):
            if isinstance(node, (ast.Global, ast.Nonlocal)) and name in node.names:
                return True
            if isinstance(node, _SCOPES) and node is not self.tree and (loads(node, name) or stores(node, name)):
                return True
        return False

    def _statement(self, node: ast.AST) -> tuple[ast.stmt, ast.AST]:
        while not isinstance(node, ast.stmt):
            node = self.parents[node]
        return node, self.parents.get(node, self.tree)

    def _handed_on(self) -> bool:
        """Whether something else gets the module, and may use its norms."""
        own = [n for n in ast.walk(self.tree) if isinstance(n, ast.Name) and n.id == self.self]
        return not all(isinstance(self.parents[n], ast.Attribute) or self._only_asked(n) for n in own)

    def _only_asked(self, node: ast.Name) -> bool:
        """Whether it stands in ``isinstance(self, ...)``, ``hasattr(self, ...)`` or ``getattr(self, "name")``."""
        call = self.parents[node]
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.args[0] is node):
            return False
        constant = len(call.args) > 1 and isinstance(call.args[1], ast.Constant)
        return call.func.id in ("isinstance", "hasattr") or (call.func.id == "getattr" and constant)

    def _edit(self, node: ast.expr | ast.stmt, what: str) -> Edit:
        return self.method.name, *place(node), what
