"""How the runs of a result were made and what their numbers can and cannot tell."""

from __future__ import annotations

from typing import Any

from groupnorm.lab.analysis.results import Results
from groupnorm.lab.common.metric import ERROR
from groupnorm.lab.common.trial import Cell

_COUNTS = {"train": "training {sample}s", "val": "validation {sample}s", "classes": "classes"}
_LIMITS = {"limit_train": "training {sample}s used", "limit_val": "validation {sample}s used"}

_TRAINING = """{model}, {optimizer}, {epochs} epochs for every run. The learning rate is {learning_rate} × batch size
    / 32 for every norm, {schedule}, and is tuned for none of them. {precision} on {device}."""
_SCHEDULES = {
    "cosine": "falls to zero along half a cosine",
    "step": "falls to a tenth after 30%, 60% and 90% of the epochs",
}
_OPTIMIZERS = {
    "sgd": "SGD with momentum {momentum} and weight decay {weight_decay}",
    "adamw": "AdamW with weight decay {weight_decay}",
}
_BATCH_SIZE = """The norm, the batch size and the seed. With the same number of epochs a small batch means more and
    smaller steps."""
_NORMALIZATION_BATCH = """The norm, the normalisation batch and the seed. Every step uses {batch_size} {sample}s; the
    normalisation batch is how many of them share batch statistics, as the images of one worker do in the paper."""
_METRIC = """Validation {metric} of the last epoch, not of the best one. The training {metric} is the mean over the last
    epoch's batches in training mode."""
_ALWAYS = {
    "Seeds": """A seed fixes the initial weights and the order of the data, the same for every norm, so that norms are
        compared in pairs. Intervals are 95% Student t intervals over seeds; they say nothing about other datasets or
        networks. p values are not corrected for the number of comparisons.""",
    "Runs without a result": """A run that is undefined, diverged or crashed enters no mean; it is counted and shown
        with its status. The mean of learning curves ends where the first seed stopped.""",
    "Speed": "As it was while the runs shared the machine: a hint, not a benchmark.",
}


def data_line(result: Results) -> str:
    """The dataset in one line."""
    dataset = result.request.get("dataset") or {}
    name = str(dataset.get("name") or _values(result.cells, "dataset"))
    counts = [
        f"{dataset[key]:,} {words.format(sample=result.task.sample)}"
        for key, words in _COUNTS.items()
        if isinstance(dataset.get(key), int)
    ]
    return ", ".join([name, *counts])


def notes(result: Results) -> dict[str, str]:
    """Headings and paragraphs of the notes, from the configuration of the cells."""
    cells = result.cells
    if not cells:
        return {}
    dataset = result.request.get("dataset") or {}
    said = [f"{data_line(result)}.", dataset.get("note"), _resolution(dataset, result)]
    found = {"Data": " ".join(str(part) for part in said if part)}
    limits = [
        f"{words.format(sample=result.task.sample)}: {_values(cells, key)}"
        for key, words in _LIMITS.items()
        if any(getattr(c, key) for c in cells)
    ]
    if limits:
        found["Reduced data"] = f"{'; '.join(limits)}. Numbers on a part of the data are not those of the dataset."
    if any(cell.image_size for cell in cells):
        found["Resized images"] = f"Side in pixels: {_values(cells, 'image_size', 'as stored')}."
    varies = _BATCH_SIZE if result.x == "batch_size" else _NORMALIZATION_BATCH
    title = result.metric.title
    found |= {"Training": _TRAINING, "What varies": varies, title: _METRIC}
    values = {name: _values(cells, name) for name in Cell.model_fields}
    values["optimizer"] = _OPTIMIZERS.get(cells[0].optimizer, cells[0].optimizer).format_map(values)
    values["schedule"] = _SCHEDULES[cells[0].schedule]
    values |= {"sample": result.task.sample, "metric": result.metric.name}
    for name in ("Training", "What varies", title):
        found[name] = found[name].format_map(values)
    return {title: " ".join(text.split()) for title, text in (found | _ALWAYS).items()}


def _resolution(dataset: dict[str, Any], result: Results) -> str:
    images = dataset.get("val")
    if result.metric != ERROR:
        return ""
    return f"One validation image is {100 / images:.2g}% of error." if isinstance(images, int) and images > 0 else ""


def _values(cells: list[Cell], name: str, none: str = "all") -> str:
    return ", ".join(dict.fromkeys(none if (v := getattr(cell, name)) is None else f"{v}" for cell in cells))
