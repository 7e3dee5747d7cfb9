"""``groupnorm doctor``: versions, devices, what is available and why not."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

_EXTRAS = {
    "torchvision": "its networks and datasets",
    "scikit-learn": "the digits",
    "plotly": "the report",
    "matplotlib": "the figures",
    "tensorboard": "--track tensorboard",
    "mlflow": "--track mlflow",
    "wandb": "--track wandb",
    "ray": "--scheduler ray",
    "submitit": "--scheduler slurm",
    "timm": "only its own networks",
}


def doctor() -> None:
    """Show versions, devices, and what is available and why not."""
    from groupnorm.environment import cores, environment
    from groupnorm.lab.data import default_data_dir

    stamp = environment()
    table = Table("what", "found", "remark", show_lines=False)
    for key in ("groupnorm", "revision", "python", "torch", "platform", "cpu"):
        table.add_row(key, str(stamp[key] or "-"), "")
    table.add_row("cores", str(cores()), "workers that compare starts")
    table.add_row("cuda", stamp["gpu"] or "no", _why_no_cuda())
    for backend, found, remark in _backends():
        table.add_row(backend, found, remark)
    for package, purpose in _EXTRAS.items():
        table.add_row(package, _version(package), purpose)
    folder = default_data_dir()
    table.add_row("data folder", str(folder), "exists" if folder.is_dir() else "made when a download needs it")
    Console(emoji=False).print(table)


def _backends() -> Iterator[tuple[str, str, str]]:
    """Each compiled backend: what it runs on, and why it does not run."""
    import torch

    from groupnorm.ops import cpu
    from groupnorm.ops.backends import compiled, refusal
    from groupnorm.ops.gpu import architecture
    from groupnorm.ops.spec import CONTIGUOUS, Spec

    on = {
        "cpu": f"for {cpu.instruction_set() or torch.backends.cpu.get_cpu_capability()}",
        "triton": f"triton {_version('triton')}",
    }
    for name, device in (("cpu", "cpu"), ("triton", "cuda")):
        gpu = architecture(torch.device(device))
        spec = Spec(device, torch.float32, (2, 32, 64, 64), CONTIGUOUS, 32, None, True, gpu)
        if reason := refusal(spec, name):
            remark = f"does not run: {reason}"
        elif reason := compiled(name).drawback(spec):
            remark = f"runs where it is asked for: {reason}"
        else:
            remark = "runs"
        yield f"backend {name}", on[name], remark


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _why_no_cuda() -> str:
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} device(s), CUDA {torch.version.cuda}"
    if torch.version.cuda is None:
        return "this torch was built without CUDA"
    return f"torch was built for CUDA {torch.version.cuda}, but no driver or device was found"
