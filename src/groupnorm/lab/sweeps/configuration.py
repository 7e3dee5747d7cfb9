"""What `compare` is asked to do, validated as a whole before anything trains."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from groupnorm.environment import cores
from groupnorm.errors import GroupNormError, UnknownNameError, divisors
from groupnorm.import_path import resolve
from groupnorm.lab import models, regimes, tasks
from groupnorm.lab.common.trial import Cell
from groupnorm.lab.data.augmentation import augmentation
from groupnorm.lab.models.identity import digest
from groupnorm.lab.models.marking import ignored
from groupnorm.lab.sweeps.trackers import TRACKERS
from groupnorm.lab.tasks import TASKS, Data
from groupnorm.lab.training import optimizers
from groupnorm.lab.training.setup import data_options
from groupnorm.nn.catalog import replacements
from groupnorm.nn.factory import check_spec
from groupnorm.nn.own import spec_of


class ConfigurationError(GroupNormError, ValueError):
    """Everything that is wrong with a configuration, at once.

    Attributes:
        problems: one message each.
    """

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.problems,)


def _split(value: Any) -> Any:
    """Accept "32,16" for a tuple, and a single value for a tuple of one."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return (value,) if isinstance(value, int) else value


class Comparison(BaseModel):
    """The configuration of a sweep: every norm with every batch size and every seed.

    Attributes:
        dataset: name, ``folder:PATH`` with ``train/CLASS/*.jpg`` and ``val/CLASS/*.jpg``, or
            ``package.module:function``; see ``groupnorm ls datasets``.
        model: name or ``package.module:factory``; see ``groupnorm ls models``.
        norms: specs; see ``groupnorm ls norms``. "all" is every norm that replaces batch norm.
        batch_sizes: images per step of the optimiser.
        normalization_batches: images that share batch statistics, each at most and a divisor of every batch size;
            empty means the whole batch. Several only with a single batch size.
        seeds: number of seeds, 0 to ``seeds - 1``.
        epochs: passes over the training images.
        learning_rate: for 32 images, scaled in proportion to the batch size.
        momentum: of SGD.
        weight_decay: of SGD.
        limit_train: use this many training images; None is all.
        limit_val: use this many validation images; None is all.
        image_size: resize images to this side in pixels; None keeps them.
        data_dir: where the datasets lie; None is ``$GROUPNORM_DATA_DIR``, else the user's cache.
        device: "cpu" or "cuda"; "auto" is cuda where there is one.
        precision: "fp32" or "bf16" (autocast).
        threads: CPU threads of each worker.
        workers: processes; None is one for each ``threads`` cores, and one on a GPU. On a cluster, cells that train at
            the same time; None is all that there is room for.
        scheduler: where cells are trained: "local", on a "ray" cluster, or by "slurm".
        address: of the Ray cluster; None is the one that this machine belongs to.
        slurm: parameters of Slurm's jobs, such as ``slurm_partition``, as ``name=value`` or a dict.
        track: where the records go besides the run folder: any of tensorboard, mlflow, wandb.
        schedule: of the learning rate, "cosine" or "step".
        warmup_epochs: epochs in which the learning rate rises from zero.
        augment: what happens to each training image; see :class:`groupnorm.lab.common.trial.Cell`.
        processes: processes that share each batch, on a GPU each or on ``threads`` cores each; see
            :mod:`groupnorm.lab.training.ddp`.
        task: what is learned: a name of :data:`groupnorm.lab.tasks.TASKS`, or ``package.module:Class`` of a
            :class:`groupnorm.lab.tasks.Task`; None is classification. Without a dataset or a model, those of the task.
        options: what task and regime take besides, as ``name=value`` or a dict.
        regime: how the data and the gradients come: a name of :data:`groupnorm.lab.regimes.REGIMES`, or
            ``package.module:Class`` of a :class:`groupnorm.lab.training.loop.Training`.
        optimizer: "sgd", "adamw", or ``package.module:function`` from parameters to an optimizer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    dataset: str = "digits"
    model: str = "resnet-tiny"
    norms: Annotated[tuple[str, ...], Field(min_length=1)] = ("bn", "gn", "ln", "in")
    batch_sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (32, 16, 8, 4, 2)
    normalization_batches: tuple[PositiveInt, ...] = ()
    seeds: PositiveInt = 3
    epochs: PositiveInt = 5
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-4
    limit_train: PositiveInt | None = None
    limit_val: PositiveInt | None = None
    image_size: PositiveInt | None = None
    data_dir: Path | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    threads: PositiveInt = 1
    workers: PositiveInt | None = None
    scheduler: Literal["local", "ray", "slurm"] = "local"
    address: str | None = None
    slurm: dict[str, str] = {}
    track: tuple[str, ...] = ()
    schedule: Literal["cosine", "step"] = "cosine"
    warmup_epochs: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    augment: str = "none"
    processes: PositiveInt = 1
    task: str | None = None
    options: dict[str, Any] = {}
    regime: str = "standard"
    optimizer: str = "sgd"

    @model_validator(mode="before")
    @classmethod
    def _of_the_task(cls, given: Any) -> Any:
        """Dataset and model of the task, where none is named."""
        task = TASKS.get(given.get("task") or "") if isinstance(given, dict) else None
        if task is None:
            return given
        return {"dataset": task.dataset, "model": task.model} | {k: v for k, v in given.items() if v is not None}

    @field_validator("options", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        """Accept ``"a=1,b=true"``, with values as JSON has them, or texts."""
        return {name: _json(text) for name, text in _pairs(value).items()} if isinstance(value, str) else value

    @field_validator("norms", mode="before")
    @classmethod
    def _all(cls, value: Any) -> Any:
        if isinstance(value, str) or not isinstance(value, Iterable):
            value = _split(value) if isinstance(value, str) else (value,)
        norms = tuple(value)
        return tuple(replacements()) if norms == ("all",) else tuple(map(_spec_of, norms))

    _lists = field_validator("norms", "batch_sizes", "normalization_batches", "track", mode="before")(_split)

    @field_validator("slurm", mode="before")
    @classmethod
    def _parameters(cls, value: Any) -> Any:
        """Accept ``"a=1,b=2"``."""
        return _pairs(value) if isinstance(value, str) else value

    @field_validator("scheduler")
    @classmethod
    def _installed(cls, scheduler: str) -> str:
        package = {"ray": "ray", "slurm": "submitit"}.get(scheduler)
        if package and importlib.util.find_spec(package) is None:
            raise ValueError(
                f"{scheduler!r} needs {package}, which is not installed here; pip install 'groupnorm[cluster]'"
            )
        return scheduler

    @field_validator("norms", "batch_sizes", "normalization_batches")
    @classmethod
    def _unique(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(values)) < len(values):
            raise ValueError(f"{_listed(values)} names a value twice; expected each once")
        return values

    @field_validator("norms")
    @classmethod
    def _known_norms(cls, norms: tuple[str, ...]) -> tuple[str, ...]:
        _all_of(check_spec, norms)
        return norms

    @field_validator("model")
    @classmethod
    def _known_model(cls, model: str) -> str:
        models.find(model)
        return model

    @field_validator("normalization_batches")
    @classmethod
    def _divides(cls, values: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        sizes = info.data.get("batch_sizes", ())
        if len(values) > 1 and len(sizes) > 1:
            raise ValueError(
                f"several normalization batches ({_listed(values)}) with several batch sizes ({_listed(sizes)}); "
                f"expected one of the two to vary: give a single batch size"
            )
        wrong = [(n, size) for n in values for size in sizes if size % n]
        if wrong:
            raise ValueError(
                "; ".join(
                    f"normalization batch {n} does not divide batch size {size}; use one of {divisors(size)}"
                    for n, size in wrong
                )
            )
        return values

    @field_validator("track")
    @classmethod
    def _known_trackers(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in TRACKERS:
                raise ValueError(str(UnknownNameError("tracker", name, TRACKERS)))
            if importlib.util.find_spec(name) is None:
                raise ValueError(f"tracker {name!r} is not installed here; pip install 'groupnorm[track]'")
        return names

    @field_validator("device")
    @classmethod
    def _available(cls, device: str) -> str:
        if device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device 'cuda' is not available to torch here; expected 'cpu' (see `groupnorm doctor`)")
        if device == "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        return device

    @field_validator("processes")
    @classmethod
    def _shareable(cls, processes: int, info: ValidationInfo) -> int:
        sizes = info.data.get("batch_sizes", ())
        wrong = [
            f"{processes} processes cannot share a batch of {size} equally; use one of {divisors(size)}"
            for size in sizes
            if size % processes
        ]
        wrong += [
            f"normalization batch {n} does not divide the {size // processes} images that each of {processes} "
            f"processes takes of a batch of {size}; use one of {divisors(size // processes)}"
            for n in info.data.get("normalization_batches", ())
            for size in sizes
            if size % processes == 0 and size // processes % n
        ]
        here = info.data.get("device") == "cuda" and info.data.get("scheduler") == "local"
        if here and processes > (gpus := torch.cuda.device_count()):
            wrong.append(f"{processes} processes take a GPU each, and torch sees {gpus}; use at most {gpus}, or 'cpu'")
        if wrong:
            raise ValueError("; ".join(wrong))
        return processes

    @field_validator("task")
    @classmethod
    def _known_task(cls, name: str | None, info: ValidationInfo) -> str | None:
        task = tasks.find(name)
        given = info.data
        foreign = [
            key for key in ("image_size", "limit_train", "limit_val") if given.get(key) and key not in task.takes
        ]
        foreign += ["augment"] * (given.get("augment", "none") != "none" and "augment" not in task.takes)
        if foreign:
            raise ValueError(f"{task.name} takes no {_listed(foreign)}; leave that out")
        if given.get("normalization_batches") and not task.splittable:
            raise ValueError(f"{task.name} cannot split a batch; leave normalization_batches out")
        if given.get("processes", 1) > 1 and not task.parallel:
            raise ValueError(f"{task.name} is made for one process; use processes=1")
        return name

    @field_validator("regime")
    @classmethod
    def _known_regime(cls, regime: str, info: ValidationInfo) -> str:
        kind: Any = regimes.find_for(info.data.get("task"), regime)
        if (processes := info.data.get("processes", 1)) > 1 and not getattr(kind, "parallel", False):
            raise ValueError(
                f"{getattr(kind, '__name__', regime)!r} is made for one process, and processes is {processes}; use "
                f"processes=1, or declare parallel = True"
            )
        allowed, task = getattr(kind, "tasks", None), tasks.find(info.data.get("task"))
        if allowed is not None and task.name not in allowed:
            raise ValueError(f"{regime!r} is a regime of {_listed(sorted(allowed))}; {task.name} does not have it")
        if (known := getattr(kind, "options", None)) is not None:
            known |= task.options
            if unknown := [name for name in info.data.get("options", ()) if name not in known]:
                raise ValueError(
                    f"it takes no option {_listed(unknown)}; expected of {_listed(sorted(known)) or 'none'}"
                )
        return regime

    @field_validator("optimizer")
    @classmethod
    def _known_optimizer(cls, optimizer: str) -> str:
        optimizers.find(optimizer)
        return optimizer

    @field_validator("augment")
    @classmethod
    def _known_augmentation(cls, augment: str) -> str:
        augmentation(augment)
        return augment

    @property
    def worker_count(self) -> int | None:
        """Number of bundles of cells that train at the same time; None is as many as a cluster has room for."""
        if self.workers is not None or self.scheduler != "local":
            return self.workers
        return 1 if self.device == "cuda" else max(1, cores() // (self.threads * self.processes))

    def load(self) -> Data:
        """The dataset that all cells train on."""
        task = tasks.find(self.task)
        return task.load(self.dataset, self.data_dir, **data_options(self, task))

    def command(self, out: Path) -> list[str]:
        """The command line that asks for this configuration: the axes of the sweep, and all that is not default."""
        shown = ("dataset", "model", "norms", "batch_sizes", "seeds", "epochs")
        words = ["groupnorm", "compare"]
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if name not in shown and (value == field.default or (name == "device" and value == "cpu")):
                continue
            flag = "--" + {"normalization_batches": "normalization_batch"}.get(name, name).replace("_", "-")
            words += [flag, _written(value)]
        return [*words, "--out", str(out)]

    def model_digests(self, dataset: Data) -> dict[str, str | None]:
        """Of each norm, the digest of the network that is built with it; see :mod:`groupnorm.lab.models.identity`."""
        example = tasks.find(self.task).example(dataset)
        return {norm: digest(self.model, norm, example, dataset.outputs) for norm in self.norms}

    def cells(self, data_digest: str, model_digests: Mapping[str, str | None] | None = None) -> list[Cell]:
        """All cells: norms, then batch sizes, then normalization batches, then seeds.

        Args:
            data_digest: of the dataset.
            model_digests: as :meth:`model_digests` returns them; None is a network of this package.
        """
        shared = self.model_dump(include=set(Cell.model_fields) & set(type(self).model_fields))
        return [
            Cell(
                **shared,
                data_digest=data_digest,
                model_digest=(model_digests or {}).get(norm),
                norm=norm,
                batch_size=size,
                normalization_batch=part if part != size // self.processes else None,
                seed=seed,
            )
            for norm in self.norms
            for size in self.batch_sizes
            for part in self.normalization_batches or (None,)
            for seed in range(self.seeds)
        ]


def plan(**options: Any) -> tuple[Comparison, Data]:
    """Validate a whole configuration: its values, its data and its networks.

    Args:
        **options: the attributes of :class:`Comparison`.

    Raises:
        ConfigurationError: lists every problem found.
    """
    problems: list[str] = []
    comparison: Comparison | None = None
    dataset: Data | None = None
    try:
        comparison = Comparison(**options)
    except ValidationError as error:
        details = error.errors()
        elements = {detail["loc"][0] for detail in details if len(detail["loc"]) > 1}
        problems += [_message(d) for d in details if not (d["type"] == "too_short" and d["loc"][0] in elements)]
    try:
        keys = ("dataset", "data_dir", "image_size", "limit_train", "limit_val", "task")
        wanted = Comparison.model_construct(**{k: options[k] for k in keys if k in options})
        dataset = comparison.load() if comparison else wanted.load()
    except GroupNormError as error:
        problems.append(f"dataset: {error}")
    except (Exception, SystemExit) as error:  # a function of the user's own may raise anything
        if comparison is not None:  # else the cause may be a value that is reported already
            problems.append(f"dataset: {options.get('dataset')!r} raised {type(error).__name__}: {error}")
    if comparison is not None and dataset is not None:
        problems += _problems_with_sizes(comparison, dataset)
        problems += _problems_with_networks(comparison, dataset)
    if problems:
        raise ConfigurationError(problems)
    assert comparison is not None
    assert dataset is not None
    return comparison, dataset


def _problems_with_sizes(comparison: Comparison, dataset: Data) -> list[str]:
    count, sample = len(dataset.train_targets), tasks.find(comparison.task).sample
    return [
        f"batch_sizes: {size} is more than the {count} training {sample}s; expected at most {count}"
        for size in comparison.batch_sizes
        if size > count
    ]


def _problems_with_networks(comparison: Comparison, dataset: Data) -> list[str]:
    """Build the network with each norm and give it two samples, in evaluation mode so that no norm refuses."""
    problems: list[str] = []
    task = tasks.find(comparison.task)
    example = task.example(dataset)
    random_state = torch.get_rng_state()
    for norm in comparison.norms:
        try:
            network = task.build(comparison.model, norm, dataset, example)
            with torch.no_grad():
                task.check_output(network.eval()(example), dataset, len(example))
            if problem := ignored(network, norm):
                problems.append(f"model: {comparison.model!r} ignores norm {norm!r}: the network {problem}")
        except (Exception, SystemExit) as error:  # a network of the user's own may raise anything
            shape = tuple(example.shape[1:])
            problems.append(
                f"model: {comparison.model!r} with norm {norm!r} cannot take {task.sample}s of shape {shape}: "
                f"{str(error) or type(error).__name__}"
            )
    torch.set_rng_state(random_state)
    return problems


def _all_of(check: Callable[[str], None], values: Iterable[str]) -> None:
    """Run a check on every value and raise all its messages together."""
    messages = []
    for value in values:
        try:
            check(value)
        except GroupNormError as error:
            messages.append(str(error))
    if messages:
        raise ValueError("; ".join(messages))


def _message(detail: Any) -> str:
    if detail["type"] == "extra_forbidden":
        return str(UnknownNameError("option", str(detail["loc"][0]), Comparison.model_fields))
    place = ".".join(str(part) for part in detail["loc"]) or "configuration"
    message = detail["msg"].removeprefix("Value error, ")
    given = "" if detail["type"] == "value_error" else f"; got {detail['input']!r}"
    return f"{place}: {message}{given}"


def _spec_of(norm: Any) -> Any:
    """The spec of a norm that is given as a class or function; workers have to find it by its path."""
    if isinstance(norm, str) or not callable(norm):
        return norm
    spec = spec_of(norm)
    if resolve(spec, "norm") is not norm:
        raise ValueError(f"{spec} is another norm than the one given; expected one that its path leads to")
    return spec


def _pairs(text: str) -> dict[str, str]:
    """``"a=1,b=2"`` as a dictionary."""
    pairs = [part.partition("=") for part in _split(text)]
    if wrong := [name for name, equals, _ in pairs if not equals]:
        raise ValueError(f"{_listed(wrong)} has no value; expected name=value,name=value")
    return {name.strip(): value.strip() for name, _, value in pairs}


def _json(text: str) -> Any:
    """A value as JSON has it; what is none is a text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _written(value: Any) -> str:
    """An option's value as the command line takes it."""
    if isinstance(value, dict):
        return _listed(
            f"{name}={setting if isinstance(setting, str) else json.dumps(setting)}" for name, setting in value.items()
        )
    return _listed(value) if isinstance(value, tuple) else str(value)


def _listed(values: Iterable[Any]) -> str:
    return ",".join(str(value) for value in values)
