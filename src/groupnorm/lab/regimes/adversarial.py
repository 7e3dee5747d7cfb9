"""Networks under attack, and trained under attack (Madry et al. 2018, arXiv:1706.06083)."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from groupnorm.lab.data.source import permutation
from groupnorm.lab.regimes.images import ImageTraining
from groupnorm.lab.regimes.pgd import pgd

RADII = (2, 4, 8)
"""Of 255, from black to white."""

_PART = 250  # images attacked together


class Attacked(ImageTraining):
    """After the last epoch, ``"attacked 8"`` is the error within 8 of 255.

    Options: ``white``, the largest value that a stored image may have, 255 unless given; ``images``, how many of the
    validation images are attacked, 500 unless given, by ``steps`` steps (10) of 2.5 times the radius in all.
    """

    stackable = True
    parallel = True
    options = frozenset({"white", "images", "steps"})

    def measure(self) -> dict[str, float]:
        """Also the errors under attack, in percent."""
        return super().measure() | (self._attacked() if self.finished else {})

    def _attacked(self) -> dict[str, float]:
        steps = self.cell.options.get("steps", 10)
        chosen = permutation(len(self.dataset.val_labels))[: self.cell.options.get("images", 500)]
        found: dict[str, float] = {}
        for radius in RADII:
            wrong = 0
            for place, part in enumerate(chosen.split(_PART)):
                images = self.dataset.val_images[part].to(self.device).float()
                labels = self.dataset.val_labels[part].to(self.device)
                start = Generator().manual_seed(place)
                changed = self.attack(images, labels, radius, steps, 2.5 * radius / steps, start)
                with torch.no_grad():
                    wrong += int((self._logits(changed).argmax(1) != labels).sum())
            found[f"attacked {radius}"] = 100 * wrong / len(chosen)
        return found

    def attack(
        self, images: Tensor, labels: Tensor, radius: float, steps: int, step_size: float, start: Generator
    ) -> Tensor:
        """Stored ``images`` under attack; ``radius`` and ``step_size`` in 255ths. Leaves evaluation mode on."""
        self.model.eval()
        white = self.cell.options.get("white", 255)
        unit = white / 255
        return pgd(
            self._logits, images, labels, radius=radius * unit, steps=steps, step_size=step_size * unit,
            white=white, generator=start,
        )  # fmt: skip

    def _logits(self, images: Tensor) -> Tensor:
        with self.autocast():
            logits: Tensor = self.model(self.inputs(images))
        return logits


class Adversarial(Attacked):
    """Trains on attacked images alone, within 8 of 255 (Madry et al. 2018).

    Options besides: ``training_steps`` (3) of ``training_step_size`` 255ths (4). The attack sees the network in
    evaluation mode, so that it does not move running statistics; the step that follows is as ever.
    """

    options = Attacked.options | {"training_steps", "training_step_size"}

    def step(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """One step of the optimiser on the batch as the attack leaves it."""
        options = self.cell.options
        mean, std = self.dataset.mean.to(self.device), self.dataset.std.to(self.device)
        start = Generator().manual_seed(int(torch.randint(2**31, ())))
        changed = self.attack(
            inputs * std + mean,
            targets,
            RADII[-1],
            options.get("training_steps", 3),
            options.get("training_step_size", 4),
            start,
        )
        self.model.train()
        return super().step(self.inputs(changed), targets)
