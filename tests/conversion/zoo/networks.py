"""All networks of the matrix, and those left out. Only torchvision is imported before a network is built."""

from importlib.metadata import version

from conversion.zoo import of_diffusers, of_monai, of_smp, of_timm, of_torchvision, of_transformers
from conversion.zoo.network import Network

RESTS_ON = {
    "torchvision": (),
    "timm": (),
    "segmentation-models-pytorch": ("timm", "torchvision"),
    "monai": ("torchvision",),
    "transformers": (),
    "diffusers": (),
}
"""The libraries, and which others their networks are made of."""

NETWORKS: list[Network] = [
    *of_torchvision.NETWORKS,
    *of_timm.NETWORKS,
    *of_smp.NETWORKS,
    *of_monai.NETWORKS,
    *of_transformers.NETWORKS,
    *of_diffusers.NETWORKS,
]

LEFT_OUT = [
    (module.NETWORKS[0].library, name, why)
    for module in (of_torchvision, of_smp, of_monai, of_transformers, of_diffusers)
    for name, why in module.LEFT_OUT.items()
]
"""Library, networks, and why they are not in the matrix."""


def versions() -> dict[str, str]:
    """The installed version of each library."""
    return {library: version(library) for library in RESTS_ON}
