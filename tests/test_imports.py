"""Imports go one way, and the core imports torch alone."""

import ast
import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import groupnorm
from groupnorm.ops.backends import COMPILED

ROOT = Path(groupnorm.__file__).parent
LAYERS = [
    *("errors", "import_path", "tables", "files", "sets", "ops", "functional", "nn", "conversion"),
    *("environment", "lab", "bench", "cli"),
]
"""Each may import itself and those before it."""
TOOLS = ("lab", "bench", "cli")
"""What is built on the core, and needs more than torch."""
LAB = [
    ("common", "data", "models", "tasks", "training", "regimes", "sweeps"),
    ("common", "analysis", "plots", "report"),
]
"""The wing that trains and the wing that reads, in the order of their imports. They meet in the store of ``common``."""
HEAVY = {
    *("triton", "matplotlib", "torchvision", "timm"),
    *("typer", "rich", "pydantic", "pandas", "scipy", "plotly", "jinja2", "sklearn", "tensorboard"),
    *("mlflow", "wandb", "ray", "submitit"),
}


@functools.cache
def modules() -> dict[str, str]:
    """Name and source of every module of the package."""
    names = {p: ".".join(("groupnorm", *p.relative_to(ROOT).with_suffix("").parts)) for p in ROOT.rglob("*.py")}
    return {name.removesuffix(".__init__"): path.read_text() for path, name in names.items()}


def layer(module: str) -> str:
    """``"nn"`` of ``"groupnorm.nn.factory"``; the package itself is ``""``."""
    return module.split(".")[1] if "." in module else ""


def imported(source: str, package: str) -> Iterator[str]:
    """Absolute names of all that a module imports, wherever the import stands; from-imports name what they take."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            stem = ".".join(part for part in (base, node.module) if part)
            yield from (f"{stem}.{alias.name}" for alias in node.names)


def wrong_imports(module: str, source: str, *, is_package: bool = False) -> list[str]:
    """What ``module`` imports from a layer above its own; the package itself may import the core."""
    package = module if is_package else module.rpartition(".")[0]
    mine = LAYERS.index(layer(module)) if layer(module) else LAYERS.index("conversion")
    within = [name for name in imported(source, package) if name.startswith("groupnorm.")]
    return [name for name in within if layer(name) in LAYERS and LAYERS.index(layer(name)) > mine]


def folder(module: str) -> str:
    """``"sweeps"`` of ``"groupnorm.lab.sweeps.local"``; ``""`` of what is not in the lab, and of the lab itself."""
    parts = module.split(".")
    return parts[2] if parts[:2] == ["groupnorm", "lab"] and len(parts) > 2 else ""


def wrong_folders(module: str, source: str, *, is_package: bool = False) -> list[str]:
    """What a module of the lab imports from a folder after its own, or from the other wing.

    ``api`` and ``experiments`` are above both wings.
    """
    mine = folder(module)
    allowed = {name for wing in LAB if mine in wing for name in wing[: wing.index(mine) + 1]}
    if mine in ("", "api", "experiments"):
        allowed = {*(name for wing in LAB for name in wing), "api", mine}
    package = module if is_package else module.rpartition(".")[0]
    within = [name for name in imported(source, package) if folder(name)]
    wrong = [name for name in within if folder(name) not in allowed]
    if module.startswith("groupnorm.lab.experiments.framework"):
        own = "groupnorm.lab.experiments.framework"
        wrong += [name for name in within if folder(name) == "experiments" and not name.startswith(own)]
    return wrong


def graph() -> dict[str, set[str]]:
    """The modules that each module imports, wherever the import stands."""
    every = modules()
    found: dict[str, set[str]] = {}
    for name, source in every.items():
        is_package = (ROOT / Path(*name.split(".")[1:]) / "__init__.py").exists()
        package = name if is_package else name.rpartition(".")[0]
        for_types = set(type_imports(source, package))
        names = [target for target in imported(source, package) if target not in for_types]
        found[name] = {module for target in names if (module := nearest(target, every)) and module != name}
    return found


def nearest(name: str, every: dict[str, str]) -> str:
    """The module that a name belongs to: itself, or what it is taken from; ``""`` of another package."""
    while name and name not in every:
        name = name.rpartition(".")[0]
    return name


def type_imports(source: str, package: str) -> Iterator[str]:
    """What is imported for type checkers alone."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            yield from imported("\n".join(ast.unparse(child) for child in node.body), package)


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Modules that import each other, directly or not."""
    order: list[str] = []
    seen: set[str] = set()
    for start in edges:
        stack = [(start, iter(sorted(edges[start])))]
        if start in seen:
            continue
        seen.add(start)
        while stack:
            node, rest = stack[-1]
            step = next((other for other in rest if other not in seen), None)
            if step is None:
                order.append(node)
                stack.pop()
            else:
                seen.add(step)
                stack.append((step, iter(sorted(edges[step]))))
    backwards: dict[str, set[str]] = {name: set() for name in edges}
    for name, others in edges.items():
        for other in others:
            backwards[other].add(name)
    found, taken = [], set[str]()
    for start in reversed(order):
        if start in taken:
            continue
        group, left = [], [start]
        taken.add(start)
        while left:
            node = left.pop()
            group.append(node)
            for other in backwards[node] - taken:
                taken.add(other)
                left.append(other)
        if len(group) > 1:
            found.append(sorted(group))
    return found


def test_every_module_belongs_to_a_layer() -> None:
    assert {layer(name) for name in modules()} - {""} <= set(LAYERS)


@pytest.mark.parametrize("module", modules())
def test_imports_go_one_way(module: str) -> None:
    is_package = (ROOT / Path(*module.split(".")[1:]) / "__init__.py").exists()
    assert wrong_imports(module, modules()[module], is_package=is_package) == []


@pytest.mark.parametrize("module", [name for name in modules() if name.startswith("groupnorm.lab")])
def test_the_folders_of_the_lab_are_imported_in_their_order(module: str) -> None:
    is_package = (ROOT / Path(*module.split(".")[1:]) / "__init__.py").exists()
    assert wrong_folders(module, modules()[module], is_package=is_package) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("groupnorm.lab.common.store", "from groupnorm.lab.data import load"),
        ("groupnorm.lab.training.loop", "from groupnorm.lab.sweeps import local"),
        ("groupnorm.lab.training.loop", "def f():\n    from groupnorm.lab.analysis import results"),
        ("groupnorm.lab.sweeps.runner", "from groupnorm.lab.api import Result"),
        ("groupnorm.lab.analysis.results", "from groupnorm.lab.plots import figures"),
        ("groupnorm.lab.plots.figures", "if TYPE_CHECKING:\n    from groupnorm.lab.api import Result"),
        ("groupnorm.lab.report", "from groupnorm.lab.training.loop import Training"),
        ("groupnorm.lab.api", "from groupnorm.lab.experiments import depth"),
        ("groupnorm.lab.experiments.framework.claim", "from groupnorm.lab.experiments import depth"),
    ],
)
def test_a_wrong_import_within_the_lab_is_seen(module: str, source: str) -> None:
    assert wrong_folders(module, source)


def test_no_modules_import_each_other() -> None:
    assert circles(graph()) == []


def test_a_circle_is_seen() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == [["b", "c"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("groupnorm.errors", "from groupnorm.sets import group_set"),
        ("groupnorm.sets", "import groupnorm.functional"),
        ("groupnorm.sets", "from groupnorm import functional"),
        ("groupnorm.sets", "from . import functional"),
        ("groupnorm.ops.reference", "from ..functional import group_norm"),
        ("groupnorm.ops.reference", "from .. import nn"),
        ("groupnorm.functional", "def f():\n    from groupnorm.nn import GroupNorm"),
        ("groupnorm.functional", "if TYPE_CHECKING:\n    from groupnorm.nn.group_norm import GroupNorm"),
        ("groupnorm.nn.factory", "import groupnorm.lab as lab"),
        ("groupnorm", "from groupnorm import lab"),
        ("groupnorm", "from groupnorm import bench"),
        ("groupnorm.lab.training.loop", "from groupnorm.bench import cases"),
    ],
)
def test_a_wrong_import_is_seen(module: str, source: str) -> None:
    assert wrong_imports(module, source, is_package=module == "groupnorm")


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("groupnorm.sets", "from groupnorm.errors import ShapeError"),
        ("groupnorm.nn.factory", "from groupnorm.nn.catalog import CATALOG\nfrom .group_norm import GroupNorm"),
        ("groupnorm.lab.training.loop", "from groupnorm import norm_layer\nimport torchvision"),
        ("groupnorm", "from groupnorm import errors, functional, nn"),
    ],
)
def test_a_right_import_is_not_accused(module: str, source: str) -> None:
    assert wrong_imports(module, source, is_package=module == "groupnorm") == []


def backend(module: str) -> str:
    """``"triton"`` of ``"groupnorm.ops.triton.forward"``; ``""`` of what belongs to no backend."""
    parts = module.split(".")
    return parts[2] if parts[:2] == ["groupnorm", "ops"] and len(parts) > 2 and parts[2] in COMPILED else ""


@pytest.mark.parametrize("module", modules())
def test_a_compiled_backend_is_imported_by_nobody(module: str) -> None:
    """Neither by another one nor by the core, which asks for it when it is wanted. Tools tell why it is missing."""
    is_package = (ROOT / Path(*module.split(".")[1:]) / "__init__.py").exists()
    package = module if is_package else module.rpartition(".")[0]
    foreign = {backend(name) for name in imported(modules()[module], package)} - {"", backend(module)}
    assert not foreign or layer(module) in TOOLS


MEASURING = ("accuracy", "cases", "check", "contenders", "machine", "measure", "steps", "store", "tensors", "timing")


def test_the_kernels_are_measured_where_there_is_torch_alone() -> None:
    """A machine with a GPU that is at hand for minutes has nothing else: see ``make gpu``."""
    code = "import sys; sys.modules |= dict.fromkeys(sys.argv[1].split()); import importlib\n"
    code += "for name in sys.argv[2:]: importlib.import_module(f'groupnorm.bench.{name}')"
    subprocess.run([sys.executable, "-c", code, " ".join((HEAVY | {"filelock"}) - {"triton"}), *MEASURING], check=True)


@pytest.fixture(scope="module")
def after_import() -> dict[str, object]:
    """What ``import groupnorm`` adds to ``import torch``, in a process of its own."""
    code = """
import json, sys
import torch
before = set(sys.modules)
import groupnorm
print(json.dumps({"loaded": sorted(set(sys.modules) - before), "cuda": torch.cuda.is_initialized()}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_the_core_loads_itself_and_the_standard_library_alone(after_import: dict[str, object]) -> None:
    loaded = {name.split(".")[0] for name in after_import["loaded"]}
    assert loaded - sys.stdlib_module_names == {"groupnorm"}
    assert not loaded & HEAVY


def test_the_core_does_not_load_the_tools(after_import: dict[str, object]) -> None:
    assert not any(layer(name) in TOOLS for name in after_import["loaded"])


def test_importing_does_not_initialise_cuda(after_import: dict[str, object]) -> None:
    assert after_import["cuda"] is False


def test_the_core_names_no_heavy_package_in_its_source() -> None:
    """Lazy imports too: the core never needs one. But a plan that is shown by rich is told how, and a backend is asked
    for by its name."""
    core = {n: source for n, source in modules().items() if layer(n) not in TOOLS and backend(n) != "triton"}
    found = {name: {i.split(".")[0] for i in imported(source, name)} & HEAVY for name, source in core.items()}
    assert {name: heavy for name, heavy in found.items() if heavy} == {"groupnorm.conversion.plan": {"rich"}}
