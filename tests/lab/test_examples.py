"""The notebooks run, on a small slice of the data."""

import os
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_runs_and_is_committed_with_its_results(path, tmp_path, monkeypatch, real_data):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert any("image/png" in output.get("data", {}) for cell in code for output in cell.outputs)
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)
    monkeypatch.setenv("FIGURE1_SLICE", "1")
    monkeypatch.setenv("FIGURE1_RUNS", str(tmp_path))
    monkeypatch.setenv("GROUPNORM_DATA_DIR", str(real_data("FashionMNIST")))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": EXAMPLES}}).execute()
    assert len(os.listdir(tmp_path / "figure1-28x28" / "cells")) == 8
