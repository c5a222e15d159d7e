"""The walkthrough notebook runs from top to bottom, and the stored one has its outputs."""

import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = "docs/faster_rcnn_walkthrough.ipynb"


def _run(repo: Path) -> nbformat.NotebookNode:
    notebook = nbformat.read(repo / NOTEBOOK, as_version=4)
    # The notebook is in docs/ and imports the packages beside that folder, installed or not.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(repo), os.environ.get("PYTHONPATH", ""))))
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(repo)}})
    client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day: they would change with every run
    return notebook


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_notebook_runs_from_top_to_bottom(repo: Path) -> None:
    notebook = _run(repo)
    assert any("total loss" in output.get("text", "") for output in notebook.cells[-1].outputs)


def test_its_outputs_are_stored(repo: Path) -> None:
    notebook = nbformat.read(repo / NOTEBOOK, as_version=4)
    plots = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/jpeg" in output.get("data", {})
    ]
    assert len(plots) >= 7
    text = (repo / NOTEBOOK).read_text()
    assert "Traceback" not in text
    assert "stderr" not in text


if __name__ == "__main__":  # python -m tests.integration.test_notebook: run it, and store its outputs
    root = Path(__file__).resolve().parents[2]
    nbformat.write(_run(root), root / NOTEBOOK)
    sys.exit(0)
