"""Where the tests of the lab find real data."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """``real_data("FashionMNIST")`` is the folder that holds it; the test is skipped where there is none."""

    def find(content: str) -> Path:
        beside = Path(__file__).parents[3] / "shared" / "data"
        chosen = os.environ.get("GROUPNORM_DATA_DIR")
        for folder in ([Path(chosen)] if chosen else []) + [beside]:
            if (folder / content).is_dir():
                return folder
        pytest.skip(f"{content} is neither in $GROUPNORM_DATA_DIR nor in ../shared/data beside the repository")

    return find
