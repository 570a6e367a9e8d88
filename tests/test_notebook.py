"""The notebook of docs/ runs from its first cell to its last and keeps no outputs in the repository."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from support import ROOT

NOTEBOOK = ROOT / "docs" / "folder_to_prediction.ipynb"


def test_the_notebook_carries_no_outputs() -> None:
    cells = nbformat.read(NOTEBOOK, as_version=4).cells

    assert [cell.source for cell in cells if cell.cell_type == "code" and (cell.outputs or cell.execution_count)] == []


def test_the_notebook_goes_from_a_folder_to_a_prediction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(notebook, timeout=200, kernel_name="python3", resources={"metadata": {"path": "."}})
    client.execute()
    said = [
        "".join(output.get("text", "") for output in cell.outputs if output.get("name") == "stdout")
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]
    shown = [set(output.get("data", {})) for cell in notebook.cells for output in cell.get("outputs", [])]
    (score,) = [line for text in said for line in text.splitlines() if "test images are named rightly" in line]

    assert "train {'astronaut': 14" in said[1]
    assert int(score.partition("%")[0]) >= 50  # 18 images of six classes; a guess gets 17%
    assert len(said[-1].splitlines()) == 6
    assert sum("image/png" in kinds for kinds in shown) >= 2  # the training images, the confusion
