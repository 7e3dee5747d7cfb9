"""Imports go one way, and the core imports torch alone."""

import ast
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
    *("errors", "tables", "files", "sets", "ops", "functional", "nn", "conversion"),
    *("environment", "lab", "bench", "cli"),
]
"""Each may import itself and those before it."""
TOOLS = ("lab", "bench", "cli")
"""What is built on the core, and needs more than torch."""
HEAVY = {
    *("triton", "matplotlib", "torchvision", "timm"),
    *("typer", "rich", "pydantic", "pandas", "scipy", "plotly", "jinja2", "sklearn", "tensorboard"),
    *("mlflow", "wandb", "ray", "submitit"),
}


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


def test_every_module_belongs_to_a_layer() -> None:
    assert {layer(name) for name in modules()} - {""} <= set(LAYERS)


@pytest.mark.parametrize("module", modules())
def test_imports_go_one_way(module: str) -> None:
    is_package = (ROOT / Path(*module.split(".")[1:]) / "__init__.py").exists()
    assert wrong_imports(module, modules()[module], is_package=is_package) == []


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
        ("groupnorm.lab.train", "from groupnorm.bench import cases"),
    ],
)
def test_a_wrong_import_is_seen(module: str, source: str) -> None:
    assert wrong_imports(module, source, is_package=module == "groupnorm")


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("groupnorm.sets", "from groupnorm.errors import ShapeError"),
        ("groupnorm.nn.factory", "from groupnorm.nn.catalog import CATALOG\nfrom .group_norm import GroupNorm"),
        ("groupnorm.lab.train", "from groupnorm import norm_layer\nimport torchvision"),
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
