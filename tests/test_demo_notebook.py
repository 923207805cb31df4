"""The demo notebook runs from top to bottom in a checkout with a small model, and says what to run without one."""

from pathlib import Path

import nbformat
import numpy as np
import pyarrow as pa
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

NOTEBOOK = Path(__file__).parents[1] / "notebooks/demo.ipynb"


def run(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> NotebookNode:
    monkeypatch.setenv("DVC_ROOT", str(checkout))
    monkeypatch.setenv("IPYTHONDIR", str(checkout / "ipython"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(checkout)}}).execute()
    return notebook


def made_checkout(folder: Path) -> Path:
    """models/student and data/prepared as the pipeline leaves them, untrained and of six wafers."""
    import sys

    sys.path.insert(0, str(Path(__file__).parent / "evaluation"))
    from evaluation_fakes import small_fab
    from student_fakes import made_generator

    model, prepared = folder / "models/student", folder / "data/prepared"
    model.mkdir(parents=True)
    prepared.mkdir(parents=True)
    generator = made_generator()
    generator.model.save(model)
    generator.normaliser.save(model / "normaliser.json")
    generator.vocabularies.save(model / "vocabularies.json")
    table = small_fab(6, seed=3).table
    with pa.OSFile(str(prepared / "test.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as out:
        out.write_table(table)
    return folder


def printed(notebook: NotebookNode) -> str:
    outputs = [out for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]
    return "".join(out.text for out in outputs if out.output_type == "stream")


def test_notebook_walks_from_the_model_to_the_speed_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook = run(made_checkout(tmp_path), monkeypatch)
    text = printed(notebook)
    assert "models/student: T/8" in text
    assert "INFO lot started" in text
    for phrase in (
        "RMSE of the point forecast",
        "M3S x: forecast",
        "device cpu",
        "32 wafers, full / masked:",
    ):
        assert phrase in text
    images = [out for cell in notebook.cells for out in cell.get("outputs", []) if "data" in out]
    assert any("image/png" in out.data for out in images)


def test_notebook_without_a_model_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CellExecutionError, match="run `make repro`"):
        run(tmp_path, monkeypatch)


def test_committed_outputs_are_of_a_whole_run_and_name_no_folder_of_a_machine() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))  # run once, from top to bottom
    text = printed(notebook)
    assert "full / masked" in text
    assert not any(folder in text for folder in ("/home/", "/root/", "/tmp/", "/work/", "/Users/"))
    assert NOTEBOOK.stat().st_size < 600_000
    assert np.all([out.output_type != "error" for cell in notebook.cells for out in cell.get("outputs", [])])
