"""How a sweep is followed in a notebook."""

import os

import nbformat
from nbclient import NotebookClient

SWEEP = """
import groupnorm.lab
options = {"norms": "gn", "batch_sizes": 32, "seeds": 2, "epochs": 1, "limit_train": 64, "limit_val": 64}
result = groupnorm.lab.compare(**options, workers=1, out="run")
"""


def test_a_notebook_has_one_output_that_is_written_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(SWEEP)])
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    assert len(os.listdir(tmp_path / "run" / "cells")) == 2
    (output,) = notebook.cells[0].outputs
    html = output.data["text/html"]
    assert html.startswith("<pre>")
    assert "validation error (%) over batch size" in html
    assert "2/2 cells, 0 running" in html
