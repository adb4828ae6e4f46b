"""The notebooks answer from the shipped store, and what is committed is what they answer."""

import re
from io import BytesIO
from pathlib import Path

import nbformat
import numpy as np
import pytest
from matplotlib.image import imread
from nbformat import NotebookNode

from analysis.run import HERE, NOTEBOOKS, execute, figures
from analysis.shipping import PATHS
from harness.tracking.study import read_study

MOST_BYTES = 700_000
BOOKS = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
MAIN = {"URI": f"sqlite:///{HERE / 'store' / 'mlflow.db'}"}


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def said(notebook: NotebookNode) -> list[str]:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [
        output["data"]["text/markdown"]
        for output in outputs
        if "text/markdown" in output.get("data", {})
    ]


@BOOKS
def test_a_notebook_says_what_is_committed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HERE.parent))
    committed, notebook = read(path), read(path)
    execute(notebook, {})
    sources = [[cell.source for cell in each.cells] for each in (committed, notebook)]
    assert sources[0] == sources[1]
    assert said(notebook) == said(committed)
    (now,) = figures(notebook)
    (then,) = figures(committed)
    assert_alike(now, then)


def assert_alike(now: bytes, then: bytes) -> None:
    """But for what another processor rounds otherwise."""
    pictures = [imread(BytesIO(each), format="png") for each in (now, then)]
    assert pictures[0].shape == pictures[1].shape
    assert np.abs(pictures[0] - pictures[1]).mean() < 0.005


@BOOKS
def test_a_committed_notebook_is_whole_and_small(path: Path) -> None:
    notebook = read(path)
    title, parameters, figure, reading, numbers = notebook.cells
    assert re.fullmatch(r"# .*\?", title.source)
    assert parameters.metadata["tags"] == ["parameters"]
    assert len(parameters.source.splitlines()) <= 3
    assert [cell.execution_count for cell in (parameters, figure, numbers)] == [1, 2, 3]
    assert 3 <= len(reading.source.splitlines()) <= 8
    kinds = [output.output_type for cell in notebook.cells for output in cell.get("outputs", [])]
    assert kinds == ["execute_result"] * 2  # a figure and sentences; no warnings, no errors
    assert path.stat().st_size < MOST_BYTES
    shown = HERE / "figures" / f"{path.stem}.png"
    assert shown.read_bytes() == figures(notebook)[0]


@BOOKS
def test_a_committed_notebook_tells_nothing_of_a_machine(path: Path) -> None:
    notebook = read(path)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert set(notebook.metadata["kernelspec"]) == {"name", "display_name", "language"}
    assert not re.search(b"|".join(PATHS), path.read_bytes())


def test_the_ladders_page_calls_its_rungs_what_the_ladder_does() -> None:
    """One of them pulls two levers at once."""
    notebook = read(HERE / "9_ladder.ipynb")
    for text in (notebook.cells[3].source, *said(notebook)):
        assert "the sliced classifier with local steps" in text


def test_parameters_choose_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a cell behind the ones given, so that a copy says what it was made from."""
    monkeypatch.setenv("PYTHONPATH", str(HERE.parent))
    notebook = read(NOTEBOOKS[0])
    execute(notebook, MAIN | {"STUDY": "staleness"})
    assert notebook.cells[2].source.splitlines()[1] == "STUDY = 'staleness'"
    (text,) = said(notebook)
    names = {run.name for run in read_study(MAIN["URI"], "staleness").runs}
    assert set(re.findall(r"^\* `([^`]+)`", text, re.MULTILINE)) == names
