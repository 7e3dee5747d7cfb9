"""The paper's own training: ImageNet, ResNet-50, 8 workers, 100 epochs (Wu & He 2018, section 4.1).

Standing in ``data_dir/imagenet``, it is what the full scale of most experiments consists of.
"""

from __future__ import annotations

from typing import Any

IMAGENET: dict[str, Any] = {
    "dataset": "imagenet",
    "model": "resnet50",
    "image_size": 224,
    "augment": "imagenet",
    "schedule": "step",
    "epochs": 100,
    "learning_rate": 0.0125,  # for 32 images: 0.1 for the 256 of 8 workers
    "weight_decay": 1e-4,
    "seeds": 3,
    "threads": 8,
}
"""Options of a comparison. Learning rate 0.1 for 256 images, divided by 10 after 30, 60 and 90 epochs."""
